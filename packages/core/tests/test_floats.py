"""NaN and infinities in metadata, as text with their paths beside them, and back."""

from __future__ import annotations

import copy
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metaflow_artifacts._format.floats import with_floats, without_floats

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["NaN", "Infinity"]),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
METADATA = st.dictionaries(st.text(), VALUES)


def test_each_has_its_text_and_its_path() -> None:
    metadata = {"loss": math.nan, "history": [1.0, 2.0, {"best": math.inf}, -math.inf], "text": "NaN"}
    texts, paths = without_floats(metadata)
    assert texts == {"loss": "NaN", "history": [1.0, 2.0, {"best": "Infinity"}, "-Infinity"], "text": "NaN"}
    assert paths == [["loss"], ["history", 2, "best"], ["history", 3]]
    assert repr(with_floats(texts, paths)) == repr(metadata)


@given(METADATA)
def test_they_come_back_through_strict_json(metadata: dict[str, Any]) -> None:
    before = repr(metadata)
    texts, paths = json.loads(json.dumps(without_floats(metadata), allow_nan=False))
    kept = copy.deepcopy(texts)
    assert repr(with_floats(texts, paths)) == before == repr(metadata)
    assert texts == kept


@pytest.mark.parametrize(
    "path",
    [
        [],
        "loss",
        None,
        ["other"],
        ["text"],
        ["number"],
        ["list"],
        ["list", 3],
        ["list", -1],
        ["list", True],
        ["list", "0"],
        ["list", 0, 0],
        ["loss", 0],
        ["inner", 0],
        [["loss"]],
        [0],
    ],
    ids=repr,
)
def test_a_path_that_leads_to_no_text_for_a_float_is_refused(path: Any) -> None:
    metadata = {"loss": "NaN", "text": "nan", "number": 1.0, "list": ["NaN", "x", []], "inner": {"0": "NaN"}}
    with pytest.raises(ValueError, match="path"):
        with_floats(metadata, [path])


def test_a_path_that_occurs_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="leads to no text"):
        with_floats({"a": ["NaN"]}, [["a", 0], ["a", 0]])


@given(METADATA, st.lists(st.lists(st.text() | st.integers())))
def test_any_paths_give_floats_or_value_error(metadata: dict[str, Any], paths: list[list[str | int]]) -> None:
    try:
        found = with_floats(metadata, paths)
    except ValueError:
        return
    assert len(without_floats(found)[1]) == len(paths) + len(without_floats(metadata)[1])
