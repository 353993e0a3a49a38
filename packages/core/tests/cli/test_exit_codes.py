"""How a command is started, and how it ends: exit codes, and readers that stop early."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from metaflow_artifacts import Store, __version__
from metaflow_artifacts._cli import main

MISSING = "mf.models/models/artifacts/m_" + "0" * 32


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
        (("ls", "--root", "hdfs://bucket"), 1, "there is no such directory"),
        (("ls", "--root", "s3//bucket/prefix"), 1, "looks like a misspelt URL"),
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


def test_an_interrupt_while_the_command_line_is_imported() -> None:
    code = """
import runpy, sys

class Interrupts:
    def find_spec(self, name, path=None, target=None):
        if name == "metaflow_artifacts._cli.reading":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupts())
runpy.run_module("metaflow_artifacts", run_name="__main__", alter_sys=True)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "metaflow-artifacts: interrupted\n")


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("ls >&-", 0),
        ("ls 2>&- | grep -q mf.models", 0),
        ("cat KEY config.json >&-", 0),
        ("ls >/dev/full", 2),
        ("check --json >/dev/full", 2),
        ("cat KEY config.json >/dev/full", 2),
        ("show MISSING --json >/dev/full", 1),
        ("show MISSING --json 2>/dev/full | grep -q exit_code", 0),
        ("show MISSING 2>&- | grep .", 1),
        ("show 2>/dev/full", 2),
    ],
)
def test_a_stream_that_takes_nothing(command: str, code: int, store: Store, keys: dict[str, str]) -> None:
    text = command.replace("KEY", keys["base"]).replace("MISSING", MISSING)
    name, _, rest = text.partition(" ")
    line = f"{sys.executable} -m metaflow_artifacts {name} --root {store.root} {rest}"
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_an_error_whose_reader_has_gone_keeps_its_exit_code(store: Store, keys: dict[str, str]) -> None:
    command = f"{sys.executable} -m metaflow_artifacts show --json --root {store.root} {MISSING}"
    done = subprocess.run(
        ["sh", "-c", f"{{ {command}; echo $? >&2; }} | true"], capture_output=True, text=True, check=True
    )
    assert done.stderr.splitlines()[1:] == ["1"]
