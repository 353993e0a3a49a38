"""The reference dict: its shape, and metadata that survives JSON."""

from __future__ import annotations

import enum
import json
import pickle
import re
import warnings
from collections.abc import Iterator, Mapping
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metaflow_artifacts import (
    ArtifactWarning,
    InvalidInput,
    InvalidReference,
    is_model_artifact,
    parse_reference,
    validate_reference,
)
from metaflow_artifacts._format.reference import MAX_DEPTH, depth, normalise_metadata


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
    assert validate_reference(reference) == []
    assert is_model_artifact(reference)
    assert parse_reference(reference) == reference


class Special(dict[str, Any]):
    """As the mappings in a Config of Metaflow: a pickle of it needs its class."""


def test_what_a_parsed_reference_holds_is_plain_and_its_own(reference: dict[str, Any]) -> None:
    lists = [Special(c=1)]
    given = Special(reference, metadata=Special(a=Special(b=lists)), parents=["k"])
    given["me"] = given
    parsed: dict[str, Any] = dict(parse_reference(given))
    assert b"Special" not in pickle.dumps(parsed)
    assert parsed["metadata"] == {"a": {"b": [{"c": 1}]}}
    assert parsed["me"]["me"] is parsed["me"]
    lists.clear()
    given["parents"].append("later")
    assert (parsed["metadata"], parsed["parents"]) == ({"a": {"b": [{"c": 1}]}}, ["k"])


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
    assert any(found.startswith(problem) for found in validate_reference(reference))
    with pytest.raises(InvalidReference, match="not a reference to a stored artifact"):
        parse_reference(reference)


def test_every_problem_is_named_at_once(reference: dict[str, Any]) -> None:
    del reference["key"]
    reference["attempt"] = "0"
    assert validate_reference(reference) == ["key: missing", "attempt: expected int, found str"]
    assert validate_reference(["key"]) == ["expected a dict, found list"]


def test_the_gang_is_a_text(reference: dict[str, Any]) -> None:
    assert validate_reference({**reference, "gang": "F/1/train/2"}) == []
    assert validate_reference({**reference, "gang": 3}) == ["gang: expected str, found int"]


def test_a_reference_with_nan_and_infinities_is_valid_and_passes_through_json(reference: dict[str, Any]) -> None:
    reference["metadata"] = normalise_metadata({"loss": float("nan"), "history": [1.0, float("-inf")]})
    assert validate_reference(reference) == []
    again = json.loads(json.dumps(parse_reference(reference)))
    assert repr(again) == repr(reference)


class Colour(str, enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    LOW = 1


class Tensor:
    """As TensorFlow's: no item(), but numpy()."""

    def __init__(self, value: np.ndarray[Any, Any]) -> None:
        self.value, self.dtype, self.shape = value, value.dtype, value.shape

    def numpy(self) -> Any:
        return self.value


# Each value of metadata with what it becomes in JSON. None of these is worth a warning, and warnings are errors here.
PLAIN: dict[str, tuple[Any, Any]] = {
    "float32": (np.float32(0.5), 0.5),
    "int64": (np.int64(3), 3),
    "bool": (np.bool_(True), True),
    "array without dimensions": (np.array(2.0), 2.0),
    "longdouble": (np.longdouble(1.5), 1.5),
    "float16": (np.float16(0.5), 0.5),
    "tensor": (Tensor(np.array(7)), 7),
    "nan": (np.float64("nan"), float("nan")),
    "infinities": ([float("inf"), -np.inf], [float("inf"), float("-inf")]),
    "tuple": ((1, 2), [1, 2]),
    "nested": ({"a": [np.float64(1.5), None, "x"]}, {"a": [1.5, None, "x"]}),
    "keys": (
        {0: "a", True: "b", None: "c", 2.5: "d", (1, 2): "e"},
        {"0": "a", "True": "b", "None": "c", "2.5": "d", "(1, 2)": "e"},
    ),
    "enum": ([Colour.RED, Level.LOW], ["red", 1]),
    "date": (date(2026, 1, 2), "2026-01-02"),
    "datetime": (datetime(2026, 1, 2, 3, 4, 5, 6, timezone.utc), "2026-01-02T03:04:05.000006+00:00"),
    "time": (time(3, 4), "03:04:00"),
    "datetime64": (np.datetime64("2026-01-02T03:04:05", "ns"), "2026-01-02T03:04:05.000000000"),
}


@pytest.mark.parametrize(("given", "expected"), PLAIN.values(), ids=PLAIN)
def test_metadata_comes_back_as_numbers_lists_and_text(given: Any, expected: Any) -> None:
    got = normalise_metadata({"value": given})
    assert repr(got) == repr({"value": expected})
    assert repr(json.loads(json.dumps(got))) == repr(got)
    assert repr(normalise_metadata(got)) == repr(got)


def test_no_metadata_is_an_empty_dict() -> None:
    assert normalise_metadata(None) == {}


class Silent:
    def __str__(self) -> str:
        raise ValueError("no text")

    def __repr__(self) -> str:
        raise ValueError("no text")


class Unreadable(Mapping[str, int]):
    def __getitem__(self, key: str) -> int:
        raise OSError("gone")

    def __iter__(self) -> Iterator[str]:
        raise OSError("gone")

    def __len__(self) -> int:
        return 1

    def __repr__(self) -> str:
        return "Unreadable()"


class NoShape:
    dtype = "float32"

    @property
    def shape(self) -> tuple[int, ...]:
        raise RuntimeError("freed")

    def __repr__(self) -> str:
        return "NoShape()"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (b"x", "b'x'"),
        (bytearray(b"x"), "bytearray(b'x')"),
        (PurePosixPath("/a/b"), "/a/b"),
        ({1}, "{1}"),
        (Decimal("0.10"), "0.10"),
        (Fraction(1, 3), "1/3"),
        (timedelta(seconds=5), "0:00:05"),
        (np.timedelta64(5, "s"), "5 seconds"),
        (1j, "1j"),
        (np.complex128(1j), "1j"),
        (np.zeros(2), "[0. 0.]"),
        (1 << 5000, hex(1 << 5000)),
        (Silent(), "Silent"),
        (Unreadable(), "Unreadable()"),
        (NoShape(), "NoShape()"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_json_cannot_hold_becomes_text_with_a_warning(value: object, text: str) -> None:
    with pytest.warns(ArtifactWarning, match=re.escape("metadata['a']['b'][1]")) as caught:
        assert normalise_metadata({"a": {"b": [1, value]}, "c": 1}) == {"a": {"b": [1, text]}, "c": 1}
    assert len(caught) == 1
    assert caught[0].filename == __file__


def test_one_warning_names_the_first_members_and_counts_the_rest() -> None:
    with pytest.warns(ArtifactWarning) as caught:
        normalise_metadata({f"m{n}": b"x" for n in range(8)})
    (warning,) = caught
    assert str(warning.message) == (
        "JSON cannot hold some of the metadata as it is: metadata['m0'] (bytes: stored as text), "
        "metadata['m1'] (bytes: stored as text), metadata['m2'] (bytes: stored as text), "
        "metadata['m3'] (bytes: stored as text), metadata['m4'] (bytes: stored as text) and 3 more"
    )


def test_of_two_keys_with_one_text_the_later_is_stored_with_a_warning() -> None:
    with pytest.warns(ArtifactWarning, match=r"metadata\['1'\] \(two keys with this text"):
        assert normalise_metadata({1: "int", "1": "text"}) == {"1": "text"}  # type: ignore[dict-item]
    with pytest.warns(ArtifactWarning, match="two keys"):
        # Two halves of a character, and that character: one text in JSON.
        assert normalise_metadata({"\ud83d\ude00": 1, "\U0001f600": 2}) == {"\U0001f600": 2}


def test_what_contains_itself_is_cut_there() -> None:
    metadata: dict[str, Any] = {"a": 1, "shared": [[]]}
    # Twice the same is no circle.
    metadata["again"] = metadata["shared"]
    metadata["self"] = [metadata, metadata]
    with pytest.warns(ArtifactWarning, match=r"metadata\['self'\]\[0\] \(which contains itself"):
        got = normalise_metadata(metadata)
    assert got["shared"] == got["again"] == [[]]
    assert [type(item) for item in got["self"]] == [str, str]


@pytest.mark.parametrize("levels", [MAX_DEPTH, MAX_DEPTH + 1, 500, 100_000])
def test_what_is_nested_too_deeply_is_cut_to_what_an_artifact_may_have(levels: int) -> None:
    inner: dict[str, Any] = {}
    for _ in range(levels - 1):
        inner = {"d": inner}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        got = normalise_metadata(inner)
    assert depth(got) == min(levels, MAX_DEPTH)
    assert len(caught) == (levels > MAX_DEPTH)
    while inner:
        inner = inner.pop("d")


def test_metadata_whose_entries_cannot_be_read_is_empty_with_a_warning() -> None:
    with pytest.warns(ArtifactWarning, match=r"metadata \(Unreadable"):
        assert normalise_metadata(Unreadable()) == {}


@pytest.mark.parametrize("metadata", [[1], "text", 3, object()])
def test_metadata_that_is_no_mapping_is_refused(metadata: Any) -> None:
    with pytest.raises(InvalidInput, match="metadata: expected a dict, found"):
        normalise_metadata(metadata)


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters())
    | st.text(st.sampled_from("a\ud83d\ude00"))
    | st.binary()
    | st.dates()
    | st.decimals()
    | st.builds(object),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.sampled_from("1\ud83d\ude00")) | st.integers(), inner),
)


@given(st.dictionaries(st.text() | st.integers(0, 3) | st.binary(), ANYTHING))
def test_normalised_metadata_passes_through_json_unchanged(metadata: dict[Any, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        got = normalise_metadata(metadata)
    pairs: list[list[tuple[str, Any]]] = []
    again = json.loads(json.dumps(got), object_pairs_hook=lambda found: pairs.append(found) or dict(found))
    assert repr(again) == repr(got)
    assert all(len(dict(found)) == len(found) for found in pairs)
    assert repr(normalise_metadata(got)) == repr(got)
