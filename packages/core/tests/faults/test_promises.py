"""Servers that break a promise of docs/format.md, and credentials that allow too little: saves, loads and gc."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from faultlib.outcomes import RIGHT, Outcomes, content, failing, loading

from metaflow_artifacts import Store
from metaflow_artifacts._format.keys import CheckpointPlace
from metaflow_artifacts._store.checkpoint_writer import CheckpointWriter
from metaflow_artifacts._store.checkpoints import list_checkpoints
from metaflow_artifacts._upkeep.check import check
from metaflow_artifacts._upkeep.gc import gc
from metaflow_artifacts.testing.faults import Answer, FaultProxy, Request
from metaflow_artifacts.testing.promises import (
    Plan,
    copies_without_renewing,
    forbids_deletes,
    ignores_conditions,
    lists_only_below,
    loses_conditional_answers,
    refuses_batches,
    takes_wrong_digests,
)

CHUNK = 64 << 10
SECTION = "servers that do not keep their promises"
PLACE = CheckpointPlace("F", "s", "0" * 12, "1" * 12)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    root.mkdir()
    (root / "weights.bin").write_bytes(os.urandom(6 * CHUNK + 5))
    (root / "small.txt").write_bytes(b"small" * 100)
    return root


def checkpoints(store: Store) -> CheckpointWriter:
    """A writer of one task's checkpoints, as a process has one."""
    return CheckpointWriter(store, PLACE, "0" * 8, 0, "F/1/s/2")


def test_no_checkpoint_is_overwritten_where_conditions_are_ignored(
    remote: Store, direct: Store, proxy: FaultProxy, tree: Path, tmp_path: Path, outcomes: Outcomes
) -> None:
    kept = checkpoints(direct).save(tree, label="l")["key"]
    before = direct.storage.get(kept)
    proxy.plan = ignores_conditions()
    case = "`If-None-Match` is ignored"
    for _ in range(2):
        # A number that exists, as when two processes choose the same one.
        writer = CheckpointWriter(remote, PLACE, "0" * 8, 0, "F/1/s/2", start=0)
        outcome = failing(lambda writer=writer: writer.save(tree / "small.txt", label="l"), remote)  # type: ignore[misc]
        outcomes.record(SECTION, f"{case}: save of a checkpoint", outcome)
    assert [info.key for info in direct.storage.list("mf.checkpoints/")] == [kept]
    assert direct.storage.get(kept) == before
    key = remote.save_model(tree)["key"]
    outcomes.record(SECTION, f"{case}: save and load of a model", loading(remote, key, tmp_path / "m", content(tree)))
    outcome = loading(remote, kept, tmp_path / "c", content(tree))
    outcomes.record(SECTION, f"{case}: load of a checkpoint that is there", outcome)


def refuses_copies(request: Request) -> Answer | None:
    return Answer(501, "NotImplemented") if "x-amz-copy-source" in request.headers else None


@pytest.mark.parametrize(
    ("case", "plan"),
    [
        ("a copy of an object onto itself does not move its time", copies_without_renewing()),
        ("a copy of an object onto itself does nothing, and the answer has no time", copies_without_renewing(None)),
        ("copies are refused", refuses_copies),
    ],
)
def test_chunks_whose_time_cannot_change_are_sent_again(
    remote: Store,
    direct: Store,
    proxy: FaultProxy,
    tree: Path,
    tmp_path: Path,
    outcomes: Outcomes,
    monkeypatch: pytest.MonkeyPatch,
    case: str,
    plan: Plan,
) -> None:
    chunks = len(set(direct.manifest(direct.save_model(tree)).chunks))
    # All that is stored is older than a day.
    monkeypatch.setattr(remote.storage, "now", lambda: time.time() + 2 * 24 * 3600)
    proxy.plan = plan
    key = remote.save_model(tree)["key"]
    written = [one for one in proxy.requests if one.method == "PUT" and "x-amz-copy-source" not in one.headers]
    assert sum("/chunks/" in request.path for request in written) == chunks
    assert loading(direct, key, tmp_path / "out", content(tree)) == RIGHT
    outcomes.record(SECTION, f"{case}: save of content that is stored", f"it is sent again; {RIGHT}")


def test_gc_deletes_one_by_one_where_batches_are_refused(
    remote: Store, direct: Store, proxy: FaultProxy, tree: Path, tmp_path: Path, outcomes: Outcomes
) -> None:
    kept = direct.save_model(tree / "small.txt")["key"]
    direct.delete(direct.save_model(tree))
    proxy.plan = refuses_batches()
    assert gc(remote, grace=0, exclusive=True, dry_run=False).removed > 2
    assert list(direct.storage.list("mf.artifacts/chunks/")) == []
    assert loading(direct, kept, tmp_path / "out", {b"small.txt": b"small" * 100}) == RIGHT
    outcomes.record(SECTION, "deletes of many objects at once are refused: gc", "all is removed, one by one")


@pytest.mark.parametrize("what", ["chunk", "manifest"])
def test_wrong_bytes_that_a_server_accepted_are_found(
    remote: Store, direct: Store, proxy: FaultProxy, tree: Path, tmp_path: Path, outcomes: Outcomes, what: str
) -> None:
    damaged = takes_wrong_digests(200)
    where = "/chunks/" if what == "chunk" else "/mf.models/"
    proxy.plan = lambda request: damaged(request) if where in request.path else None
    key = remote.save_model(tree)["key"]
    outcome = loading(direct, key, tmp_path / "out", content(tree))
    assert outcome.startswith(("`CorruptArtifact`", "`UnsupportedFormat`"))
    assert {problem.key for problem in check(direct, read=True).problems} == {key}
    case = f"the server accepts wrong bytes under the digest of the right ones: load of a {what}"
    outcomes.record(SECTION, case, f"{outcome}; `check --read` reports it")


@pytest.mark.parametrize("after", [0, 1, 2])
@pytest.mark.parametrize("times", [1, 2])
def test_a_lost_answer_to_a_conditional_write_makes_no_second_checkpoint(
    remote: Store,
    direct: Store,
    proxy: FaultProxy,
    tree: Path,
    tmp_path: Path,
    outcomes: Outcomes,
    times: int,
    after: int,
) -> None:
    """Of the question before the first checkpoint, of a checkpoint, or of the next one."""
    proxy.plan = loses_conditional_answers(times, after)
    writer = checkpoints(remote)
    saved = [writer.save(path, label="l") for path in (tree, tree / "small.txt")]
    assert [one["version_id"] for one in saved] == [0, 1]
    assert {one["key"] for one in list_checkpoints(direct, PLACE.prefix())} == {one["key"] for one in saved}
    assert loading(direct, saved[0]["key"], tmp_path / "out", content(tree)) == RIGHT
    outcomes.record(
        SECTION,
        "the answer to a write with `If-None-Match` is lost: save of a checkpoint",
        f"the checkpoint is there once, under its number; {RIGHT}",
    )


def test_permission_to_list_below_the_root_suffices(
    remote: Store, direct: Store, proxy: FaultProxy, tree: Path, tmp_path: Path, outcomes: Outcomes
) -> None:
    proxy.plan = lists_only_below(remote.root.removeprefix("s3://").partition("/")[2] + "/")
    for number, one in enumerate((remote.save_model(tree), checkpoints(remote).save(tree, label="l"))):
        assert loading(remote, one["key"], tmp_path / str(number), content(tree)) == RIGHT
    assert len(list_checkpoints(remote, PLACE.prefix())) == 1
    direct.save_model(tree)
    for key in [*remote.list()]:
        remote.delete(key)
    assert check(remote, read=True).ok
    assert gc(remote, grace=0, exclusive=True, dry_run=False).removed == 0
    case = "listings are allowed below the root only: save, load, checkpoint, delete, check, gc"
    outcomes.record(SECTION, case, RIGHT)


def test_without_permission_to_list_a_save_fails_and_a_load_succeeds(
    remote: Store, direct: Store, proxy: FaultProxy, tree: Path, tmp_path: Path, outcomes: Outcomes
) -> None:
    proxy.plan = lists_only_below("nowhere")
    case = "no listing is allowed"
    outcomes.record(SECTION, f"{case}: save", failing(lambda: remote.save_model(tree), remote))
    assert list(direct.list()) == []
    small = remote.save_model(tree / "small.txt")["key"]
    outcome = loading(direct, small, tmp_path / "small", {b"small.txt": b"small" * 100})
    outcomes.record(SECTION, f"{case}: save of a small model", outcome)
    key = direct.save_model(tree)["key"]
    outcomes.record(SECTION, f"{case}: load", loading(remote, key, tmp_path / "out", content(tree)))


def test_without_permission_to_delete_saves_and_loads_succeed(
    remote: Store, direct: Store, proxy: FaultProxy, tree: Path, tmp_path: Path, outcomes: Outcomes
) -> None:
    case = "nothing may be deleted"
    direct.delete(direct.save_model(tree))
    chunks = {info.key for info in direct.storage.list("mf.artifacts/chunks/")}
    proxy.plan = forbids_deletes()
    refused = failing(lambda: gc(remote, grace=0, exclusive=True, dry_run=False), remote)
    outcomes.record(SECTION, f"{case}: gc", refused)
    assert {info.key for info in direct.storage.list("mf.artifacts/chunks/")} == chunks
    # Beside what that gc has left, and could not remove.
    model, checkpoint = remote.save_model(tree)["key"], checkpoints(remote).save(tree, label="l")["key"]
    for number, key in enumerate((model, checkpoint)):
        assert loading(remote, key, tmp_path / str(number), content(tree)) == RIGHT
    outcomes.record(SECTION, f"{case}: save, load, checkpoint", RIGHT)
    outcomes.record(SECTION, f"{case}: delete", failing(lambda: remote.delete(model), remote, model))
    assert loading(direct, model, tmp_path / "still", content(tree)) == RIGHT
