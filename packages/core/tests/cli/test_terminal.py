"""A terminal obeys nobody else's text: what is stored is escaped, and a pipe gets its bytes."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from metaflow_artifacts import Store
from metaflow_artifacts._cli.output import escape

Run = Callable[..., Any]


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


def test_output_that_a_locale_cannot_show(store: Store, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    store.save_model(tmp_path / "file", "Modèle \N{SNOWMAN}")
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    command = [sys.executable, "-m", "metaflow_artifacts", "ls", "--root", store.root]
    done = subprocess.run(command, capture_output=True, check=True, env=environment)
    assert rb"Mod\xe8le \u2603" in done.stdout


def test_what_is_not_printable_is_escaped() -> None:
    assert escape("a\x1b\u202e\udcff\n\N{SNOWMAN}") == r"a\x1b\u202e\xff\n" + "\N{SNOWMAN}"
