"""Listings of many artifacts: what is read for them, in which order they come, what a terminal and a program get."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from metaflow_artifacts import Store
from metaflow_artifacts._cli import main
from metaflow_artifacts._format.keys import CheckpointPlace
from metaflow_artifacts._layout import CHECKPOINTS, MODEL_ARTIFACTS, checkpoint_prefix
from metaflow_artifacts._storage import LocalStorage
from metaflow_artifacts._store import details
from metaflow_artifacts._store.checkpoint_writer import CheckpointWriter
from metaflow_artifacts._upkeep.newest import newest_artifacts
from metaflow_artifacts._upkeep.survey import artifact_objects

Run = Callable[..., Any]
NOW = datetime.now(timezone.utc)
MISSING = "mf.models/models/artifacts/m_" + "0" * 32


class Aged:
    """Saves artifacts that were created some hours ago, and whose objects are as old, or of another age."""

    def __init__(self, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.store = store
        self.content = tmp_path / "aged"
        self.content.write_text("content")
        self.hours = 0.0
        clock = type("Clock", (datetime,), {"now": classmethod(lambda cls, tz=None: NOW - timedelta(hours=self.hours))})
        monkeypatch.setattr(details, "datetime", clock)

    def __call__(self, hours: float, label: str = "l", flow: str = "F", written: float | None = None) -> str:
        self.hours = hours
        key = self.store.save_model(self.content, label, pathspec=f"{flow}/1/train/2")["key"]
        return self.dated(key, hours if written is None else written)

    def checkpoint(self, hours: float, flow: str = "F", step: str = "train") -> str:
        self.hours = hours
        place = CheckpointPlace(flow, step, "0" * 12, "1" * 12)
        writer = CheckpointWriter(self.store, place, "0" * 8, 0, f"{flow}/1/{step}/2")
        return self.dated(writer.save(self.content, label="l")["key"], hours)

    def dated(self, key: str, hours: float) -> str:
        moment = (NOW - timedelta(hours=hours)).timestamp()
        os.utime(os.path.join(self.store.root, key), (moment, moment))
        return key


@pytest.fixture
def save(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Aged:
    return Aged(store, tmp_path, monkeypatch)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The keys of the heads that are read."""
    found: list[str] = []
    plain = Store.head_at

    def head_at(self: Store, key: str) -> Any:
        found.append(key)
        return plain(self, key)

    monkeypatch.setattr(Store, "head_at", head_at)
    return found


def listed(run: Run, *options: str) -> list[str]:
    result = run("ls", "--json", *options)
    assert result.code == 0, result.err
    return [artifact["key"] for artifact in result.json]


def test_a_limit_reads_only_what_may_be_among_the_newest(run: Run, save: Aged, reads: list[str]) -> None:
    keys = [save(hours) for hours in range(20)]
    assert listed(run, "--limit", "5") == keys[:5]
    assert sorted(reads) == sorted(keys[:5])
    assert listed(run) == keys
    assert listed(run, "--limit", "0") == []
    assert listed(run, "--limit", "99") == keys


def test_what_was_copied_has_its_own_age(run: Run, save: Aged, reads: list[str]) -> None:
    """Its object is younger than it says."""
    keys = [save(hours, written=0.1 * number) for number, hours in enumerate((9, 1, 8, 2, 7))]
    newest_first = [keys[index] for index in (1, 3, 4, 2, 0)]
    assert listed(run) == newest_first
    reads.clear()
    assert listed(run, "--limit", "2") == newest_first[:2]
    assert set(reads) == set(keys[:5])


def test_a_clock_that_is_ahead_widens_the_search(run: Run, save: Aged) -> None:
    keys = [save(0.90, written=1), save(0.92, written=1.1), save(0.94, written=1.2), save(0.8, written=1.05)]
    assert listed(run, "--limit", "2") == [keys[3], keys[0]] == listed(run)[:2]


def test_artifacts_come_while_others_are_read(store: Store, save: Aged, reads: list[str]) -> None:
    keys = [save(hours) for hours in range(300)]
    found = newest_artifacts(store, artifact_objects(store.storage))
    first = next(found)
    assert not isinstance(first, Exception)
    assert first["key"] == keys[0]
    assert len(reads) < 250
    assert [artifact["key"] for artifact in found if not isinstance(artifact, Exception)] == keys[1:]


def test_the_prefixes_are_listed_at_once(run: Run, save: Aged, monkeypatch: pytest.MonkeyPatch) -> None:
    key = save(1)
    both = threading.Barrier(2)
    plain = LocalStorage.list

    def list_(self: LocalStorage, prefix: str) -> Any:
        if prefix in (MODEL_ARTIFACTS, checkpoint_prefix(CHECKPOINTS)):
            both.wait(60)
        return plain(self, prefix)

    monkeypatch.setattr(LocalStorage, "list", list_)
    assert listed(run) == [key]


@pytest.mark.parametrize(
    ("options", "names", "read"),
    [
        (["--label", "a*"], ["a"], ["a", "checkpoint", "other step", "other flow"]),
        (["--flow", "G"], ["b", "other flow"], ["a", "b", "other flow"]),
        (["--type", "checkpoint", "--flow", "G"], ["other flow"], ["other flow"]),
        (["--type", "checkpoint", "--step", "t*"], ["checkpoint", "other flow"], ["checkpoint", "other flow"]),
        (["--younger", "4h"], ["a", "b"], ["a", "b"]),
        (["--older", "50h"], ["other flow"], ["a", "b", "checkpoint", "other step", "other flow"]),
        (["mf.models/*"], ["a", "b"], ["a", "b"]),
        (["*/G/*", "*/a_*"], ["a", "other flow"], ["a", "other flow"]),
    ],
    ids=str,
)
def test_what_a_listing_shows_is_filtered_before_anything_is_read(
    run: Run, save: Aged, reads: list[str], options: list[str], names: list[str], read: list[str]
) -> None:
    keys = {
        "a": save(1, "a"),
        "b": save(2, "b", "G"),
        "checkpoint": save.checkpoint(30),
        "other step": save.checkpoint(40, step="eval"),
        "other flow": save.checkpoint(60, "G"),
    }
    assert listed(run, *options) == [keys[name] for name in names]
    assert {name for name, key in keys.items() if key in reads} == set(read)


def test_a_pattern_that_no_key_begins_like_is_an_error(run: Run, save: Aged) -> None:
    save(1)
    result = run("ls", "models/*")
    assert (result.code, result.out) == (2, "")
    assert "no key begins like this pattern" in result.err


def test_delete_by_pattern_prints_and_deletes_with_execute(run: Run, save: Aged) -> None:
    keys = [save(1, "old-1"), save(2, "old-2"), save(3, "new"), save.checkpoint(4)]
    dry = run("delete", "mf.models/*/old-*")
    assert dry.code == 0
    assert {f"would delete {key}" for key in keys[:2]} <= set(dry.out.splitlines())
    assert dry.out.endswith("would delete 2 artifacts; --execute does it\n")
    planned = run("delete", "mf.models/*/old-*", "--json").json
    assert (planned["deleted"], sorted(planned["would_delete"])) == ([], sorted(keys[:2]))
    assert len(listed(run)) == 4
    # A key beside a pattern is not deleted either.
    assert run("delete", keys[2], "mf.models/*/old-*").code == 0
    assert len(listed(run)) == 4
    done = run("delete", "mf.models/*/old-*", "--execute", "--json").json
    assert sorted(done["deleted"]) == sorted(keys[:2])
    assert set(listed(run)) == set(keys[2:])
    none = run("delete", "mf.models/*/old-*", "--execute")
    assert none.code == 1
    assert "no artifact has a key that matches" in none.err


def test_du_by_step_label_and_age(run: Run, save: Aged) -> None:
    save(1, "a")
    save(24 * 3, "a", "G")
    save.checkpoint(24 * 400, step="eval")
    size = len("content")

    def groups(*options: str) -> dict[tuple[str, ...], int]:
        found = run("du", "--json", *options).json["groups"]
        return {
            tuple(v for k, v in group.items() if k not in ("artifacts", "logical", "stored")): group["logical"]
            for group in found
        }

    assert groups("--by", "step") == {("train",): 2 * size, ("eval",): size}
    assert groups("--by", "label", "--by", "flow") == {("a", "F"): size, ("a", "G"): size, ("l", "F"): size}
    assert groups("--by", "age") == {("up to 1 day",): size, ("up to 1 week",): size, ("older",): size}
    assert groups("--by", "flow", "--type", "checkpoint") == {("F",): size}
    assert run("du", "--by", "step", "--by", "step").out == run("du", "--by", "step").out
    part = run("du", "--type", "checkpoint", "--json").json
    assert (part["stored"], part["unneeded"]) == (size, None)
    assert re.search(r"up to 1 week +1 +7 B +7 B\n", run("du", "--by", "age").out)


def test_options_may_stand_before_the_command(store: Store, save: Aged, capfd: pytest.CaptureFixture[str]) -> None:
    key = save(1)
    orders = (
        ["--root", store.root, "--json", "ls"],
        ["--json", "ls", "--root", store.root],
        ["ls", "--json", "--root", store.root],
        ["--root", "/nowhere", "ls", "--json", "--root", store.root],
    )
    for order in orders:
        assert main(order) == 0
        assert [artifact["key"] for artifact in json.loads(capfd.readouterr().out)] == [key]


@pytest.mark.parametrize(
    ("arguments", "kind", "code"),
    [
        (["show", MISSING], "ArtifactNotFound", 1),
        (["ls", "--root", "/nowhere"], "ArtifactNotFound", 1),
        (["show", "nothing"], "InvalidReference", 2),
        (["retain"], "InvalidInput", 2),
        (["gc", "--grace", "7"], "UsageError", 2),
        (["ls", "--limit", "-1"], "UsageError", 2),
        (["nope"], "UsageError", 2),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_errors_are_json_where_that_is_asked_for(
    arguments: list[str], kind: str, code: int, store: Store, save: Aged, capfd: pytest.CaptureFixture[str]
) -> None:
    save(1)
    try:
        found = main(["--root", store.root, "--json", *arguments])
    except SystemExit as ended:
        found = int(ended.code or 0)
    out, err = capfd.readouterr()
    error = json.loads(out)["error"]
    assert (found, error["kind"], error["exit_code"]) == (code, kind, code)
    assert error["message"] in err


def on_terminal(columns: int, *arguments: str) -> list[str]:
    """The lines that a terminal of this width gets on standard output."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "metaflow_artifacts", *arguments],
        stdout=slave,
        env={**os.environ, "COLUMNS": str(columns)},
    )
    os.close(slave)
    output = b""
    try:
        while block := os.read(master, 1 << 16):
            output += block
    except OSError:
        # The terminal's other end is closed.
        pass
    os.close(master)
    assert process.wait() == 0
    return output.decode().splitlines()


def test_a_narrow_terminal(store: Store, save: Aged) -> None:
    key = save(1, "a-label-that-is-rather-long", "AFlowWithALongName")
    wide = on_terminal(300, "ls", "--root", store.root)
    assert [line.split()[-1] for line in wide] == ["key", key]
    narrow = on_terminal(80, "ls", "--root", store.root)
    assert [line.strip() for line in narrow[1::2]] == ["key", key]
    assert all(len(line) <= 80 for line in narrow[::2])
    assert "a-label" in narrow[2]
    assert "a-label-that-is-rather-long" not in narrow[2]
