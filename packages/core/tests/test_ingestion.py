"""Files that come as streams are stored as a save would store them; what the store has is not asked for."""

from __future__ import annotations

import hashlib
import random
import threading
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest

from metaflow_artifacts import ArtifactError, Store
from metaflow_artifacts._format.keys import CheckpointPlace
from metaflow_artifacts._store.checkpoint_writer import CheckpointWriter
from metaflow_artifacts._store.snapshots import SnapshotId, Snapshots
from metaflow_artifacts._store.streams import StreamedFile
from metaflow_artifacts._transfer.chunks import chunk_key

DRAW = random.Random(6)
FILES = {"big": DRAW.randbytes(200_000), "empty": b"", **{f"small/{n}": DRAW.randbytes(900) for n in range(20)}}

STREAMED = {path: 1 for path, content in FILES.items() if content}
"""Once each; nothing is asked for an empty file."""

SMALL = {"config": b"a config", "vocabulary": b"a vocabulary"}


class Broken(ArtifactError):
    """A stream that ended."""


class Source:
    """Gives files from memory. The first streams of the files in `broken` end in the middle."""

    parallel = 4

    def __init__(self, contents: dict[str, bytes], broken: Collection[str] = ()) -> None:
        self.contents = contents
        self.broken = broken
        self.reopens = True
        self.opened: Counter[str] = Counter()
        self.cancelled = threading.Event()

    def files(self) -> list[StreamedFile]:
        return [
            StreamedFile(path, len(content), hashlib.sha256(content).hexdigest() if path == "big" else f"{path}'s id")
            for path, content in sorted(self.contents.items())
        ]

    def open(self, file: StreamedFile) -> Stream:
        self.opened[file.path] += 1
        return Stream(self.contents[file.path], file.path in self.broken)

    def reopen(self, file: StreamedFile, error: ArtifactError) -> Stream:
        if not self.reopens:
            raise error
        self.opened[file.path] += 1
        return Stream(self.contents[file.path], False)

    def cancel(self) -> None:
        self.cancelled.set()


class Stream:
    def __init__(self, content: bytes, breaks: bool) -> None:
        self.verified = False
        self._content = content
        self._breaks = breaks

    def __iter__(self) -> Iterator[bytes]:
        end = len(self._content) // 2 if self._breaks else len(self._content)
        for start in range(0, end, 70_000):
            yield self._content[start : min(end, start + 70_000)]
        if self._breaks:
            raise Broken("half of it")
        self.verified = True


@pytest.fixture
def snapshots(store: Store, place: CheckpointPlace) -> Snapshots:
    writer = CheckpointWriter(store, place, "1" * 8, 0, "F/1/train/1")
    return Snapshots(writer, "mf.streams", "label", pytest.fail)


def identity(entry: str = "1") -> SnapshotId:
    return SnapshotId("name", "group", entry, {"state": entry})


def loaded(store: Store, key: str, target: Path) -> dict[str, bytes]:
    folder = Path(store.load(key, target))
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_streams_are_cut_as_a_save_cuts_files(store: Store, snapshots: Snapshots, tmp_path: Path) -> None:
    source = Source(FILES)
    content, artifact = snapshots.ingest(identity(), source, source.files())
    assert loaded(store, artifact["key"], tmp_path / "loaded") == FILES
    assert content.downloaded == artifact["size"] == sum(map(len, FILES.values()))
    assert source.opened == STREAMED
    saved = store.save_model(tmp_path / "loaded")
    assert store.manifest(saved["key"]).chunks == store.manifest(artifact["key"]).chunks


def test_what_the_store_has_is_not_streamed(store: Store, snapshots: Snapshots, tmp_path: Path) -> None:
    first = Source(FILES)
    snapshots.ingest(identity(), first, first.files())
    second = Source({**FILES, "new": b"new"})
    target = tmp_path / "target"
    target.mkdir()
    content, artifact = snapshots.ingest(identity("2"), second, second.files(), target=str(target))
    assert second.opened == {"new": 1}
    assert content.downloaded == 3
    # Not all of it has passed by, so the target is left to a load.
    assert not content.delivered
    assert list(target.iterdir()) == []
    assert loaded(store, artifact["key"], tmp_path / "loaded") == second.contents


def test_a_stream_that_breaks_is_opened_again(store: Store, snapshots: Snapshots, tmp_path: Path) -> None:
    source = Source(FILES, {"big", "small/7"})
    target = tmp_path / "target"
    target.mkdir()
    content, artifact = snapshots.ingest(identity(), source, source.files(), target=str(target))
    assert source.opened == {**STREAMED, "big": 2, "small/7": 2}
    assert content.delivered
    assert loaded(store, artifact["key"], tmp_path / "loaded") == FILES
    assert {str(path.relative_to(target)): path.read_bytes() for path in target.rglob("*") if path.is_file()} == FILES


def test_a_stream_that_stays_broken_is_the_error(store: Store, snapshots: Snapshots) -> None:
    source = Source(FILES, {"big"})
    source.reopens = False
    with pytest.raises(Broken):
        snapshots.ingest(identity(), source, source.files())
    assert source.cancelled.is_set()
    assert snapshots.listed("name") == []
    assert list(store.storage.leftovers()) == []


def test_a_small_snapshot_of_another_place_is_adopted(
    store: Store, snapshots: Snapshots, place: CheckpointPlace, tmp_path: Path
) -> None:
    saved_small(snapshots, tmp_path)
    other = CheckpointPlace(place.flow, "other", place.scope, place.task)
    there = Snapshots(CheckpointWriter(store, other, "2" * 8, 0, "F/1/other/2"), "mf.streams", "label", pytest.fail)
    manifest = there.elsewhere(identity())
    assert manifest is not None
    assert manifest.inline is not None
    adopted = there.adopt(identity(), manifest)
    assert adopted is not None
    assert loaded(store, adopted["key"], tmp_path / "loaded") == SMALL


def test_a_small_snapshot_is_not_streamed_again(store: Store, snapshots: Snapshots, tmp_path: Path) -> None:
    saved_small(snapshots, tmp_path)
    source = Source({**SMALL, "new": b"new"})
    _, artifact = snapshots.ingest(identity("2"), source, source.files())
    assert source.opened == {"new": 1}
    assert loaded(store, artifact["key"], tmp_path / "loaded") == source.contents


def saved_small(snapshots: Snapshots, tmp_path: Path) -> None:
    """A snapshot that was saved from files, and whose content is in its manifest."""
    for name, content in SMALL.items():
        (tmp_path / name).write_bytes(content)
    ids = {file.path: file.id for file in Source(SMALL).files()}
    snapshots.save(identity(), {name: str(tmp_path / name) for name in SMALL}, ids)


def test_a_snapshot_of_another_place_is_adopted(store: Store, snapshots: Snapshots, place: CheckpointPlace) -> None:
    source = Source(FILES)
    _, artifact = snapshots.ingest(identity(), source, source.files())
    other = CheckpointPlace(place.flow, "other", place.scope, place.task)
    there = Snapshots(CheckpointWriter(store, other, "2" * 8, 0, "F/1/other/2"), "mf.streams", "label", pytest.fail)
    manifest = there.elsewhere(identity())
    assert manifest is not None
    assert (snapshots.is_here(manifest), there.is_here(manifest)) == (True, False)
    adopted = there.adopt(identity(), manifest)
    assert adopted is not None
    assert adopted["key"].startswith(other.prefix())
    assert store.manifest(adopted["key"]).chunks == store.manifest(artifact["key"]).chunks
    store.storage.delete([chunk_key(chunk.sha256) for chunk in manifest.chunks])
    assert there.adopt(identity(), manifest) is None
