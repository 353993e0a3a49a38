"""What a power failure leaves in a store on disk: objects that are empty, truncated, filled with zeros or missing."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from faultlib.outcomes import RIGHT, Outcomes, content, failing, loading
from faultlib.watched import Watched

from metaflow_artifacts import Store
from metaflow_artifacts._storage import local as local_module
from metaflow_artifacts._storage import open_storage
from metaflow_artifacts._upkeep.check import check

CHUNK = 64 << 10
SECTION = "power failures"
MINUTES_SINCE_START = 10


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    root.mkdir()
    (root / "weights.bin").write_bytes(os.urandom(4 * CHUNK))
    (root / "small.txt").write_text("small")
    return root


def power_failure(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine starts again: all that is in the store was written before."""
    for path in Path(store.root).rglob("*"):
        os.utime(path, (time.time() - 3600, time.time() - 3600))
    monkeypatch.setattr(local_module, "uptime", lambda: MINUTES_SINCE_START * 60.0)


def chunk_file(store: Store, key: str) -> Path:
    sha256 = store.manifest(key).chunks[-1].sha256
    return Path(store.root, "mf.artifacts/chunks/sha256", sha256[:2], sha256[2:])


DAMAGES: dict[str, Callable[[Path], object]] = {
    "full of zeros, under its right size": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "half full of zeros, under its right size": lambda path: path.write_bytes(
        path.read_bytes()[: path.stat().st_size // 2].ljust(path.stat().st_size, b"\0")
    ),
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "empty": lambda path: os.truncate(path, 0),
    "missing": lambda path: path.unlink(),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_a_chunk_that_a_power_failure_damaged_is_written_again(
    local: Store, tree: Path, tmp_path: Path, outcomes: Outcomes, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    key = local.save_model(tree)["key"]
    DAMAGES[case](chunk_file(local, key))
    power_failure(local, monkeypatch)
    outcome = loading(local, key, tmp_path / "out", content(tree))
    assert outcome.startswith("`CorruptArtifact`")
    outcomes.record(SECTION, f"a chunk is {case}: load", outcome)
    assert [problem.key for problem in check(local, read=True).problems] == [key]
    again = local.save_model(tree)["key"]
    for number, one in enumerate((again, key)):
        assert loading(local, one, tmp_path / str(number), content(tree)) == RIGHT
    outcome = "the chunk is written again; the new artifact loads the right bytes, and so do others with this chunk"
    outcomes.record(SECTION, f"a chunk is {case}: save of the same content", outcome)


@pytest.mark.parametrize("case", DAMAGES)
def test_a_synced_store_does_not_trust_older_chunks(
    local: Store, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    """Whoever wrote the chunk may not have used `sync`."""
    key = local.save_model(tree)["key"]
    DAMAGES[case](chunk_file(local, key))
    power_failure(local, monkeypatch)
    again = Store(open_storage(local.root, sync=True), chunk_size=CHUNK).save_model(tree)["key"]
    for number, one in enumerate((again, key)):
        assert loading(local, one, tmp_path / str(number), content(tree)) == RIGHT


@pytest.mark.parametrize("small", [False, True], ids=["chunks", "inline"])
@pytest.mark.parametrize("case", DAMAGES)
def test_a_manifest_that_a_power_failure_damaged_is_refused(
    local: Store,
    tree: Path,
    tmp_path: Path,
    outcomes: Outcomes,
    monkeypatch: pytest.MonkeyPatch,
    case: str,
    small: bool,
) -> None:
    source = tree / "small.txt" if small else tree
    key = local.save_model(source)["key"]
    DAMAGES[case](Path(local.root, key))
    power_failure(local, monkeypatch)
    outcome = failing(lambda: local.load(key, tmp_path / "out"), local, key)
    assert not (tmp_path / "out").exists()
    outcome = re.sub(r"(the manifest is damaged|not a manifest of these packages) \(.*\)", r"\1 (…)", outcome)
    outcomes.record(SECTION, f"a manifest is {case}: load", outcome)
    again = local.save_model(source)["key"]
    expected = {b"small.txt": source.read_bytes()} if small else content(tree)
    assert loading(local, again, tmp_path / "again", expected) == RIGHT
    outcomes.record(SECTION, f"a manifest is {case}: save of the same content", RIGHT)


def test_chunks_older_than_the_machines_start_are_verified_once(
    local: Store, tree: Path, tmp_path: Path, outcomes: Outcomes, monkeypatch: pytest.MonkeyPatch
) -> None:
    operations: list[str] = []
    store = Store(Watched(local.storage, lambda operation, key: operations.append(operation)), chunk_size=CHUNK)
    chunks = len(set(store.manifest(store.save_model(tree)).chunks))
    power_failure(local, monkeypatch)
    for expected in (chunks, 0):
        operations.clear()
        key = store.save_model(tree)["key"]
        assert [operations.count(name) for name in ("open", "touch", "commit")] == [expected, expected, 0]
    assert loading(store, key, tmp_path / "out", content(tree)) == RIGHT
    case = "chunks are whole, and older than the last start of the machine: save of the same content"
    outcomes.record(SECTION, case, "each is read and verified once; nothing is written again")
