"""The command line: what people and programs read, exit codes, and that a terminal obeys nobody else's text."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from metaflow_artifacts import Store, __version__
from metaflow_artifacts._cli import main
from metaflow_artifacts._cli.output import escape
from metaflow_artifacts._format.keys import CheckpointPlace
from metaflow_artifacts._storage import open_storage
from metaflow_artifacts._store.checkpoint_writer import CheckpointWriter
from metaflow_artifacts._transfer.chunks import chunk_key
from metaflow_artifacts.testing.seaweedfs import SeaweedServer

CHUNK = 64 << 10
MISSING = "mf.models/models/artifacts/m_" + "0" * 32


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(open_storage(tmp_path / "store"), chunk_size=CHUNK)


@pytest.fixture
def keys(store: Store, tmp_path: Path) -> dict[str, str]:
    """A model, a checkpoint made from it, a model with names and texts of a stranger; by name."""
    tree = tmp_path / "tree"
    (tree / "sub" / "empty").mkdir(parents=True)
    (tree / "config.json").write_text('{"a": 1}\n')
    (tree / "run.sh").write_text("#!/bin/sh\n")
    (tree / "run.sh").chmod(0o755)
    (tree / "sub" / "weights.bin").write_bytes(bytes(range(256)) * (5 * CHUNK // 256))
    base = store.save_model(tree, "base", {"accuracy": 0.9}, pathspec="TrainFlow/1/train/2")
    (tree / "config.json").write_text('{"a": 2}\n')
    place = CheckpointPlace("TrainFlow", "train", "0" * 12, "1" * 12)
    series = CheckpointWriter(store, place, "0" * 8, 0, "TrainFlow/1/train/2")
    first = series.save(tree, metadata={"loss": 0.5}, label="TrainFlow_train", parents=[base["key"]])
    second = series.save(tree, metadata={"loss": 0.7}, label="TrainFlow_train", parents=[first["key"]])
    hostile = tmp_path / "hostile"
    hostile.mkdir()
    (hostile / "\x1b[31mred\rover\N{RIGHT-TO-LEFT OVERRIDE}").write_text("plain\n\x1b]0;title\x07\tend\n")
    stranger = store.save_model(hostile, "stranger", {"\x1b[2J": "\x1b[H\x9b1m"}, pathspec="Other\x1b[0mFlow/1/s/2")
    return {
        "base": base["key"],
        "first": first["key"],
        "second": second["key"],
        "stranger": stranger["key"],
    }


class Result:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code = code
        self.out = out
        self.err = err

    @property
    def json(self) -> Any:
        assert self.out.isascii()
        return json.loads(self.out)

    def table(self) -> list[dict[str, str]]:
        """The rows of the table that the output begins with, by the titles of the columns."""
        titles, *rows = self.out.split("\n\n")[0].splitlines()
        columns = [re.split(r"  +", line.strip()) for line in rows]
        return [dict(zip(re.split(r"  +", titles.strip()), row, strict=True)) for row in columns]


Run = Callable[..., Result]


@pytest.fixture
def run(store: Store, capfd: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: str, root: str | None = store.root) -> Result:
        options = [] if root is None else ["--root", root]
        try:
            code = main([arguments[0], *options, *arguments[1:]])
        except SystemExit as error:
            code = int(error.code or 0)
        out, err = capfd.readouterr()
        return Result(code, out, err)

    return call


def test_ls(run: Run, keys: dict[str, str]) -> None:
    result = run("ls")
    assert result.code == 0
    rows = result.table()
    assert [row["key"] for row in rows] == [keys[name] for name in ("stranger", "second", "first", "base")]
    assert rows[3]["type"] == "model"
    assert rows[3]["label"] == "base"
    assert rows[3]["pathspec"] == "TrainFlow/1/train/2"
    assert rows[3]["size"] == "320 KiB"
    listed = run("ls", "--json").json
    assert [artifact["key"] for artifact in listed] == [row["key"] for row in rows]
    assert listed[3]["metadata"] == {"accuracy": 0.9}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--type", "model"], ["base", "stranger"]),
        (["--type", "checkpoint"], ["first", "second"]),
        (["--flow", "TrainFlow"], ["base", "first", "second"]),
        (["--flow", "Train*", "--type", "model"], ["base"]),
        (["--step", "train"], ["base", "first", "second"]),
        (["--step", "none"], []),
        (["--label", "[bs]*"], ["base", "stranger"]),
        (["--limit", "1"], ["stranger"]),
    ],
    ids=" ".join,
)
def test_ls_filters(run: Run, keys: dict[str, str], options: list[str], expected: list[str]) -> None:
    found = {artifact["key"] for artifact in run("ls", *options, "--json").json}
    assert found == {keys[name] for name in expected}


def test_ls_says_what_is_damaged_and_lists_the_rest(run: Run, store: Store, keys: dict[str, str]) -> None:
    store.storage.put(keys["base"], b"{")
    result = run("ls")
    assert result.code == 1
    assert len(result.table()) == 3
    assert keys["base"] in result.err


def test_show(run: Run, store: Store, keys: dict[str, str]) -> None:
    out = run("show", keys["first"]).out
    for line in (
        f"key: {keys['first']}",
        f"url: {store.root}/{keys['first']}",
        "label: TrainFlow_train",
        "metadata:",
        "  loss: 0.5",
        "parents:",
        f"  {keys['base']}",
        f"size: {5 * CHUNK + 19} (320 KiB)",
        "latest: true",
        "files: 3",
        "chunks: 6",
    ):
        assert line in out.splitlines()
    shown = run("show", "--json", keys["first"]).json
    assert shown["artifact"] == store.info(keys["first"])
    assert (shown["files"], shown["chunks"], shown["inline"], shown["latest"]) == (3, 6, False, True)


def test_a_url_names_its_store_too(run: Run, store: Store, keys: dict[str, str]) -> None:
    for command in ("show", "tree", "lineage"):
        assert run(command, f"{store.root}/{keys['base']}", root=None).code == 0
    other = run("check", f"{store.root}/{keys['base']}", f"/elsewhere/{keys['base']}", root=None)
    assert other.code == 2
    assert "different stores" in other.err


def test_tree(run: Run, keys: dict[str, str]) -> None:
    result = run("tree", keys["base"])
    assert [line.strip() for line in result.out.splitlines()] == [
        "9 B  config.json",
        "10 B  run.sh*",
        "sub/",
        "empty/",
        "320 KiB      weights.bin",
        "320 KiB  in 3 files",
    ]
    listed = run("tree", "--json", keys["base"]).json
    assert listed["dirs"] == ["sub/empty"]
    assert listed["files"][2] == {"path": "sub/weights.bin", "size": 5 * CHUNK, "mode": 0o644, "sha256": None}


def test_cat(store: Store, keys: dict[str, str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "metaflow_artifacts", "cat", "--root", store.root, keys["base"]]
    for name in ("config.json", "sub/weights.bin"):
        done = subprocess.run([*command, name], capture_output=True, check=True)
        assert done.stdout == store.read_file(keys["base"], name)
    done = subprocess.run([*command, "none"], capture_output=True)
    assert done.returncode == 1
    assert b"has no file 'none'" in done.stderr


def test_get(run: Run, keys: dict[str, str], tmp_path: Path) -> None:
    result = run("get", keys["base"], str(tmp_path / "out"))
    assert result.code == 0
    assert result.out == f"320 KiB in {tmp_path / 'out'}\n"
    assert (tmp_path / "out" / "sub" / "weights.bin").stat().st_size == 5 * CHUNK
    assert result.err == ""
    only = run("get", keys["base"], str(tmp_path / "only"), "--only", "*.json", "--json")
    assert only.json == {"path": str(tmp_path / "only"), "size": 9}
    assert os.listdir(tmp_path / "only") == ["config.json"]
    assert run("get", keys["base"], str(tmp_path / "none"), "--only", "*.pt").code == 1
    (tmp_path / "file").touch()
    target = run("get", keys["base"], str(tmp_path / "file"))
    assert target.code == 2
    assert "is not a directory" in target.err


def test_lineage(run: Run, keys: dict[str, str]) -> None:
    chain = [keys["second"], keys["first"], keys["base"]]
    assert [row["key"] for row in run("lineage", keys["second"]).table()] == chain
    assert [one["key"] for one in run("lineage", "--json", keys["second"]).json] == chain


def test_du(run: Run, store: Store, keys: dict[str, str]) -> None:
    logical = 3 * (5 * CHUNK + 19) + 21
    # Two configurations, each in a pack with run.sh, and five chunks of weights that are all the same.
    stored = CHUNK + 2 * 19 + 21
    shown = run("du", "--json").json
    assert (shown["artifacts"], shown["logical"], shown["stored"], shown["unneeded"]) == (4, logical, stored, 0)
    assert shown["groups"][0] == {
        "type": "checkpoint",
        "flow": "TrainFlow",
        "artifacts": 2,
        "logical": 2 * (5 * CHUNK + 19),
        "stored": CHUNK + 19,
    }
    store.delete(keys["base"])
    assert run("du", "--json").json["unneeded"] == 19
    out = run("du").out
    assert "640.1 KiB in 3 artifacts, stored in 64.1 KiB, of which no artifact needs 19 B" in out


def test_check(run: Run, store: Store, keys: dict[str, str]) -> None:
    for options in ((), ("--read",), (keys["base"],)):
        result = run("check", *options)
        assert result.code == 0
        assert result.out.rstrip().endswith(": whole")
    assert "4 artifacts, 10 files" in run("check").out
    chunk = chunk_key(store.manifest(keys["base"]).chunks[0].sha256)
    store.storage.put(chunk, bytes(19))
    assert run("check").code == 0
    found = run("check", "--read")
    assert found.code == 1
    assert found.out.startswith(f"content: {keys['base']}: ")
    assert chunk in found.out
    assert found.out.rstrip().endswith("1 problem")
    report = run("check", "--read", "--json")
    assert report.code == 1
    assert report.json["ok"] is False
    assert [problem["chunk"] for problem in report.json["problems"]] == [chunk]
    assert run("check", MISSING).code == 1


def test_gc(run: Run, store: Store, keys: dict[str, str]) -> None:
    store.delete(keys["base"])
    before = run("du", "--json").json
    dry = run("gc", "--exclusive", "--grace", "0s")
    assert dry.code == 0
    assert "would remove 1 chunk of 19 B; --execute does it" in dry.out
    assert run("du", "--json").json == before
    assert run("gc", "--json").json["removed"] == 0
    stats = run("gc", "--exclusive", "--grace", "0s", "--execute", "--json").json
    assert (stats["dry_run"], stats["removed"], stats["freed"]) == (False, 1, 19)
    assert "removed nothing" in run("gc", "--execute").out
    short = run("gc", "--grace", "1h")
    assert short.code == 2
    assert "--exclusive" in short.err
    assert run("check", "--read").code == 0


def test_delete(run: Run, store: Store, keys: dict[str, str]) -> None:
    result = run("delete", keys["base"], MISSING, f"{store.root}/{keys['first']}")
    assert result.code == 1
    assert result.out == f"deleted {keys['base']}\ndeleted {keys['first']}\n"
    assert MISSING in result.err
    assert run("delete", "--json", keys["second"]).json == {"deleted": [keys["second"]], "missing": []}
    assert {artifact["key"] for artifact in run("ls", "--json").json} == {keys["stranger"]}


def test_retain(run: Run, keys: dict[str, str]) -> None:
    options = ("--best", "1", "--metric", "loss", "--lowest", "--flow", "TrainFlow", "--step", "train")
    rule: tuple[str, ...] = ("retain", *options)
    resume = {row["key"]: row["decision"] for row in run(*rule).table()}
    assert resume == {keys["second"]: "keep: resume", keys["first"]: "keep: best"}
    rule = (*rule, "--last", "0")
    dry = run(*rule)
    assert dry.code == 0
    assert {row["key"]: row["decision"] for row in dry.table()} == {
        keys["second"]: "delete",
        keys["first"]: "keep: best",
    }
    assert "would delete 1 checkpoint of 320 KiB; --execute does it" in dry.out
    assert len(run("ls", "--json").json) == 4
    (group,) = run(*rule, "--execute", "--json").json["groups"]
    assert group["delete"] == [keys["second"]]
    assert group["keep"] == [{"key": keys["first"], "rules": ["best"]}]
    assert len(run("ls", "--json").json) == 3
    assert "deleted 0 checkpoints" in run("retain", "--younger", "7d", "--execute").out
    assert run("retain", "--last", "0", "--hub", "--json").json["groups"] == []


@pytest.mark.parametrize(
    ("arguments", "code", "problem"),
    [
        ((), 2, "required: COMMAND"),
        (("nope",), 2, "invalid choice"),
        (("show",), 2, "required: KEY"),
        (("gc", "--grace", "7"), 2, "write 90s, 30m, 12h, 7d or 2w"),
        (("retain",), 2, "no rule says what to keep"),
        (("show", "--root", ".", "not-a-key"), 2, "not the key of a stored artifact"),
        (("show", "--root", ".", "mf.models/models/artifacts/../../x"), 2, "not the key of a stored artifact"),
        (("show", "--root", ".", MISSING), 1, "nothing is stored at"),
        (("ls", "--root", "nowhere"), 1, "nowhere: there is no such directory"),
        (("ls", "--root", "gs://bucket"), 1, "there is no such directory"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_exit_codes(
    arguments: tuple[str, ...],
    code: int,
    problem: str,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        found = main(arguments)
    except SystemExit as error:
        found = int(error.code or 0)
    out, err = capfd.readouterr()
    assert found == code
    assert problem in err
    assert out == ""
    assert os.listdir(tmp_path) == []


def test_the_module_and_the_script_are_the_same(store: Store, keys: dict[str, str]) -> None:
    script = Path(sysconfig.get_path("scripts")) / "metaflow-artifacts"
    outputs = [
        subprocess.run([*command, "ls", "--root", store.root], capture_output=True, check=True, text=True).stdout
        for command in ([sys.executable, "-m", "metaflow_artifacts"], [str(script)])
    ]
    assert outputs[0] == outputs[1] != ""
    version = subprocess.run([str(script), "--version"], capture_output=True, check=True, text=True).stdout
    assert version == f"metaflow-artifacts {__version__}\n"


def test_a_reader_that_stops_early_is_no_error(store: Store, keys: dict[str, str]) -> None:
    command = f"{sys.executable} -m metaflow_artifacts cat --root {store.root} {keys['base']} sub/weights.bin"
    done = subprocess.run(["sh", "-c", f"{{ {command}; echo $? >&2; }} | head -c 1"], capture_output=True, check=True)
    assert done.stdout == b"\0"
    assert done.stderr == b"0\n"


def on_terminal(arguments: list[str], environment: dict[str, str] | None = None) -> str:
    """What a terminal gets from the command."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "metaflow_artifacts", *arguments],
        stdout=slave,
        stderr=slave,
        env={**os.environ, **(environment or {})},
    )
    os.close(slave)
    output = b""
    while True:
        try:
            block = os.read(master, 1 << 16)
        except OSError:
            break
        if not block:
            break
        output += block
    os.close(master)
    assert process.wait() == 0
    return output.decode(errors="surrogateescape")


CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\N{RIGHT-TO-LEFT OVERRIDE}]")


def test_stored_text_cannot_control_a_terminal(store: Store, keys: dict[str, str]) -> None:
    name = store.manifest(keys["stranger"]).files[0].path
    for command in ("ls", "du", "show", "tree", "cat", "lineage", "check", "delete"):
        arguments = [command, "--root", store.root]
        arguments += [] if command in ("ls", "du") else [keys["stranger"]]
        output = on_terminal([*arguments, *([name] if command == "cat" else [])])
        assert output.strip()
        assert not CONTROL.search(output.replace("\r\n", "\n")), command
        if command in ("tree", "show", "cat", "ls"):
            assert r"\x1b" in output


def test_a_pipe_gets_the_bytes_of_a_file(store: Store, keys: dict[str, str]) -> None:
    name = store.manifest(keys["stranger"]).files[0].path
    command = [sys.executable, "-m", "metaflow_artifacts", "cat", "--root", store.root, keys["stranger"], name]
    assert subprocess.run(command, capture_output=True, check=True).stdout == b"plain\n\x1b]0;title\x07\tend\n"


def test_an_error_is_one_escaped_line(run: Run, store: Store, keys: dict[str, str]) -> None:
    result = run("cat", keys["stranger"], "\x1b[31m\nx")
    assert result.code == 1
    assert result.err.count("\n") == 1
    assert "\x1b" not in result.err
    assert run("show", "mf.models/models/artifacts/\x1b[31m_" + "0" * 32).err.count("\x1b") == 0


def test_a_store_in_s3(s3_server: SeaweedServer, tmp_path: Path) -> None:
    root = f"{s3_server.root}/cli"
    (tmp_path / "file").write_bytes(bytes(3 * CHUNK))
    key = Store(open_storage(root, client=s3_server.client), chunk_size=CHUNK).save_model(tmp_path / "file")["key"]
    environment = {**os.environ, **s3_server.environment()}
    for arguments in (["check", "--read"], ["get", key, str(tmp_path / "out")], ["delete", key], ["gc", "--execute"]):
        command = [sys.executable, "-m", "metaflow_artifacts", arguments[0], "--root", root, *arguments[1:]]
        subprocess.run(command, check=True, env=environment)
    assert (tmp_path / "out" / "file").read_bytes() == bytes(3 * CHUNK)
    done = subprocess.run(
        [sys.executable, "-m", "metaflow_artifacts", "ls", "--root", "s3://no-such-bucket/x"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode in (1, 2)
    assert "no-such-bucket" in done.stderr
    assert done.stderr.count("\n") == 1


def test_output_that_a_locale_cannot_show(store: Store, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    store.save_model(tmp_path / "file", "Modèle \N{SNOWMAN}")
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    command = [sys.executable, "-m", "metaflow_artifacts", "ls", "--root", store.root]
    done = subprocess.run(command, capture_output=True, check=True, env=environment)
    assert rb"Mod\xe8le \u2603" in done.stdout


def test_a_progress_bar_on_a_terminal_only(
    store: Store, keys: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from metaflow_artifacts._cli import bar
    from metaflow_artifacts._transfer.progress import Progress

    class Terminal:
        def __init__(self, terminal: bool) -> None:
            self.terminal = terminal
            self.text = ""

        def isatty(self) -> bool:
            return self.terminal

        def write(self, text: str) -> None:
            self.text += text

        def flush(self) -> None:
            pass

    def transfer(progress: Progress, pause: float) -> None:
        progress.start(4 << 20)
        for _ in range(4):
            time.sleep(pause)
            progress.add(1 << 20)

    for terminal, pause, shown in ((True, 0.3, True), (True, 0.0, False), (False, 0.3, False)):
        stream = Terminal(terminal)
        monkeypatch.setattr(sys, "stderr", stream)
        with bar.bar("get") as progress:
            transfer(progress, pause)
        assert bool(stream.text) is shown
        if shown:
            assert re.match(r"\rget \[#+\] 100% of 4 MiB, [0-9.]+ MiB/s\x1b\[K", stream.text)
            assert stream.text.endswith("\r\x1b[K")


def test_what_is_not_printable_is_escaped() -> None:
    assert escape("a\x1b\u202e\udcff\n\N{SNOWMAN}") == r"a\x1b\u202e\xff\n" + "\N{SNOWMAN}"
