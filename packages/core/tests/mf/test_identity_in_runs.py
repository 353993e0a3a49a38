"""The identity of real tasks: the same place in every run, whatever the hash seed, and no two places
alike."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from metaflow_artifacts.testing.flows import FlowRunner, Result

FLOW = Path(__file__).parent / "flows" / "identity_flow.py"


def places(result: Result) -> Counter[tuple[str, str]]:
    """How often each place of each step was told."""
    return Counter((name, place) for name, _, _, place, _ in result.facts("identity"))


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
    _, pathspec, scope, place, identifier = first.facts("identity")[0]
    assert first.fact("child") == [pathspec, "0", identifier, scope, place, runner.local_root]
