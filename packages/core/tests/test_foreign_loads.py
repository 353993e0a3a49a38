"""What metaflow-checkpoint has stored and is damaged, hostile or half removed: loads, copies and deletes of it."""

from __future__ import annotations

import io
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from faultlib import foreign
from faultlib.watched import Watched

from metaflow_artifacts import ArtifactNotFound, CorruptArtifact, InvalidReference, Store, TargetError, open_store
from metaflow_artifacts._format.manifest import FileEntry
from metaflow_artifacts._storage import Storage, open_storage
from metaflow_artifacts._store import copying
from metaflow_artifacts._transfer import foreign as transfer
from metaflow_artifacts._transfer.progress import Progress
from metaflow_artifacts._upkeep.check import check
from metaflow_artifacts.errors import StorageError
from metaflow_artifacts.testing.seaweedfs import SeaweedServer

FILES = {"a.txt": b"a", "sub/b.bin": bytes(range(256)), "sub/c.bin": b""}
CHUNK = 64 << 10


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(open_storage(tmp_path / "store"), chunk_size=CHUNK)


@pytest.fixture
def target(tmp_path: Path) -> Store:
    return Store(open_storage(tmp_path / "target"), chunk_size=CHUNK)


def loaded(path: Path) -> dict[str, bytes]:
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def tar_with(**links: str) -> bytes:
    """A tar of FILES and of links."""
    out = io.BytesIO(foreign.tar_of(FILES))
    with tarfile.open(fileobj=out, mode="a") as tar:
        for name, to in links.items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, to
            tar.addfile(info)
    return out.getvalue()


def changed(store: Store, key: str, old: bytes, new: bytes) -> None:
    """Replace bytes of the JSON about an artifact."""
    at = foreign.json_key(key)
    about = store.storage.get(at)
    assert old in about
    store.storage.put(at, about.replace(old, new))


@pytest.mark.parametrize("form", ["tar", "files"])
def test_any_size_of_files(
    store: Store, target: Store, tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inline, one pack, several chunks, and more than one request reads."""
    monkeypatch.setattr(transfer, "_PIECE_BYTES", 100 << 10)
    monkeypatch.setattr(copying, "_LARGE_BYTES", 200 << 10)
    keys = []
    for number, sizes in enumerate(([], [0], [1, 5], [40 << 10, 30 << 10], [3 * CHUNK + 1, 300 << 10])):
        files = {f"d/{n}": bytes([n]) * size for n, size in enumerate(sizes)}
        key = foreign.save_model(store.storage, files, form)
        keys.append(key)
        store.load(key, tmp_path / form / str(number))
        assert loaded(tmp_path / form / str(number)) == files
        store.copy_to(target, [key])
        target.load(key, tmp_path / form / f"copied {number}")
        assert loaded(tmp_path / form / f"copied {number}") == files
    assert check(target, read=True).ok
    progress = Progress()
    third = Store(open_storage(tmp_path / "third"), chunk_size=CHUNK)
    assert sorted(store.copy_to(third, keys, verify=True, progress=progress).copied) == sorted(keys)
    assert progress.done == progress.total > 400 << 10
    assert [third.manifest(key).chunks for key in keys] == [target.manifest(key).chunks for key in keys]


def test_a_copy_is_cut_like_a_save(store: Store, target: Store, tmp_path: Path) -> None:
    files = {**{f"small{n}": b"%d" % n * 900 for n in range(40)}, "large": bytes(range(256)) * 1024}
    key = foreign.save_model(store.storage, files, "files")
    store.copy_to(target, [key])
    store.load(key, tmp_path / "out")
    saved, copied = target.save_model(tmp_path / "out"), target.manifest(key)
    assert copied.chunks == target.manifest(saved).chunks
    assert [(one.path, one.offset, one.sha256) for one in copied.files] == [
        (one.path, one.offset, one.sha256) for one in target.manifest(saved).files
    ]


@pytest.mark.parametrize(
    "bad",
    [
        foreign.tar_of({"../../outside": b"x"}),
        foreign.tar_of({"/etc/passwd": b"x"}),
        foreign.tar_of({**FILES, "sub": b"x"}),
        foreign.tar_of(FILES)[:1500],
        tar_with(twice="a.txt", **{"a.txt": "sub/b.bin"}),
    ],
    ids=["up", "absolute", "conflict", "truncated", "twice"],
)
def test_a_hostile_tar_changes_nothing(store: Store, target: Store, tmp_path: Path, bad: bytes) -> None:
    key = foreign.save_model(store.storage, bad)
    before = {*tmp_path.rglob("*")}
    for only in (None, "a.txt"):
        with pytest.raises(CorruptArtifact, match=f"{key}: this tar cannot be loaded: "):
            store.load(key, tmp_path / "out", only=only)
    with pytest.raises(CorruptArtifact, match=key):
        store.copy_to(target, [key])
    assert {path for path in tmp_path.rglob("*") if target.root not in str(path)} == before
    assert [*target.storage.list("mf.models")] == []
    assert [problem.key for problem in check(store, read=True).problems] == [key]


@pytest.mark.parametrize("to", ["/etc/passwd", "../../outside", "nothing"])
def test_a_link_that_leads_out(store: Store, target: Store, tmp_path: Path, to: str) -> None:
    key, good = foreign.save_model(store.storage, tar_with(out=to)), foreign.save_model(store.storage, FILES)
    with pytest.raises(CorruptArtifact, match=rf"{key}.*'out': it is a link to '{to}', which is not.*only="):
        store.load(key, tmp_path / "out")
    with pytest.raises(CorruptArtifact, match="'out'"):
        store.load(key, tmp_path / "out", only=["a.txt", "o*"])
    store.load(key, tmp_path / "part", only=["a.txt", "sub/*"])
    assert loaded(tmp_path / "part") == FILES
    with pytest.raises(CorruptArtifact, match="'out'"):
        store.copy_to(target, [key, good])
    assert [*target.list()] == [good]
    problems = check(store, read=True).problems
    assert [(problem.key, problem.kind) for problem in problems] == [(key, "content")]


@pytest.mark.parametrize("form", ["tar", "files"])
def test_content_of_another_size(store: Store, target: Store, tmp_path: Path, form: str) -> None:
    key = foreign.save_model(store.storage, FILES, form)
    if form == "tar":
        store.storage.put(key, foreign.tar_of({"a.txt": b"a", "sub/b.bin": bytes(10000)}))
    else:
        store.storage.delete([f"{key}/a.txt"])
    with pytest.raises(CorruptArtifact, match=rf"{key}.*(bytes|saved).*only="):
        store.load(key, tmp_path / "out")
    with pytest.raises(CorruptArtifact, match=key):
        store.copy_to(target, [key])
    store.load(key, tmp_path / "part", only="sub/b.bin")
    assert [*loaded(tmp_path / "part")] == ["sub/b.bin"]
    assert [problem.key for problem in check(store).problems] == [key]
    assert [problem.key for problem in check(store, [key]).problems] == [key]


def test_a_tar_with_a_lost_header(store: Store, target: Store, tmp_path: Path) -> None:
    whole = foreign.tar_of(FILES)
    key = foreign.save_model(store.storage, whole[:1536] + bytes(512) + whole[2048:])
    with pytest.raises(CorruptArtifact, match=rf"{key}.*its end mark is at byte 1536.*only="):
        store.load(key, tmp_path / "out")
    with pytest.raises(CorruptArtifact, match=key):
        store.copy_to(target, [key])
    store.load(key, tmp_path / "part", only="a.txt")
    assert loaded(tmp_path / "part") == {"a.txt": b"a"}
    assert [problem.key for problem in check(store, read=True).problems] == [key]


@pytest.mark.parametrize(
    "name", ["modèle.bin", "back\\slash", "new\nline", "not UTF-8 \udcff", "/".join(["n" * 200] * 4)]
)
def test_objects_that_no_key_names(store: Store, target: Store, tmp_path: Path, name: str) -> None:
    files = {**FILES, f"sub/{name}": b"content", name: b""}
    key = foreign.save_model(store.storage, FILES, "files")
    for path in files.keys() - FILES.keys():
        at = Path(store.root, key, path)
        at.parent.mkdir(parents=True, exist_ok=True)
        at.write_bytes(files[path])
    changed(store, key, b'"size": 257', b'"size": 264')
    store.load(key, tmp_path / "out")
    assert loaded(tmp_path / "out") == files
    store.copy_to(target, [key])
    target.load(key, tmp_path / "copied")
    assert loaded(tmp_path / "copied") == files
    assert store.read_file(key, f"sub/{name}", 2, 3) == b"nte"
    assert check(store, read=True).ok
    store.delete(key)
    assert [path for path in Path(store.root).rglob("*") if path.is_file()] == []


def test_objects_on_s3_that_no_key_names(s3_server: SeaweedServer, tmp_path: Path) -> None:
    root = f"{s3_server.root}/{uuid4().hex}"
    store = open_store(root, client=s3_server.client)
    key = foreign.save_model(store.storage, FILES, "files")
    names = ("sub/modèle é.bin", "a?b#c%41+d", "new\nline")
    bucket, prefix = root.removeprefix("s3://").split("/", 1)
    for name in names:
        s3_server.client().put_object(Bucket=bucket, Key=f"{prefix}/{key}/{name}", Body=name.encode())
    total = 257 + sum(len(name.encode()) for name in names)
    changed(store, key, b'"size": 257', b'"size": %d' % total)
    store.load(key, tmp_path / "out")
    assert loaded(tmp_path / "out") == {**FILES, **{name: name.encode() for name in names}}
    store.delete(key)
    assert [*store.storage.list_any("mf.models")] == []


@pytest.mark.parametrize("form", ["tar", "files"])
def test_what_is_replaced_while_it_is_read(
    store: Store, target: Store, tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """metaflow-checkpoint writes over what is there: a load could get one file of each state."""
    key = foreign.save_model(store.storage, {"a": b"first", "b": b"first"}, form)
    blocks = transfer._blocks

    def replacing(storage: Storage, file: FileEntry, *rest: Any) -> Iterator[memoryview]:
        yield from blocks(storage, file, *rest)
        after = {"a": b"other", "b": b"other"}
        for name, data in {key: foreign.tar_of(after)}.items() if form == "tar" else after.items():
            storage.put(name if form == "tar" else f"{key}/{name}", data)

    monkeypatch.setattr(transfer, "_blocks", replacing)
    with pytest.raises(CorruptArtifact, match=rf"{key}.*replaced or removed while it was read; load it again"):
        store.load(key, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(CorruptArtifact, match="while it was read"):
        store.copy_to(target, [key])
    assert [*target.list()] == []
    monkeypatch.undo()
    store.load(key, tmp_path / "out")
    assert loaded(tmp_path / "out") == {"a": b"other", "b": b"other"}


@pytest.mark.parametrize("form", ["tar", "files"])
def test_a_label_that_begins_with_the_name_of_another_model(store: Store, tmp_path: Path, form: str) -> None:
    outer = foreign.save_model(store.storage, FILES, "files")
    inner = foreign.save_model(store.storage, {"b": b"inner"}, form, f"{outer.rpartition('/')[2]}/tuned")
    assert inner.startswith(outer + "/")
    store.load(outer, tmp_path / "outer")
    assert loaded(tmp_path / "outer") == FILES
    assert check(store, read=True).ok
    store.delete(outer)
    store.load(inner, tmp_path / "inner")
    assert loaded(tmp_path / "inner") == {"b": b"inner"}
    assert [*store.list()] == [inner]


def test_a_tar_that_is_gone(store: Store, tmp_path: Path) -> None:
    key = foreign.save_model(store.storage, FILES)
    store.storage.delete([key])
    with pytest.raises(CorruptArtifact, match=f"{key}: the tar is missing"):
        store.load(key, tmp_path / "out")
    store.delete(key)
    assert [*store.storage.list("mf.models")] == []
    with pytest.raises(ArtifactNotFound, match="nothing was deleted"):
        store.delete(key)


@pytest.mark.parametrize("form", ["tar", "files"])
def test_what_is_deleted_while_it_is_read(store: Store, form: str) -> None:
    key = foreign.save_model(store.storage, FILES, form)
    manifest = store.manifest(key)
    store.delete(key)
    with pytest.raises(ArtifactNotFound, match=f"cannot load {key}: it was deleted while it was loaded"):
        store.read_file(manifest, "a.txt")


@pytest.mark.parametrize("form", ["tar", "files"])
def test_what_is_deleted_while_it_is_copied(store: Store, target: Store, form: str) -> None:
    key = foreign.save_model(store.storage, {"big": bytes(range(256)) * 1000}, form)
    child = store.save_model({"a": b"a"}, parents=[key])["key"]
    content = key if form == "tar" else f"{key}/big"
    done: list[str] = []

    def before(operation: str, at: str) -> None:
        if operation == "open" and at == content and not done:
            done.append(at)
            store.delete(key)

    source = Store(Watched(store.storage, before))
    result = source.copy_to(target, [child], lineage=True)
    assert done == [content]
    assert (result.copied, result.missing_parents) == ((child,), (key,))

    key = content = foreign.save_model(store.storage, {"big": bytes(range(256)) * 1000})
    done.clear()
    with pytest.raises(ArtifactNotFound, match=f"cannot copy {key} .* it was deleted from .* while it was copied"):
        source.copy_to(target, [key])


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (b"{", b"", "cannot be read"),
        (b'"attempt": 0', b'"attempt": -1', "attempt: expected a number from 0"),
        (b'"storage_format": "tar"', b'"storage_format": "zip"', "expected 'tar' or 'files', found 'zip'"),
        (b'"key": "mf.models', b'"key": "mf.other', "key: expected"),
        (b'"metadata": {}', b'"metadata": ' + b"[" * 5000 + b"]" * 5000, "."),
    ],
)
def test_json_that_is_damaged(store: Store, tmp_path: Path, old: bytes, new: bytes, says: str) -> None:
    key = foreign.save_model(store.storage, FILES)
    changed(store, key, old, new)
    with pytest.raises(CorruptArtifact, match=f"{foreign.json_key(key)}.*{says}"):
        store.load(key, tmp_path / "out")
    assert [(problem.key, problem.kind) for problem in check(store).problems] == [(key, "manifest")]


@pytest.mark.parametrize("flow", ["Modèle", "\\ud800", "\\u0000", "f" * 900, "a b"])
def test_a_flow_whose_name_is_in_no_key(store: Store, target: Store, flow: str, tmp_path: Path) -> None:
    """The JSON that lies at its task is removed if it can be there, and the other one in any case."""
    key = foreign.save_model(store.storage, FILES)
    changed(store, key, b'"Flow/', f'"{flow}/'.encode())
    tasks = Path(store.root, "mf.models/models/metadata")
    if flow in ("Modèle", "a b"):
        (tasks / "Flow").rename(tasks / flow)
    else:
        shutil.rmtree(tasks)
    store.copy_to(target, [key])
    changed(store, key, b'"type": "model"', b'"type": "checkpoint"')
    store.copy_to(Store(open_storage(tmp_path / "third")), [key])
    store.delete(key)
    assert [path for path in Path(store.root).rglob("*") if path.is_file()] == []


def test_no_room_in_the_target(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = foreign.save_model(store.storage, FILES)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100))
    with pytest.raises(TargetError, match=r"257 B are needed, 100 B are free"):
        store.load(key, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    store.load(key, tmp_path / "out", only="a.txt")


def test_an_artifact_of_another_run_at_the_same_key(store: Store, target: Store, tmp_path: Path) -> None:
    key = foreign.save_checkpoint(store.storage, FILES)
    reference = store.info(key)
    other = foreign.save_checkpoint(target.storage, FILES)
    assert key == other
    changed(target, key, b"2026-11-25", b"2026-11-26")
    with pytest.raises(ArtifactNotFound, match="another artifact is stored at its key"):
        target.load(reference, tmp_path / "out")
    with pytest.raises(ArtifactNotFound, match="another artifact is stored at its key"):
        target.delete(reference)
    third = Store(open_storage(tmp_path / "third"), chunk_size=CHUNK)
    target.copy_to(third, [key])
    with pytest.raises(StorageError, match=r"another artifact has this key"):
        store.copy_to(third, [key])


def test_ours_and_theirs_beside_it(store: Store, target: Store, tmp_path: Path) -> None:
    """JSON of metaflow-checkpoint beside a manifest of ours means nothing."""
    key = foreign.save_model(store.storage, FILES)
    store.copy_to(target, [key])
    target.storage.put(foreign.json_key(key), store.storage.get(foreign.json_key(key)))
    target.load(key, tmp_path / "out")
    assert loaded(tmp_path / "out") == FILES
    assert check(target).ok
    target.delete(key)
    assert target.storage.stat(key) is None


@pytest.mark.parametrize(
    "key",
    [
        "mf.models/models/artifacts/../x_" + "0" * 32,
        "mf.models/models/artifacts/a//b_" + "0" * 32,
        "mf.models/models/artifacts/no digits",
        "mf.checkpoints/checkpoints/artifacts/F/s/registry:flow/x/00000000.0.n.0",
        "mf.huggingface_hub/checkpoints/artifacts/F/s/x/00000000.0.n.0",
        "mf.models/models/artifacts/a\nb_" + "0" * 32,
    ],
)
def test_keys_that_nobody_writes(store: Store, key: str) -> None:
    with pytest.raises(InvalidReference):
        store.info(key)
