"""The text that foreach values are told apart by."""

from __future__ import annotations

import datetime
import decimal
import enum
import functools
import os
import subprocess
import sys
import uuid
from collections import OrderedDict, namedtuple
from pathlib import Path
from typing import Any

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metaflow_artifacts._mf.canonical import Unstable, canonical

Point = namedtuple("Point", "x y")
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=20
)


class Colour(enum.Enum):
    RED = 1


class Stateful:
    def __init__(self, **state: Any) -> None:
        self.__dict__.update(state)


def shuffled(value: Any) -> Any:
    """The same value, its dicts filled in the other order."""
    if isinstance(value, dict):
        return {key: shuffled(value[key]) for key in reversed(list(value))}
    return [shuffled(item) for item in value] if isinstance(value, list) else value


@given(VALUES)
def test_the_order_of_a_dict_does_not_matter(value: Any) -> None:
    assert canonical(value) == canonical(shuffled(value))


@given(VALUES, VALUES)
def test_different_values_have_different_texts(one: Any, other: Any) -> None:
    # repr tells all of these apart, but for the order of dicts.
    if repr(one) != repr(other) and one != other:
        assert canonical(one) != canonical(other)


DISTINCT = [
    1,
    1.0,
    True,
    "1",
    b"1",
    None,
    [1],
    {1},
    {"a": 1},
    {"a": {1, 2}},
    0.1,
    0.1 + 3e-17,
    float("inf"),
    Colour.RED,
    Point(1, 2),
    Path("/a"),
    datetime.date(2026, 1, 1),
    decimal.Decimal("1.0"),
    uuid.UUID(int=1),
    range(3),
    Stateful(a={"x": {1, 2, 3}}),
    Stateful(a={"x": {1, 2}}),
    Stateful,
    os.path.join,
    numpy.arange(3),
    numpy.arange(3.0),
    numpy.arange(4).reshape(2, 2),
    numpy.array(["a", None], dtype=object),
    "x" * 10_000,
    "x" * 9_999 + "y",
]


def test_each_kind_of_value_has_its_own_text() -> None:
    texts = [canonical(value) for value in DISTINCT]
    assert len(set(texts)) == len(DISTINCT)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (numpy.int64(3), 3),
        (numpy.float64(0.5), 0.5),
        (numpy.array(3), 3),
        (OrderedDict(b=1, a=2), {"a": 2, "b": 1}),
        ((1, 2), [1, 2]),
        (frozenset({1, 2}), {2, 1}),
    ],
)
def test_equal_values_have_the_same_text(one: object, other: object) -> None:
    assert canonical(one) == canonical(other)


def test_the_text_is_the_same_in_another_process() -> None:
    code = (
        "from metaflow_artifacts._mf.canonical import canonical\n"
        "import collections\n"
        "class Thing: pass\n"
        "thing = Thing(); thing.words = {'one', 'two', 'three', 'four'}\n"
        "print(canonical([thing, collections.Counter('banana'), {frozenset('ab'): 1, frozenset('cd'): 2}]))"
    )
    texts = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in range(4)
    }
    assert len(texts) == 1


def test_a_value_without_a_stable_text_is_refused() -> None:
    loop: list[object] = []
    loop.append(loop)
    deep: list[object] = []
    for _ in range(10_000):
        deep = [deep]
    with open(os.devnull) as file:
        for value in (loop, deep, file, lambda: 1, (item for item in ""), functools.partial(lambda: 1)):
            with pytest.raises(Unstable):
                canonical(value)
