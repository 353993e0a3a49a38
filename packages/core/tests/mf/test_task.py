"""Scopes, ids, and the environment variable by which subprocesses find their task."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace

import pytest
from metaflow.metaflow_current import current

from metaflow_artifacts import UsageError
from metaflow_artifacts._format.keys import HUB
from metaflow_artifacts._mf.task import ENVIRONMENT_VARIABLE, TaskIdentity, id_of, scope_of

IDENTITY = TaskIdentity("Flow", "7", "train", "9", 2, "a" * 12, "b" * 12, "local", "/data/.metaflow", "5")


@pytest.fixture
def other_task() -> Iterator[None]:
    current._flow_name = "Inner"
    current._set_env(run_id="1", step_name="start", task_id="2", is_running=True)
    yield
    current._flow_name = None
    current._set_env(is_running=False)


def test_an_identity_names_its_task_and_place() -> None:
    assert IDENTITY.pathspec == "Flow/7/train/9"
    assert IDENTITY.id == id_of("Flow/7/train/9")
    place = IDENTITY.checkpoint_place(HUB)
    assert place.prefix() == f"mf.huggingface_hub/checkpoints/artifacts/Flow/train/{'a' * 12}/{'b' * 12}/"
    assert IDENTITY.store().root == "/data/.metaflow"


def test_a_scope_is_that_of_the_namespace_or_of_the_tag() -> None:
    mine, yours = scope_of("user:me"), scope_of("user:you")
    assert mine != yours
    assert scope_of("user:me", ["unrelated", "checkpoint:"]) == mine
    shared = scope_of("user:me", ["x", "checkpoint:team"])
    assert shared == scope_of("user:you", ["checkpoint:team"])
    # No tag gives access to somebody's namespace by accident.
    assert len({mine, yours, shared, scope_of("", ["checkpoint:user:me"])}) == 4
    assert scope_of("", ["checkpoint:b", "checkpoint:a"]) == scope_of("", ["checkpoint:a", "checkpoint:b"])
    assert all(len(scope) == 12 for scope in (mine, shared, scope_of(None)))


def test_subprocesses_find_their_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENVIRONMENT_VARIABLE, raising=False)
    assert TaskIdentity.from_environment() is None
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "to be replaced")
    IDENTITY.export()
    assert TaskIdentity.from_environment() == IDENTITY


def test_a_node_is_told_with_its_gang() -> None:
    node = replace(IDENTITY, task="9_node_1", gang=IDENTITY.pathspec)
    assert TaskIdentity.decode(node.encode(), "here") == node
    assert (node.id, node.owner) == (IDENTITY.id, IDENTITY.pathspec)
    assert IDENTITY.owner == IDENTITY.pathspec


@pytest.mark.usefixtures("other_task")
def test_a_flow_started_in_a_task_does_not_belong_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, IDENTITY.encode())
    assert TaskIdentity.from_environment() is None


@pytest.mark.parametrize("text", ["Flow/7/train/9", "{}", "[]", "3", '{"flow": "F"}'])
def test_an_environment_that_names_no_task_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, text)
    with pytest.raises(UsageError, match=ENVIRONMENT_VARIABLE):
        TaskIdentity.from_environment()


def test_fields_of_a_later_version_are_ignored() -> None:
    later = IDENTITY.encode()[:-1] + ',"colour":"red"}'
    assert TaskIdentity.decode(later, "a test") == IDENTITY


def test_a_task_without_a_record_is_named() -> None:
    with pytest.raises(UsageError, match="F/1/s/2 has left no record"):
        TaskIdentity.of_task(SimpleNamespace(pathspec="F/1/s/2", metadata_dict={}))
    with pytest.raises(UsageError, match="no task of a flow runs"):
        TaskIdentity.of_running(SimpleNamespace(index=None), SimpleNamespace(TYPE="local", datastore_root="/x"))
