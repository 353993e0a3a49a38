"""gc and `check --read` in stages: they find and leave what the functions for one process find and leave."""

from __future__ import annotations

import os
import pickle
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from faultlib.watched import Watched

from metaflow_artifacts import (
    InvalidInput,
    StorageError,
    Store,
    Survey,
    Swept,
    Upkeep,
    check,
    check_chunks,
    finish_upkeep,
    gc,
    open_storage,
    survey_store,
    sweep_chunks,
)
from metaflow_artifacts._format.keys import CheckpointPlace
from metaflow_artifacts._layout import CHUNKS, SURVEYS
from metaflow_artifacts._store.checkpoint_writer import CheckpointWriter
from metaflow_artifacts._transfer.chunks import chunk_key

CHUNK = 64 << 10
DAY = 24 * 3600.0
PLACE = CheckpointPlace("F", "s", "0" * 12, "1" * 12)


def write(path: Path, chunks: int, seed: int = 0) -> Path:
    path.write_bytes(b"".join(bytes([seed, number]) * (CHUNK // 2) for number in range(chunks)))
    return path


def objects(store: Store, prefix: str = "") -> set[str]:
    return {info.key for info in store.storage.list(prefix)}


def age(store: Store, days: float) -> None:
    for info in store.storage.list(""):
        os.utime(Path(store.root, info.key), (info.modified - days * DAY,) * 2)


@pytest.fixture
def local(tmp_path: Path) -> Store:
    return Store(open_storage(tmp_path / "store"), chunk_size=CHUNK)


def shares(survey: Survey, count: int = 8) -> list[Sequence[str]]:
    return [survey.prefixes[number::count] for number in range(count)]


def upkeep(store: Store, **options: Any) -> Upkeep:
    """All stages, each with what a task of a flow is given: pickled copies."""
    survey = pickle.loads(pickle.dumps(survey_store(store, **options)))
    results = []
    for share in shares(survey):
        swept = sweep_chunks(store, survey, share) if survey.refusal is None else None
        results.append((swept, check_chunks(store, survey, share) if survey.whole else None))
    results = pickle.loads(pickle.dumps(results))
    return finish_upkeep(
        store,
        survey,
        [swept for swept, _ in results if swept is not None],
        [checked for _, checked in results if checked is not None],
    )


def fill(store: Store, tmp_path: Path) -> None:
    """Models and checkpoints, some deleted: so garbage, shared chunks and tombstones."""
    for seed in range(4):
        store.save_model(write(tmp_path / "a", 6, seed))
        store.delete(store.save_model(write(tmp_path / "b", 9, seed + seed % 2)))
    writer = CheckpointWriter(store, PLACE, "0" * 8, 0)
    saved = [writer.save(write(tmp_path / "c", 3, 9 + number), latest=False, label="l") for number in range(3)]
    store.storage.delete([saved[0]["key"]])
    store.delete(saved[2])


@pytest.mark.parametrize("dry_run", [True, False])
def test_the_stages_give_what_gc_and_check_give(store: Store, tmp_path: Path, dry_run: bool) -> None:
    fill(store, tmp_path)
    other = Store(open_storage(tmp_path / "other"), chunk_size=CHUNK)
    for key in objects(store):
        other.storage.put(key, store.storage.get(key))

    found = upkeep(store, grace=0, exclusive=True, dry_run=dry_run, whole=True)
    expected = gc(other, grace=0, exclusive=True, dry_run=dry_run)
    assert found.gc is not None
    assert replace(found.gc, keeps_versions=expected.keeps_versions, marks=0) == replace(expected, marks=0)
    assert found.gc.removed > 10
    assert found.check == check(other, read=True)
    assert found.check is not None
    assert found.check.read > 0
    kept = {key for key in objects(other) if not key.startswith("mf.artifacts/gc/")}
    assert {key for key in objects(store) if not key.startswith("mf.artifacts/gc/")} == kept


def test_what_is_saved_between_the_stages_stays(local: Store, tmp_path: Path) -> None:
    """The survey knows nothing of it, and it relies on chunks that were garbage then."""
    local.delete(local.save_model(write(tmp_path / "a", 8)))
    local.delete(local.save_model(write(tmp_path / "b", 8, 1)))
    age(local, 30)
    survey = survey_store(local, dry_run=False)
    parts = shares(survey)
    saved = local.save_model(write(tmp_path / "a", 8))
    swept = [sweep_chunks(local, survey, parts[0])]
    late = local.save_model(write(tmp_path / "c", 5, 1))
    swept += [sweep_chunks(local, survey, part) for part in parts]
    result = finish_upkeep(local, survey, swept)
    assert result.gc is not None
    needed = {chunk_key(chunk.sha256) for one in (saved, late) for chunk in local.manifest(one).chunks}
    assert needed == objects(local, CHUNKS)
    assert check(local, read=True).ok


def test_what_is_deleted_between_the_stages_is_left_to_the_next(local: Store, tmp_path: Path) -> None:
    saved = local.save_model(write(tmp_path / "a", 8))
    age(local, 30)
    survey = survey_store(local, dry_run=False)
    local.delete(saved)
    assert sum(sweep_chunks(local, survey, share).removed for share in shares(survey)) == 0
    assert gc(local, dry_run=False).removed == 8


def test_a_survey_that_is_gone_or_changed_removes_nothing(local: Store, tmp_path: Path) -> None:
    kept = local.save_model(write(tmp_path / "a", 8))
    age(local, 30)
    survey = survey_store(local, dry_run=False)
    before = objects(local, CHUNKS)
    prefix = min(survey.digests)
    rows = local.storage.get(survey.key(prefix))
    for damage in (rows[:-40], b"", rows + rows[:40]):
        local.storage.put(survey.key(prefix), damage)
        for stage in (sweep_chunks, check_chunks):
            with pytest.raises(StorageError, match=f"{survey.key(prefix)} has changed"):
                stage(local, replace(survey, whole=True), [prefix])
    local.storage.delete([survey.key(prefix)])
    with pytest.raises(StorageError, match=r"does not exist: .* begin again with a new survey"):
        sweep_chunks(local, survey, survey.prefixes)
    assert objects(local, CHUNKS) == before
    local.load(kept, tmp_path / "out")


def test_a_survey_that_nothing_has_ended_is_removed_by_a_later_gc(local: Store, tmp_path: Path) -> None:
    local.save_model(write(tmp_path / "a", 8))
    for dry_run in (True, False):
        survey_store(local, dry_run=dry_run)
    left = len(objects(local, SURVEYS))
    assert left >= 2
    age(local, 1.9)
    # However short the grace period is: an upkeep may be running.
    assert gc(local, grace=0, exclusive=True, dry_run=False).temporary == 0
    age(local, 7)
    assert gc(local).temporary == left
    assert gc(local, dry_run=False).temporary == left
    assert objects(local, SURVEYS) == set()


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize(
    ("key", "data", "reason"),
    [
        ("mf.models/models/artifacts/m_" + "0" * 32, b"{}", "cannot be read, and it may need any chunk"),
        ("mf.models/models/artifacts/of-a-later-version", b"x", "1 object is not understood"),
    ],
    ids=["manifest", "stray"],
)
def test_what_is_not_understood_is_the_result_and_removes_nothing(
    local: Store, tmp_path: Path, key: str, data: bytes, reason: str, whole: bool
) -> None:
    local.delete(local.save_model(write(tmp_path / "a", 4)))
    saved = local.save_model(write(tmp_path / "b", 4, 1))
    local.storage.put(key, data)
    age(local, 30)
    before = objects(local)
    result = upkeep(local, dry_run=False, whole=whole)
    assert result.gc is None
    assert result.refusal is not None
    assert reason in result.refusal
    assert objects(local) == before
    assert (result.check == check(local, read=True)) is whole
    survey = survey_store(local, dry_run=False)
    with pytest.raises(StorageError, match=reason):
        sweep_chunks(local, survey, survey.prefixes)
    assert objects(local, CHUNKS) >= {chunk_key(chunk.sha256) for chunk in local.manifest(saved).chunks}


def test_a_sweep_looks_again_for_what_is_not_understood(local: Store, tmp_path: Path) -> None:
    local.delete(local.save_model(write(tmp_path / "a", 4)))
    age(local, 30)
    survey = survey_store(local, dry_run=False)
    for key in ("mf.artifacts/needs/rounds.9.0", "mf.models/models/artifacts/of-a-later-version"):
        local.storage.put(key, b"x")
        with pytest.raises(StorageError, match="nothing was removed"):
            sweep_chunks(local, survey, survey.prefixes)
        local.storage.delete([key])
    assert sweep_chunks(local, survey, survey.prefixes).removed == 4


def test_a_sweep_that_is_killed_is_done_again(local: Store, tmp_path: Path) -> None:
    local.delete(local.save_model(write(tmp_path / "a", 12)))
    kept = local.save_model(write(tmp_path / "b", 3, 1))
    age(local, 30)
    survey = survey_store(local, dry_run=False)
    deletes: list[str] = []

    def before(operation: str, key: str) -> None:
        if operation == "delete" and key.startswith(CHUNKS):
            deletes.append(key)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep_chunks(Store(Watched(local.storage, before)), survey, survey.prefixes)
    assert deletes
    swept: list[Swept] = [sweep_chunks(local, survey, share) for share in shares(survey)]
    assert sum(part.removed for part in swept) == 12
    assert objects(local, CHUNKS) == {chunk_key(chunk.sha256) for chunk in local.manifest(kept).chunks}


def test_what_is_no_prefix_or_of_another_store_is_refused(local: Store, tmp_path: Path) -> None:
    local.save_model(write(tmp_path / "a", 4))
    survey = survey_store(local, exclusive=True, grace=0)
    assert sweep_chunks(local, survey, []).chunks == 0
    for prefix in ("AB", "a", "abc", "", "x0"):
        with pytest.raises(InvalidInput, match="is no prefix of chunks"):
            sweep_chunks(local, survey, [prefix])
    with pytest.raises(InvalidInput, match="whole=True"):
        check_chunks(local, survey, ["ab"])
    with pytest.raises(InvalidInput, match="grace period of 5 s"):
        survey_store(local, grace=5)
    other = Store(open_storage(tmp_path / "other"))
    for call in (lambda: sweep_chunks(other, survey, ["ab"]), lambda: finish_upkeep(other, survey, [])):
        with pytest.raises(InvalidInput, match="the survey was made for"):
            call()
