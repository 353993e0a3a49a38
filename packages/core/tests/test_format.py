"""docs/format.md and the code say the same, and every frozen store is read as it was written."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from faultlib.newest import find_latest

from metaflow_artifacts import Store
from metaflow_artifacts._format.keys import HUB, CheckpointPlace, parse_key
from metaflow_artifacts._format.manifest import VERSION, decode, encode
from metaflow_artifacts._format.plan import plan
from metaflow_artifacts._storage import open_storage
from metaflow_artifacts._store.checkpoints import list_checkpoints
from metaflow_artifacts._upkeep.check import check

FIXTURES = Path(__file__).parent / "fixtures"
FORMAT = Path(__file__).parents[3] / "docs" / "format.md"
VERSIONS = [f"v{number}" for number in range(1, VERSION + 1)]


# --- An independent reader, written from docs/format.md: nothing of the package, `json` and `hashlib` alone.


def read_artifact(root: Path, key: str) -> tuple[dict[str, Any], dict[bytes, tuple[bytes, bool]], set[bytes]]:
    """The reference, the files with their content and whether they are executable, and the empty directories."""
    data = (root / key).read_bytes()
    body, tail = data[:-78], data[-78:]
    assert tail == b',"sha256":"' + hashlib.sha256(body).hexdigest().encode() + b'"}\n'
    wire = json.loads(data.decode("ascii"))
    front = re.match(
        rb'\{"format":"metaflow-artifacts","version":1,"head_bytes":(\d+),"head_sha256":"(\w{64})",'
        rb'"chunks_bytes":(\d+),"chunks_sha256":"(\w{64})","head":',
        data,
    )
    assert front is not None
    end_of_head = front.end() + int(front[1])
    head, rows = data[front.end() : end_of_head], data[end_of_head + 10 : end_of_head + 10 + int(front[3])]
    assert data[end_of_head : end_of_head + 10] == b',"chunks":'
    assert hashlib.sha256(head).hexdigest() == front[2].decode()
    assert hashlib.sha256(rows).hexdigest() == front[4].decode()
    assert (json.loads(head), json.loads(rows)) == (wire["head"], wire["chunks"])
    artifact = wire["head"]["artifact"]
    assert artifact["key"] == key
    stream = base64.b64decode(wire.get("inline", ""), validate=True)
    for digest, size in wire["chunks"]:
        piece = (root / f"mf.artifacts/chunks/sha256/{digest[:2]}/{digest[2:]}").read_bytes()
        assert hashlib.sha256(piece).hexdigest() == digest
        assert len(piece) == size > 0
        stream += piece
    assert not (wire["chunks"] and "inline" in wire)
    assert len(stream) == artifact["size"] == sum(row[1] for row in wire["files"])
    files = {}
    position = 0
    for path, size, mode, offset, *digests in wire["files"]:
        assert offset == position
        position += size
        content = stream[offset : offset + size]
        assert digests in ([], [hashlib.sha256(content).hexdigest()])
        files[path.encode("utf-8", "surrogateescape")] = content, bool(mode & 0o100)
    assert list(files) == sorted(files)
    return artifact, files, {path.encode("utf-8", "surrogateescape") for path in wire["dirs"]}


# --- End of the independent reader.


@pytest.fixture(params=VERSIONS)
def frozen(request: pytest.FixtureRequest) -> Path:
    return FIXTURES / str(request.param)


def expected(frozen: Path) -> dict[str, tuple[dict[bytes, tuple[bytes, bool]], set[bytes]]]:
    found = {}
    for key, artifact in json.loads((frozen / "expected.json").read_text()).items():
        files = {
            bytes.fromhex(name): (base64.b64decode(data), mode) for name, (data, mode) in artifact["files"].items()
        }
        found[key] = files, {bytes.fromhex(name) for name in artifact["dirs"]}
    return found


def on_disk(root: Path) -> tuple[dict[bytes, tuple[bytes, bool]], set[bytes]]:
    files, dirs = {}, set()
    base = os.fsencode(root)
    for directory, names, found in os.walk(base):
        if not names and not found and directory != base:
            dirs.add(os.path.relpath(directory, base))
        for name in found:
            path = os.path.join(directory, name)
            with open(path, "rb") as file:
                files[os.path.relpath(path, base)] = file.read(), os.access(path, os.X_OK)
    return files, dirs


def test_the_independent_reader_reads_every_frozen_artifact(frozen: Path) -> None:
    artifacts = expected(frozen)
    assert len(artifacts) >= 7
    for key, (files, dirs) in artifacts.items():
        assert read_artifact(frozen / "store", key)[1:] == (files, dirs)


def test_this_version_loads_every_frozen_artifact(frozen: Path, tmp_path: Path) -> None:
    store = Store(open_storage(frozen / "store"))
    for number, (key, content) in enumerate(expected(frozen).items()):
        target = tmp_path / str(number)
        store.load(key, target)
        assert on_disk(target) == content
        artifact = read_artifact(frozen / "store", key)[0]
        assert store.info(key) == {**artifact, "url": f"{store.root}/{key}"}
        for name, (data, _) in content[0].items():
            assert store.read_file(key, os.fsdecode(name)) == data


def test_this_version_lists_and_searches_a_frozen_store(frozen: Path) -> None:
    store = Store(open_storage(frozen / "store"))
    report = check(store, read=True)
    assert report.problems == ()
    assert report.artifacts == len(expected(frozen))
    place = CheckpointPlace("TrainFlow", "train", "0123456789ab", "ba9876543210")
    latest = find_latest(store, place)
    assert latest is not None
    assert (latest["name"], latest["version_id"]) == ("mfchckpt", 0)
    assert [one["version_id"] for one in list_checkpoints(store, place.prefix())] == [1, 0]
    marked = next(one for one in list_checkpoints(store, place.prefix()) if one["version_id"] == 1)
    tombstone = parse_key(marked["key"]).tombstone  # type: ignore[union-attr]
    assert (frozen / "store" / tombstone).stat().st_size == 0
    assert store.manifest(marked).latest is False
    hub = find_latest(store, CheckpointPlace("TrainFlow", "train", "0123456789ab", "ba9876543210", HUB))
    assert hub is not None
    assert hub["name"] == "3fa4c1e2b0"


def test_the_planner_cuts_as_when_the_store_was_frozen(frozen: Path) -> None:
    """Other cuts would be read just as well, but all that is stored would be stored anew."""
    store = Store(open_storage(frozen / "store"))
    seen = 0
    for key in expected(frozen):
        manifest = store.manifest(key)
        if manifest.chunk_size == 512 and manifest.inline is None:
            sizes = plan([(file.path, file.size) for file in manifest.files], 512)
            assert sizes == [chunk.size for chunk in manifest.chunks]
            seen += 1
    assert seen >= 4


def test_chunks_are_named_by_what_sha256sum_prints(frozen: Path) -> None:
    below = frozen / "store" / "mf.artifacts" / "chunks" / "sha256"
    paths = [path for path in below.rglob("*") if path.is_file()]
    assert len(paths) > 15
    for path in paths:
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.parent.name + path.name


def example() -> bytes:
    """The worked example of the page, as the object that it describes."""
    block = re.search(r"<!-- example:.*?-->\n```\n(.*?)```", FORMAT.read_text(), re.DOTALL)
    assert block is not None
    return block[1].replace("\n", "").encode() + b"\n"


def test_the_worked_example_is_a_manifest(tmp_path: Path) -> None:
    data = example()
    key = "mf.models/models/artifacts/demo_00000000000000000000000000000001"
    manifest = decode(data, key)
    assert encode(manifest) == data
    store = Store(open_storage(tmp_path / "store"))
    store.storage.put(key, data)
    store.load(key, tmp_path / "out")
    assert on_disk(tmp_path / "out") == read_artifact(tmp_path / "store", key)[1:]
    assert on_disk(tmp_path / "out") == (
        {b"hello.txt": (b"hi\n", False), b"run.sh": (b"#!/bin/sh\n", True)},
        {b"logs"},
    )


def test_the_byte_table_of_the_worked_example_is_right() -> None:
    data = example()
    rows = re.findall(r"^\| (\d+)\N{EN DASH}(\d+) \| `([^`]+)`", FORMAT.read_text(), re.MULTILINE)
    assert len(rows) == 10
    end = 0
    for first, last, start in rows:
        assert int(first) == end
        end = int(last) + 1
        assert data[int(first) : end].startswith(start.encode())
    assert end == len(data)
    assert f"one line of {len(data)} bytes" in FORMAT.read_text()
    parts = re.findall(r"bytes (\d+) to (\d+)", FORMAT.read_text())
    head, chunks, body = (data[int(first) : int(last) + 1] for first, last in parts)
    assert json.loads(head)["latest"] is True
    assert hashlib.sha256(head).hexdigest().encode() in data[42:140]
    assert json.loads(chunks) == []
    assert hashlib.sha256(chunks).hexdigest().encode() in data[140:240]
    assert hashlib.sha256(body).hexdigest().encode() in data[-78:]
