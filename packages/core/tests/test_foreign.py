"""Stores that metaflow-checkpoint has written to as well: its objects are skipped, ours are not mistaken for them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from faultlib import foreign
from faultlib.watched import Watched

from metaflow_artifacts import CorruptArtifact, ModelArtifact, StorageError, Store
from metaflow_artifacts._layout import ARTIFACT_PREFIXES
from metaflow_artifacts._storage import LocalStorage, open_storage
from metaflow_artifacts._upkeep.check import check
from metaflow_artifacts._upkeep.foreign import ForeignArtifacts
from metaflow_artifacts._upkeep.gc import execute_gc, gc, plan_gc
from metaflow_artifacts._upkeep.retain import Rules, execute_retention, plan_retention
from metaflow_artifacts._upkeep.survey import artifact_objects

CHUNK = 64 << 10
FILES = {"a.txt": b"a", "sub/b.bin": bytes(range(256)), "__init__.py": b""}
HUB = "mf:internal/huggingface-hub/registry:global/fully-global"


@pytest.fixture
def local(tmp_path: Path) -> Store:
    return Store(open_storage(tmp_path / "store"), chunk_size=CHUNK)


def save(store: Store, path: Path, chunks: int = 3) -> ModelArtifact:
    path.write_bytes(os.urandom(chunks * CHUNK))
    return store.save_model(path)


def theirs(store: Store) -> list[str]:
    """One of each kind that metaflow-checkpoint stores."""
    storage = store.storage
    return [
        foreign.save_model(storage, FILES),
        foreign.save_model(storage, FILES, label="with space"),
        foreign.save_model(storage, FILES, label="a/b"),
        foreign.save_model(storage, FILES, "files"),
        foreign.save_model(storage, {}, label="empty"),
        foreign.save_checkpoint(storage, FILES),
        foreign.save_checkpoint(storage, FILES, "tar", n=1),
        foreign.save_checkpoint(storage, FILES, "tar", n=2, name="x/y"),
        foreign.save_checkpoint(storage, FILES, "tar", root="mf.huggingface_hub"),
        foreign.save_checkpoint(storage, FILES, place=HUB, root="mf.huggingface_hub"),
    ]


def objects(store: Store, keys: list[str]) -> dict[str, int]:
    return {info.key: info.size for info in store.storage.list("mf.") if info.key.startswith(tuple(keys))}


def collect(store: Store, ignore: tuple[str, ...] = ()) -> int:
    return gc(store, grace=0, exclusive=True, dry_run=False, ignore=ignore).removed


def test_gc_and_check_skip_what_metaflow_checkpoint_has_stored(store: Store, tmp_path: Path) -> None:
    keys = [key for key in theirs(store) if "empty" not in key]
    before = objects(store, keys)
    kept = save(store, tmp_path / "kept")
    store.delete(save(store, tmp_path / "deleted"))
    report = check(store, read=True)
    assert (report.problems, report.notes) == ((), ())
    assert (report.artifacts, report.foreign) == (1, 10)
    assert collect(store) == 3
    store.load(kept, tmp_path / "out")
    assert objects(store, keys) == before


def test_retain_skips_what_metaflow_checkpoint_has_stored(store: Store) -> None:
    keys = [foreign.save_checkpoint(store.storage, FILES, form, n) for n, form in enumerate(["files", "tar"])]
    before = objects(store, keys)
    plan = plan_retention(store, Rules(last=0))
    assert plan.groups == []
    execute_retention(store, plan)
    assert objects(store, keys) == before


@pytest.mark.parametrize("form", ["tar", "files"])
def test_content_without_its_json_is_not_understood(store: Store, tmp_path: Path, form: str) -> None:
    """What a save of metaflow-checkpoint leaves that was killed, or one that is under way."""
    key = foreign.save_model(store.storage, FILES, form)
    store.delete(save(store, tmp_path / "deleted"))
    store.storage.delete([foreign.json_key(key)])
    with pytest.raises((CorruptArtifact, StorageError), match=f"nothing was removed: .*{key}"):
        collect(store)
    assert check(store).ok is (form == "files")
    assert collect(store, (key,)) == 3


def test_a_damaged_manifest_is_not_mistaken_for_a_foreign_object(store: Store, tmp_path: Path) -> None:
    """Nor ignored, whatever prefix is given."""
    saved = save(store, tmp_path / "a")
    whole = store.storage.get(saved["key"])
    store.storage.put(foreign.json_key(saved["key"]), b'{"storage_format": "tar"}')
    for damaged in (whole[:400], whole[:300], b"", bytes(len(whole)), whole.replace(b'"version":1', b'"version":2')):
        store.storage.put(saved["key"], damaged)
        with pytest.raises(CorruptArtifact, match=f"nothing was removed: {saved['key']} cannot be read"):
            collect(store)
        assert [problem.key for problem in check(store).problems] == [saved["key"]]
    store.storage.put(saved["key"], whole[:400])
    with pytest.raises(CorruptArtifact, match="nothing was removed"):
        collect(store, (saved["key"],))
    store.storage.put(saved["key"], whole)
    assert collect(store) == 0


def test_json_is_looked_for_once_and_only_where_it_may_matter(local: Store, tmp_path: Path) -> None:
    listed: list[str] = []

    def before(operation: str, key: str) -> None:
        if operation == "list" and "artifact_metadata" in key:
            listed.append(key)

    watched = Store(Watched(local.storage, before))
    for _ in range(3):
        save(local, tmp_path / "a")
    execute_gc(watched, plan_gc(watched))
    assert listed == []
    for n in range(30):
        foreign.save_checkpoint(local.storage, FILES, "files" if n % 3 else "tar", n)
    check(watched)
    assert len(listed) == len(set(listed)) == len(ARTIFACT_PREFIXES)


def test_a_large_tar_is_not_read_whole(tmp_path: Path) -> None:
    asked: list[int | None] = []

    class Recording(LocalStorage):
        def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
            if key == large:
                asked.append(length)
            return super().get(key, start, length)

    storage = Recording(tmp_path / "store")
    large = foreign.save_model(storage, {"weights": bytes(3 << 20)})
    store = Store(storage)
    assert check(store).ok
    assert plan_gc(store).artifacts == 0
    assert asked == [512, 512]


@pytest.mark.parametrize("form", ["tar", "files"])
def test_what_metaflow_checkpoint_saves_while_gc_looks_is_recognised(local: Store, form: str) -> None:
    """Its JSON is written after its content, and after gc has listed the JSON of others."""
    key = foreign.save_model(local.storage, FILES, form)
    about = local.storage.get(foreign.json_key(key))
    local.storage.delete([foreign.json_key(key)])
    listed: list[str] = []

    def before(operation: str, name: str) -> None:
        if operation == "list" and "artifact_metadata" in name:
            listed.append(name)
        # The last of the three is that of the Hub: those of models have been listed.
        if len(listed) == len(ARTIFACT_PREFIXES):
            local.storage.put(foreign.json_key(key), about)

    plan_gc(Store(Watched(local.storage, before)))
    assert len(listed) >= len(ARTIFACT_PREFIXES)


def test_what_metaflow_checkpoint_deletes_while_gc_looks_is_no_stray(local: Store) -> None:
    key = foreign.save_model(local.storage, FILES, "files")
    content = list(objects(local, [key]))

    def before(operation: str, name: str) -> None:
        if operation == "list" and "artifact_metadata" in name:
            local.storage.delete([*content, foreign.json_key(key)])

    plan_gc(Store(Watched(local.storage, before)))


def test_the_owner_of_an_object(store: Store) -> None:
    keys = theirs(store)
    found = ForeignArtifacts(store.storage)
    assert not found.listed
    for key in keys:
        assert found.owner(key) == found.owner(f"{key}/sub/b.bin") == key
        assert found.owner(key + "x") is None
    assert found.met == set(keys)
    assert found.owner("mf.models/models/artifacts/other") is None
    assert {info.key for info in artifact_objects(store.storage)} == {
        key for key in keys if found.is_tar(key) and " " not in key and "a/b" not in key and "x/y" not in key
    }
