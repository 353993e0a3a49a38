"""What each subset of the distributions gives, installed from wheels beside an extension of somebody else."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import chain, combinations
from pathlib import Path
from typing import Any

import pytest

NAMES = {
    "metaflow-artifacts-model": {"delete_model", "load_model", "model"},
    "metaflow-artifacts-checkpoint": {"Checkpoint", "checkpoint"},
    "metaflow-artifacts-hf": {"huggingface_hub"},
}
OF_CORE = {"artifact_store_from", "with_artifact_store"}
"""What core adds, which each of them brings."""
SUBSETS = list(chain.from_iterable(combinations(NAMES, size) for size in range(len(NAMES) + 1)))
# Prints which of the names given `from metaflow import name` finds, and all that `metaflow` has.
IMPORTS = """
import json, sys, metaflow
def outcome(name):
    try:
        exec(f"from metaflow import {name}")
    except Exception as error:
        return type(error).__name__
    return "found"
print(json.dumps({"outcomes": {name: outcome(name) for name in sys.argv[1:]}, "all": list(vars(metaflow))}))
"""

# One process runs all tests of a subset: they share its environment.
subsets = pytest.mark.parametrize(
    "subset",
    [
        pytest.param(subset, marks=pytest.mark.xdist_group("+".join(subset)), id="+".join(subset) or "none")
        for subset in SUBSETS
    ],
)
alone = pytest.mark.parametrize(
    "distribution", [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in NAMES]
)


def names_of(subset: tuple[str, ...]) -> set[str]:
    return set().union(*(NAMES[distribution] for distribution in subset), OF_CORE if subset else ())


@pytest.fixture
def make(environment: Callable[..., Any], unrelated_wheel: Path) -> Callable[..., Any]:
    return lambda subset: environment("metaflow", unrelated_wheel, *subset)


FLOW = Path(__file__).with_name("subset_flow.py")


@subsets
def test_a_package_adds_its_names_and_no_others(subset: tuple[str, ...], make: Callable[..., Any]) -> None:
    every = names_of(tuple(NAMES))
    expected = names_of(subset)
    found = json.loads(make(subset).python("-c", IMPORTS, "acme", "acme_answer", *every).splitlines()[-1])
    assert found["outcomes"] == {
        "acme": "found",
        "acme_answer": "found",
        **{name: "found" if name in expected else "ImportError" for name in every},
    }
    # No helper, import or constant of a toplevel module leaks into `metaflow`.
    without = json.loads(make(()).python("-c", IMPORTS).splitlines()[-1])
    assert {n for n in set(found["all"]) - set(without["all"]) if not n.startswith("__")} == expected


@subsets
def test_a_flow_runs_with_what_is_there(subset: tuple[str, ...], make: Callable[..., Any], tmp_path: Path) -> None:
    log = make(subset).python(FLOW, "run", cwd=tmp_path)
    savers = [name for name in ("model", "checkpoint") if name in names_of(subset)]
    assert "acme was here" in log
    assert f"saved by {savers}" in log
    if "model" in savers:
        for name in savers:
            assert f"loaded by_{name} ['weights']" in log


@alone
def test_spin_runs_the_decorators_of_each_package_and_those_of_others(
    distribution: str, make: Callable[..., Any], tmp_path: Path
) -> None:
    environment = make((distribution,))
    environment.python(FLOW, "run", cwd=tmp_path)
    log = environment.python(FLOW, "spin", "start", cwd=tmp_path)
    decorator = distribution.removeprefix("metaflow-artifacts-").replace("hf", "huggingface_hub")
    assert f"current has ['{decorator}']" in log
    assert "acme was here" in log
    assert "Ignoring" not in log


def test_core_alone_adds_nothing_to_metaflow(make: Callable[..., Any], tmp_path: Path) -> None:
    log = make(("metaflow-artifacts",)).python(FLOW, "run", cwd=tmp_path)
    assert "acme was here" in log
    assert "current has []" in log


def test_an_extra_of_core_brings_the_package(environment: Callable[..., Any]) -> None:
    """Metaflow refuses extensions that need each other; for it, the extras of core must not count as needs."""
    found = json.loads(environment("metaflow-artifacts[model]").python("-c", IMPORTS, "model").splitlines()[-1])
    assert found["outcomes"] == {"model": "found"}


@alone
def test_a_package_brings_core_and_none_of_its_siblings(distribution: str, make: Callable[..., Any]) -> None:
    code = "from importlib.metadata import distributions; print(*sorted({d.name for d in distributions()}))"
    installed = set(make((distribution,)).python("-c", code).split())
    assert {name for name in installed if name in {*NAMES, "metaflow-artifacts"}} == {
        distribution,
        "metaflow-artifacts",
    }


def test_core_works_without_metaflow(environment: Callable[..., Any]) -> None:
    code = """
import sys
import metaflow_artifacts
metaflow_artifacts.open_store("store")
print(sorted({"metaflow", "boto3"} & set(sys.modules)))
"""
    assert environment("metaflow-artifacts").python("-c", code).strip() == "[]"
