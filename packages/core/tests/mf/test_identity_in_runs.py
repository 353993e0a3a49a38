"""The identity of real tasks: the same place in every run, whatever the hash seed, and no two places
alike."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from metaflow_artifacts.testing.flows import FlowRunner, Result

FLOW = Path(__file__).parent / "flows" / "identity_flow.py"
RESUMED = FLOW.with_name("resumed_flow.py")


def places(result: Result) -> Counter[tuple[str, str]]:
    """How often each place of each step was told."""
    return Counter((name, place) for name, _, _, place, _, _ in result.facts("identity"))


def test_places_are_the_same_in_every_run(tmp_path: Path) -> None:
    runner = FlowRunner(tmp_path, {"PYTHONHASHSEED": "1"})
    first = runner.run(FLOW)
    other = runner.with_environment(PYTHONHASHSEED="2", METAFLOW_USER="somebody")
    second = other.run(FLOW, "--tag", "checkpoint:shared")

    told = places(first)
    assert Counter(name for name, _ in told.elements()) == {
        "start": 1,
        "middle": 2,
        "leaf": 4,
        "join_leaves": 2,
        "after": 2,
        "join": 1,
        "node 0": 1,
        "node 1": 1,
        "repeat": 2,
    }
    assert set(told.values()) == {1}
    assert told == places(second)
    assert len({place for _, place in told}) == len(told)

    ids = [identity[4] for result in (first, second) for identity in result.facts("identity")]
    assert len(set(ids)) == len(ids)
    scopes = [{identity[2] for identity in result.facts("identity")} for result in (first, second)]
    assert [len(scope) for scope in scopes] == [1, 1]
    assert scopes[0] != scopes[1]

    # A subprocess of the task finds it, and its datastore; so does Metaflow's client, while the task still
    # runs.
    assert first.fact("decoded") is True
    assert first.fact("client") is True
    _, pathspec, scope, place, identifier, _ = first.facts("identity")[0]
    assert first.fact("child") == [pathspec, "0", identifier, scope, place, runner.local_root]


def test_a_resumed_task_finds_the_tasks_that_it_resumes(tmp_path: Path) -> None:
    runner = FlowRunner(tmp_path, {"FAIL": "1"})
    started = runner.run(RESUMED, fails=True)
    resumed = runner.command(RESUMED, "resume", "--origin-run-id", started.run_id, fails=True)
    third = runner.with_environment(FAIL=None).command(RESUMED, "resume", "--origin-run-id", resumed.run_id)
    first, second = started.fact("bad"), resumed.fact("bad")
    assert first[1] == []
    assert second[1] == [first[0]]
    assert third.fact("bad")[1] == [second[0], first[0]]
    # Cloned, not run again; and a step that no run has reached resumes nothing.
    assert third.facts("good") == []
    assert third.fact("join") == []
