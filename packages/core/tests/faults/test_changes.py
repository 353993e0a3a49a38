"""Files that another process changes while they are saved: which of their states is saved.

`test_one_state.py` has more of these, and random changes by another thread.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from faultlib.outcomes import Outcomes, told
from faultlib.reading import after_reads, before_opening

from metaflow_artifacts import ArtifactError, ArtifactWarning, Store
from metaflow_artifacts._upkeep.check import check

CHUNK = 64 << 10
SECTION = "files that change while they are saved"
SIZES = {"inline": 1000, "packed": 1000, "large": 6 * CHUNK}
"""Bytes of the file that is changed. A packed one lies beside a large one, so that nothing is inline."""


@pytest.fixture(params=["local", "direct"])
def store(request: pytest.FixtureRequest) -> Store:
    return request.getfixturevalue(request.param)  # type: ignore[no-any-return]


@pytest.fixture(params=SIZES)
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    directory = tmp_path / "source"
    directory.mkdir()
    if request.param == "packed":
        (directory / "other.bin").write_bytes(os.urandom(2 * CHUNK))
        (directory / "beside.txt").write_bytes(b"beside")
    path = directory / "state.bin"
    path.write_bytes(b"A" * SIZES[request.param])
    os.utime(path, (1_700_000_000.5, 1_700_000_000.5))
    return path


def whenever_it_is_read(
    monkeypatch: pytest.MonkeyPatch, path: Path, times: int, call: Callable[[Path], object]
) -> list[int]:
    """Arrange for a call after the first half block of the file was read, so many times; a list of the calls."""
    calls: list[int] = []
    lock = threading.Lock()

    def read(offset: int) -> None:
        with lock:
            now = offset == 0 and len(calls) < times
            if now:
                calls.append(offset)
        if now:
            call(path)

    after_reads(monkeypatch, path, read, CHUNK // 2)
    return calls


def replace(path: Path) -> None:
    temporary = path.parent.parent / "temporary"
    temporary.write_bytes(b"B" * (path.stat().st_size + 100))
    os.replace(temporary, path)


def write(path: Path, content: bytes, mode: str = "r+b") -> None:
    with open(path, mode) as file:
        file.write(content)


BEFORE, AFTER = "saved as it was before", "read again, and saved as it is after"
ONE_OF_BOTH = "saved as it was before, or as it is after"

ONCE: dict[str, tuple[Callable[[Path], object], str]] = {
    "replaced by another file, by a rename": (replace, ONE_OF_BOTH),
    "rewritten in place": (lambda path: write(path, b"B" * path.stat().st_size), AFTER),
    "truncated": (lambda path: os.truncate(path, 10), AFTER),
    "appended to, once": (lambda path: write(path, b"more", "ab"), AFTER),
    "given a second name, by a hard link": (lambda path: os.link(path, path.parent.parent / "link"), BEFORE),
    "removed": (lambda path: path.unlink(), BEFORE),
}


@pytest.mark.parametrize("case", ONCE)
def test_a_file_that_changes_once_is_saved_in_one_state(
    store: Store, path: Path, tmp_path: Path, outcomes: Outcomes, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    change, outcome = ONCE[case]
    before = path.read_bytes()
    assert whenever_it_is_read(monkeypatch, path, 1, change) == []
    saved = store.save_model(path.parent)
    after = path.read_bytes() if path.exists() else None
    store.load(saved, tmp_path / "out")
    states: dict[str, set[bytes | None]] = {BEFORE: {before}, AFTER: {after}, ONE_OF_BOTH: {before, after}}
    assert (tmp_path / "out" / path.name).read_bytes() in states[outcome]
    assert check(store, read=True).ok
    outcomes.record(SECTION, case, outcome)


def test_a_file_that_grows_all_the_time_is_saved_as_its_beginning(
    store: Store, path: Path, tmp_path: Path, outcomes: Outcomes, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = path.read_bytes()
    calls = whenever_it_is_read(monkeypatch, path, 100, lambda path: write(path, b"more", "ab"))
    saved = store.save_model(path.parent)
    store.load(saved, tmp_path / "out")
    found = (tmp_path / "out" / path.name).read_bytes()
    assert found == (before + b"more" * len(calls))[: len(found)]
    assert len(found) >= len(before)
    outcomes.record(SECTION, "appended to, again and again", "saved as far as it went at one moment of the save")


def test_a_file_that_changes_all_the_time_is_an_error(
    store: Store, path: Path, outcomes: Outcomes, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    calls = whenever_it_is_read(
        monkeypatch, path, 1000, lambda path: write(path, bytes([len(calls)]) * path.stat().st_size)
    )
    with pytest.raises(ArtifactError) as caught:
        store.save_model(path.parent)
    assert list(store.list()) == []
    outcomes.record(SECTION, "rewritten in place, again and again", told(caught.value, store, str(path)))


def test_a_file_that_is_removed_before_it_is_read_is_an_error(
    store: Store, path: Path, outcomes: Outcomes, monkeypatch: pytest.MonkeyPatch
) -> None:
    before_opening(monkeypatch, path, lambda: path.unlink(missing_ok=True))
    with pytest.raises(ArtifactError) as caught:
        store.save_model(path)
    assert list(store.list()) == []
    outcomes.record(SECTION, "removed before it is read", told(caught.value, store, str(path)))


@pytest.mark.parametrize(
    ("case", "make"),
    [
        ("a pipe", lambda place: os.mkfifo(place)),
        ("a link that leads nowhere", lambda place: place.symlink_to("gone")),
    ],
)
def test_pipes_and_dangling_links_are_left_out(
    local: Store, tmp_path: Path, outcomes: Outcomes, case: str, make: Callable[[Path], object]
) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "weights").write_bytes(b"w")
    make(tmp_path / "source" / "other")
    with pytest.warns(ArtifactWarning, match="other' is a"):
        saved = local.save_model(tmp_path / "source")
    assert [file.path for file in local.manifest(saved).files] == ["weights"]
    outcomes.record(SECTION, case, "left out, with an `ArtifactWarning` that names it; the rest is saved")
