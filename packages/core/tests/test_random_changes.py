"""Whatever another thread does to files during a save, each of them is saved in one state that it had."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metaflow_artifacts import SourceError, Store
from metaflow_artifacts._storage import open_storage
from metaflow_artifacts._transfer import scan as scan_module
from metaflow_artifacts._transfer import source

PAGE = 4096


class Writer:
    """Changes files at random, and notes every state that each of them has had."""

    def __init__(self, directory: Path, steps: list[tuple[int, str, int]]) -> None:
        self.directory = directory
        self.states: dict[str, list[bytes]] = {}
        self._steps = steps
        self._count = 0
        for number in range(3):
            self._write(f"f{number}", self._content((number + 1) * 3 * PAGE))

    def _content(self, size: int) -> bytes:
        self._count += 1
        return (self._count.to_bytes(8, "big") * (size // 8 + 1))[:size]

    def _note(self, name: str, state: bytes) -> None:
        self.states.setdefault(name, []).append(state)

    def _write(self, name: str, content: bytes) -> None:
        # A state is noted before it is there: a save that sees it early is right.
        self._note(name, b"")
        with open(self.directory / name, "wb", buffering=0) as file:
            for start in range(0, len(content), PAGE):
                self._note(name, content[: start + PAGE])
                file.write(content[start : start + PAGE])

    def run(self) -> None:
        for number, what, pages in self._steps:
            getattr(self, what)(f"f{number}", pages)

    def replace(self, name: str, pages: int) -> None:
        content = self._content(pages * PAGE)
        self._note(name, content)
        temporary = self.directory.parent / "temporary"
        temporary.write_bytes(content)
        os.replace(temporary, self.directory / name)

    def rewrite(self, name: str, pages: int) -> None:
        path = self.directory / name
        if not path.exists():
            return
        old = path.read_bytes()
        new = self._content(len(old))
        with open(path, "r+b", buffering=0) as file:
            for start in range(0, len(old), PAGE):
                self._note(name, new[: start + PAGE] + old[start + PAGE :])
                file.write(new[start : start + PAGE])

    def truncate(self, name: str, pages: int) -> None:
        path = self.directory / name
        if path.exists():
            content = path.read_bytes()[: pages * 100]
            self._note(name, content)
            os.truncate(path, len(content))

    def append(self, name: str, pages: int) -> None:
        path = self.directory / name
        if path.exists():
            more = self._content(PAGE)
            self._note(name, path.read_bytes() + more)
            with open(path, "ab", buffering=0) as file:
                file.write(more)

    def link(self, name: str, pages: int) -> None:
        self._count += 1
        if (self.directory / name).exists():
            os.link(self.directory / name, self.directory.parent / f"link{self._count}")

    def remove(self, name: str, pages: int) -> None:
        (self.directory / name).unlink(missing_ok=True)

    def add(self, name: str, pages: int) -> None:
        self._write(name + ".new", self._content(pages * PAGE))


steps = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.sampled_from(["replace", "rewrite", "rewrite", "truncate", "append", "link", "remove", "add"]),
        st.integers(1, 24),
    ),
    min_size=1,
    max_size=12,
)


def check_states(tmp_path: Path, number: int, steps: list[tuple[int, str, int]]) -> None:
    base = tmp_path / str(number)
    (base / "source").mkdir(parents=True)
    writer = Writer(base / "source", steps)
    store = Store(open_storage(base / "store"), chunk_size=4 * PAGE)
    thread = threading.Thread(target=writer.run)
    thread.start()
    try:
        for turn in range(4):
            try:
                reference = store.save_model(base / "source")
            except SourceError:
                continue
            out = base / f"out{turn}"
            store.load(reference, out)
            for file in out.iterdir():
                assert file.read_bytes() in writer.states[file.name], (turn, file.name)
    finally:
        thread.join()


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=steps)
def test_whatever_another_thread_does_each_file_is_one_of_its_states(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, str, int]]
) -> None:
    check_states(tmp_path_factory.mktemp("states"), 0, steps)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=steps)
def test_the_same_holds_where_file_times_move_every_4_ms(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, str, int]]
) -> None:
    class Coarse:
        """The module `os`, on a kernel whose file times move by ticks of 4 ms."""

        def __getattr__(self, name: str) -> Any:
            return getattr(os, name)

        def _coarse(self, status: os.stat_result) -> Any:
            fields = {name: getattr(status, name) for name in dir(status) if name.startswith("st_")}
            for name in ("st_mtime_ns", "st_ctime_ns"):
                fields[name] -= fields[name] % 4_000_000
            return SimpleNamespace(**fields)

        def stat(self, path: Any) -> Any:
            return self._coarse(os.stat(path))

        def fstat(self, fd: int) -> Any:
            return self._coarse(os.fstat(fd))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source, "os", Coarse())
        patch.setattr(scan_module, "os", Coarse())
        check_states(tmp_path_factory.mktemp("states"), 0, steps)
