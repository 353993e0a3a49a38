"""What counts as the same, and which reasons are wrong."""

from __future__ import annotations

from typing import Any

import pytest
from comparison import compare, faults, needed, table_of, with_table


def call(rest: int | None = None, any_keyword: bool = False) -> dict[str, Any]:
    return {"is": "call", "rest": rest, "any keyword": any_keyword}


def argument(position: int | None, optional: bool = True) -> dict[str, Any]:
    return {"position": position, "optional": optional}


SAVE = {"save": call(), "save(path)": argument(1, False), "save(name)": argument(2)}


@pytest.mark.parametrize(
    ("here", "status"),
    [
        ({"save": call(), "save(name)": argument(2)}, "same"),
        ({"save": call(rest=2), "save(name)": argument(None)}, "same"),
        ({"save": call(), "save(name)": argument(3)}, "different"),
        ({"save": call(), "save(name)": argument(None)}, "different"),
        ({"save": call(rest=3), "save(name)": argument(None)}, "different"),
        ({"save": call(), "save(name)": argument(2, optional=False)}, "different"),
        ({"save": call(any_keyword=True)}, "different"),
        ({"save": call(rest=2, any_keyword=True)}, "same"),
        ({"save": call()}, "missing"),
        ({"save": {"is": "str"}}, "missing"),
        ({}, "missing"),
    ],
)
def test_an_argument_is_the_same_if_every_call_can_be_made(here: dict[str, Any], status: str) -> None:
    assert compare({"cp": SAVE}, {"cp": here}, {})[2].status == status


@pytest.mark.parametrize(
    ("here", "status"),
    [
        ({"info": {"is": "dict"}}, "same"),
        ({"info": {"is": "object"}}, "different"),
        ({"info": call()}, "different"),
        ({"information": {"is": "dict"}}, "missing"),
    ],
)
def test_a_property_is_the_same_if_it_is_of_the_same_kind(here: dict[str, Any], status: str) -> None:
    assert compare({"cp": {"info": {"is": "dict"}}}, {"cp": here}, {})[0].status == status


@pytest.mark.parametrize(
    ("here", "status"),
    [
        ({"raises": ["ValueError", "Exception"]}, "same"),
        ({"raises": ["RuntimeError", "ValueError", "Exception"]}, "same"),
        ({"raises": ["OSError", "Exception"]}, "different"),
        ({"gives": 1}, "different"),
    ],
)
def test_an_error_is_the_same_if_what_catches_theirs_catches_it(here: dict[str, Any], status: str) -> None:
    theirs = {"Calls: cp": {"save(1)": {"raises": ["ValueError", "Exception"]}}}
    assert compare(theirs, {"Calls: cp": {"save(1)": here}}, {})[0].status == status


def test_a_call_that_takes_any_keyword_must_take_any_here() -> None:
    theirs = {"hub": {"load": call(any_keyword=True)}}
    assert compare(theirs, {"hub": {"load": call()}}, {})[0].status == "different"
    assert compare(theirs, {"hub": {"load": call(rest=2, any_keyword=True)}}, {})[0].status == "same"


def test_a_group_that_is_not_here_is_missing() -> None:
    assert [row.status for row in compare({"cp": SAVE}, {}, {})] == ["missing"] * 3


def test_what_differs_needs_one_reason_and_what_does_not_needs_none() -> None:
    theirs = {"cp": {"a": {"is": "int"}, "b": {"is": "int"}, "c": {"is": "int"}}}
    here = {"cp": {"a": {"is": "int"}, "b": {"is": "str"}}}
    right = {"cp": {"it is a text.": ["b"], "nobody needs it.": ["c"]}}
    assert faults(compare(theirs, here, right), right) == []

    def told(reasons: dict[str, dict[str, list[str]]]) -> list[str]:
        return faults(compare(theirs, here, reasons), reasons)

    assert told({"cp": {"it is a text.": ["b"]}}) == ["cp: c is missing, without a reason"]
    assert told({}) == ["cp: b is different, without a reason", "cp: c is missing, without a reason"]
    assert told({"cp": {"no.": ["a", "b", "c"]}}) == ["cp: a is the same, but has a reason"]
    assert told({"cp": {"no.": ["b", "c", "d"]}}) == ["cp: d has a reason, but is no entry"]
    assert told({"cp": {"no.": ["b", "c"], "yes.": ["c"]}}) == ["cp: c has 2 reasons"]
    more = {"cp": {"it is a text.": ["a", "b"], "nobody needs it.": ["c"], "no.": ["a"]}, "model": {"no.": ["d"]}}
    assert needed(compare(theirs, here, more), more) == right


def test_the_table_shows_arguments_with_their_positions_and_reasons() -> None:
    theirs = {
        "cp": SAVE,
        "@checkpoint": {"load_policy": {"default": "fresh"}},
        "A reference to x": {"key": {"is": "str"}},
    }
    here = {
        "cp": {"save": call(), "save(path)": argument(1, False)},
        "@checkpoint": {"load_policy": {"default": "fresh"}},
    }
    reasons = {"cp": {"nothing has a name.": ["save(name)"]}, "A reference to x": {"no x.": ["key"]}}
    table = table_of(theirs, compare(theirs, here, reasons))
    assert table == (
        "5 entries: 3 same, 0 different, 2 missing.\n"
        "\n### `cp`\n| metaflow-checkpoint 0.2.14 | here |\n| --- | --- |\n"
        "| `save(path, name)`<br>`path` of `save`, argument 1 | same |\n"
        "| `name` of `save`, argument 2 | **missing**: nothing has a name. |\n"
        "\n### `@checkpoint`\n| metaflow-checkpoint 0.2.14 | here |\n| --- | --- |\n"
        "| `load_policy='fresh'` | same |\n"
        "\n### A reference to x\n| metaflow-checkpoint 0.2.14 | here |\n| --- | --- |\n"
        "| `key` | **missing**: no x. |\n"
    )


def test_the_table_replaces_the_one_on_the_page() -> None:
    page = "# Title\n<!-- table -->\nold\n<!-- end -->\nmore\n"
    assert with_table(page, "new \\1\n") == "# Title\n<!-- table -->\nnew \\1\n<!-- end -->\nmore\n"
    with pytest.raises(AssertionError, match="one <!-- table -->"):
        with_table("# Title\n", "new\n")
