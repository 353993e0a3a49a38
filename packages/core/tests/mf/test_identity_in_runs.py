"""The identity of real tasks: the same place in every run, whatever the hash seed, and no two places
alike."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from metaflow_artifacts.testing.flows import FlowRunner, Result

FLOW = Path(__file__).parent / "flows" / "identity_flow.py"


def places(result: Result) -> Counter[tuple[str, str]]:
    """How often each place of each step was told."""
    return Counter((name, place) for name, _, _, place, _ in result.facts("identity"))


@pytest.mark.long
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
        "gang": 2,
        "node 0": 1,
        "node 1": 1,
        "repeat": 2,
    }
    # The nodes of a gang have one place, unless each has its own.
    assert [place[0] for place, count in told.items() if count > 1] == ["gang"]
    assert told == places(second)
    assert len({place for _, place in told}) == len(told)

    identities = [identity for result in (first, second) for identity in result.facts("identity")]
    ids = [identity[4] for identity in identities if identity[0] != "gang"]
    assert len(set(ids)) == len(ids)
    # A gang has the id of its control task, which is node 0.
    assert Counter(identity[4] for identity in identities if identity[0] == "gang") == {
        identity[4]: 2 for identity in identities if identity[0] == "node 0"
    }
    control, worker = sorted(first.facts("gang"))
    assert control == [control[0], control[0]]
    assert worker == [f"{control[0]}_node_1", control[0]]
    scopes = [{identity[2] for identity in result.facts("identity")} for result in (first, second)]
    assert [len(scope) for scope in scopes] == [1, 1]
    assert scopes[0] != scopes[1]

    # A subprocess of the task finds it, and its datastore; so does Metaflow's client, while the task still
    # runs.
    assert first.fact("decoded") is True
    assert first.fact("client") is True
    _, pathspec, scope, place, identifier = first.facts("identity")[0]
    assert first.fact("child") == [pathspec, "0", identifier, scope, place, runner.local_root]
