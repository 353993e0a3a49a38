"""The arguments after `path` in a save are told apart by their types, in any order and mixed with keywords."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metaflow_artifacts import UsageError
from metaflow_extensions.artifacts_checkpoint.plugins.checkpoint_deco.arguments import save_arguments

M = {"epoch": 3}


@pytest.mark.parametrize(
    ("positional", "keywords", "expected"),
    [
        ((), {}, (None, None, None)),
        # current.checkpoint.save(path, name, metadata, latest)
        (("best",), {}, ("best", None, None)),
        (("best", M), {}, ("best", M, None)),
        (("best", M, False), {}, ("best", M, False)),
        ((None, M), {}, (None, M, None)),
        ((None, None, False), {}, (None, None, False)),
        (("best",), {"metadata": M}, ("best", M, None)),
        (("best",), {"latest": False}, ("best", None, False)),
        # Checkpoint.save(path, metadata, latest, name)
        ((M,), {}, (None, M, None)),
        ((M, False), {}, (None, M, False)),
        ((M, False, "best"), {}, ("best", M, False)),
        ((None, False), {}, (None, None, False)),
        ((M,), {"name": "best"}, ("best", M, None)),
        # Combinations of both orders, and unusual values.
        ((False,), {}, (None, None, False)),
        (({},), {}, (None, {}, None)),
        ((), {"name": "best", "metadata": M, "latest": True}, ("best", M, True)),
        ((), {"name": None, "metadata": None, "latest": None}, (None, None, None)),
        ((M,), {"metadata": None}, (None, M, None)),
        ((np.bool_(False),), {}, (None, None, False)),
        ((), {"latest": np.bool_(False)}, (None, None, False)),
        ((), {"latest": 0}, (None, None, False)),
        ((np.str_("best"),), {}, ("best", None, None)),
        (("",), {}, ("", None, None)),
    ],
)
def test_each_call_means_one_thing(positional: tuple[Any, ...], keywords: dict[str, Any], expected: Any) -> None:
    got = save_arguments(positional, **keywords)
    assert tuple(got) == expected
    assert got.latest is None or type(got.latest) is bool


@pytest.mark.parametrize(
    ("positional", "keywords", "message"),
    [
        (("best", "last"), {}, "name is given twice, 'best' and 'last'"),
        (("best",), {"name": "best"}, "name is given twice"),
        ((M, {}), {}, "metadata is given twice, {'epoch': 3} and {}"),
        ((M,), {"metadata": M}, "metadata is given twice"),
        ((True, True), {}, "latest is given twice"),
        ((False,), {"latest": True}, "latest is given twice"),
        ((3,), {}, r"3 \(int\) is neither a name"),
        ((0,), {}, r"0 \(int\) is neither a name"),
        ((Path("x"),), {}, "is neither a name"),
        (([M],), {}, "is neither a name"),
        ((np.zeros(2, bool),), {}, "is neither a name"),
        ((), {"name": 3}, r"name is a str, found 3 \(int\)"),
        ((), {"name": M}, "name is a str"),
        ((), {"metadata": "best"}, r"metadata is a dict, found 'best' \(str\)"),
        ((), {"metadata": [1]}, "metadata is a dict"),
        ((), {"latest": "False"}, r"latest is a bool, found 'False' \(str\)"),
        ((), {"latest": 2}, "latest is a bool"),
    ],
)
def test_a_wrong_argument_is_named(positional: tuple[Any, ...], keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as raised:
        save_arguments(positional, **keywords)
    assert "\n" not in str(raised.value)


@given(
    st.fixed_dictionaries(
        {}, optional={"name": st.text(), "metadata": st.dictionaries(st.text(), st.integers()), "latest": st.booleans()}
    ),
    st.integers(0, 3),
)
def test_every_order_and_every_mix_with_keywords_gives_the_same(given_: dict[str, Any], nones: int) -> None:
    expected = save_arguments((), **given_)
    for count in range(len(given_) + 1):
        for chosen in itertools.combinations(given_, count):
            keywords = {kind: value for kind, value in given_.items() if kind not in chosen}
            for order in itertools.permutations(chosen):
                values = [given_[kind] for kind in order]
                values[nones:nones] = [None] * nones
                assert save_arguments(values, **keywords) == expected
