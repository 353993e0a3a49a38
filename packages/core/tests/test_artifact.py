"""The reference dict: its shape, and metadata that survives JSON."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from metaflow_artifacts import InvalidReference, is_model_artifact, parse, validate
from metaflow_artifacts.artifact import normalise_metadata


@pytest.fixture
def reference() -> dict[str, Any]:
    return {
        "key": "mf.models/models/artifacts/m_" + "0" * 32,
        "uuid": "m_" + "0" * 32,
        "type": "model",
        "pathspec": "F/1/start/2",
        "attempt": 0,
        "created_on": "2026-01-01T00:00:00.000000+00:00",
        "size": 3,
        "url": "/data/mf.models/models/artifacts/m_" + "0" * 32,
        "metadata": {},
        "label": "m",
    }


def test_a_reference_is_valid_and_keeps_unknown_keys(reference: dict[str, Any]) -> None:
    reference["later"] = 1
    assert validate(reference) == []
    assert is_model_artifact(reference)
    assert parse(reference) == reference


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("size", True, "size: expected int, found bool"),
        ("size", -1, "size: expected a number from 0"),
        ("type", "tensor", "type: expected model or checkpoint, found 'tensor'"),
        ("metadata", None, "metadata: expected dict, found NoneType"),
        ("parents", [1], "parents: expected a list of keys"),
        ("version_id", "0", "version_id: expected int, found str"),
    ],
)
def test_each_problem_says_where_and_what(reference: dict[str, Any], key: str, value: object, problem: str) -> None:
    reference[key] = value
    assert any(found.startswith(problem) for found in validate(reference))
    with pytest.raises(InvalidReference, match="not a reference to a stored artifact"):
        parse(reference)


def test_every_problem_is_named_at_once(reference: dict[str, Any]) -> None:
    del reference["key"]
    reference["attempt"] = "0"
    assert validate(reference) == ["key: missing", "attempt: expected int, found str"]
    assert validate(["key"]) == ["expected a dict, found list"]


def test_metadata_comes_back_as_numbers_and_lists() -> None:
    given = {
        "loss": np.float32(0.5),
        "epoch": np.int64(3),
        "done": np.bool_(True),
        "zero_d": np.array(2.0),
        "shape": (1, 2),
        "nested": {"a": [np.float64(1.5), None, "x"]},
    }
    got = normalise_metadata(given)
    assert json.loads(json.dumps(got)) == got
    assert got == {
        "loss": 0.5,
        "epoch": 3,
        "done": True,
        "zero_d": 2.0,
        "shape": [1, 2],
        "nested": {"a": [1.5, None, "x"]},
    }
    assert normalise_metadata(None) == {}


def _cycle() -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    metadata["self"] = metadata
    return metadata


@pytest.mark.parametrize(
    ("metadata", "problem"),
    [
        ({"a": {"b": object()}}, r"metadata\['a'\]\['b'\]: JSON cannot hold a object"),
        ({"weights": np.zeros(3)}, r"metadata\['weights'\]: JSON cannot hold a ndarray"),
        ({"loss": float("nan")}, r"metadata\['loss'\]: JSON cannot hold nan"),
        ({"loss": [np.inf]}, r"metadata\['loss'\]\[0\]: JSON cannot hold inf"),
        ({1: "a"}, r"metadata: JSON keys are strings, found the key 1"),
        ({"raw": b"x"}, r"metadata\['raw'\]: JSON cannot hold a bytes"),
        ([1], "metadata: expected a dict, found list"),
        (_cycle(), "nested too deeply .*, or contains itself"),
    ],
)
def test_metadata_that_json_cannot_hold_is_refused_by_name(metadata: Any, problem: str) -> None:
    with pytest.raises(InvalidReference, match=problem):
        normalise_metadata(metadata)
