"""The progress bar: on a terminal only, and only for what takes longer than a second."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import sys
import termios
import threading
from contextlib import suppress
from types import SimpleNamespace

import pytest

from metaflow_artifacts._cli import bar


class Stream:
    """Takes the place of standard error, which is a terminal or not."""

    def __init__(self, terminal: bool) -> None:
        self.terminal = terminal
        self.text = ""
        self.written = threading.Event()

    def isatty(self) -> bool:
        return self.terminal

    def write(self, text: str) -> None:
        self.text += text
        self.written.set()

    def flush(self) -> None:
        pass


def shown(monkeypatch: pytest.MonkeyPatch, *, terminal: bool, seconds: float) -> str:
    """What is written during a transfer of four steps, each of which takes this long."""
    now = 0.0
    monkeypatch.setattr(bar, "time", SimpleNamespace(monotonic=lambda: now))
    stream = Stream(terminal)
    monkeypatch.setattr(sys, "stderr", stream)
    with bar.bar("get") as progress:
        progress.start(4 << 20)
        for _ in range(4):
            now += seconds
            progress.add(1 << 20)
    return stream.text


def test_a_slow_transfer_shows_a_bar_and_removes_it_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(monkeypatch, terminal=True, seconds=0.3)
    assert re.match(r"\rget \[#+\] 100% of 4 MiB, [0-9.]+ MiB/s\x1b\[K", text)
    assert text.endswith("\r\x1b[K")


def test_a_transfer_of_less_than_a_second_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(monkeypatch, terminal=True, seconds=0.2) == ""


def test_without_a_terminal_there_is_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(monkeypatch, terminal=False, seconds=0.3) == ""


def test_before_the_first_step_the_seconds_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Stream(terminal=True)
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(bar, "_AFTER", 0.001)
    monkeypatch.setattr(bar, "_EVERY", 0.0)
    with bar.bar("du"):
        assert stream.written.wait(60)
    assert re.match(r"\rdu: 0 s\x1b\[K", stream.text)
    assert stream.text.endswith("\r\x1b[K")


def test_a_narrow_terminal_gets_lines_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(bar, "time", SimpleNamespace(monotonic=lambda: now))
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 20, 0, 0))
    with os.fdopen(slave, "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        with bar.bar("copy") as progress:
            progress.start(4 << 20)
            now = 2.0
            progress.add(1 << 20)
    text = ""
    # A terminal that nobody has open any more gives what is left, and then an error.
    with suppress(OSError):
        while part := os.read(master, 1 << 16):
            text += part.decode()
    os.close(master)
    assert text == "\rcopy [########.....\x1b[K\r\x1b[K"
