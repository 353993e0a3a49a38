"""Arguments of decorators mean the same in the source of a flow, in a Config and as text of `--with`."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import metaflow  # noqa: F401  # Has to come first: it imports the decorators.
import pytest
from metaflow.decorators import StepDecorator

from metaflow_artifacts import UsageError
from metaflow_artifacts._mf.arguments import ArgumentReader, read_text


class Deco(StepDecorator):
    name = "deco"
    defaults = {"load": None, "policy": "fresh", "root": None, "card": True, "effort": False, "grace": None}  # noqa: RUF012


Decorator: Any = Deco


def reader(**attributes: Any) -> ArgumentReader:
    return ArgumentReader(Decorator(attributes), "train")


def through_the_command_line(**attributes: Any) -> ArgumentReader:
    """What a task reads of a decorator that was given with `--with`."""
    spec = Decorator(attributes).make_decorator_spec()
    return ArgumentReader(Decorator.parse_decorator_spec(spec.partition(":")[2]), "train")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("word", "word"),
        ("org/name", "org/name"),
        ("None", None),
        ("null", None),
        (" ", None),
        ('["a", "b"]', ["a", "b"]),
        ("['a', ('b', './path')]", ["a", ("b", "./path")]),
        ('{"repo_id": "a", "force_download": true}', {"repo_id": "a", "force_download": True}),
        ("{'repo_id': 'a', 'token': None}", {"repo_id": "a", "token": None}),
        ('"word"', "word"),
        ("()", ()),
    ],
)
def test_a_text_is_what_it_says(text: str, value: object) -> None:
    assert read_text(text) == value


@pytest.mark.parametrize("text", ["[hf_x, b]", '["hf_x"', "{a: hf_x}", "(open('hf_x'))"])
def test_a_text_that_begins_like_json_and_is_none_is_an_error(text: str) -> None:
    with pytest.raises(UsageError, match=r"^step train: @deco\(load=.*neither JSON nor a literal of Python") as raised:
        reader(load=text).value("load")
    assert "\n" not in str(raised.value)
    with pytest.raises(UsageError) as hidden:
        reader(load=text).value("load", secret=True)
    assert "hf_x" not in str(hidden.value)


@pytest.mark.parametrize("name", ["card", "effort"])
def test_flags(name: str) -> None:
    for value in (True, "True", "true", " TRUE ", 1, "1"):
        assert reader(**{name: value}).flag(name) is True
    for value in (False, "False", "false", 0, "0"):
        assert reader(**{name: value}).flag(name) is False


@pytest.mark.parametrize("value", [None, "None", ""], ids=repr)
def test_none_is_the_default(value: object) -> None:
    given = reader(card=value, effort=value, policy=value, root=value, load=value)
    assert (given.flag("card"), given.flag("effort")) == (True, False)
    assert given.choice("policy", ("fresh", "eager")) == "fresh"
    assert given.path("root") is given.value("load") is None


@pytest.mark.parametrize("value", ["maybe", "nope", 2, [], {}, "[True]"])
def test_neither_true_nor_false_is_an_error(value: object) -> None:
    with pytest.raises(UsageError, match=r"^step train: @deco\(card=.*\): expected True or False$"):
        reader(card=value).flag("card")


def test_paths_are_texts_and_paths(tmp_path: Path) -> None:
    assert reader(root="scratch").path("root") == "scratch"
    assert reader(root=tmp_path).path("root") == str(tmp_path)


@pytest.mark.parametrize(
    ("value", "words"),
    [(5, r"found int; write './5' for a directory of this name"), (b"x", "found bytes"), (["x"], "found list")],
)
def test_no_path_is_an_error(value: object, words: str) -> None:
    with pytest.raises(UsageError, match=rf"@deco\(root=.*\): expected a path \(str or os.PathLike\), {words}"):
        reader(root=value).path("root")


def test_choices_are_named() -> None:
    assert reader(policy="eager").choice("policy", ("fresh", "eager")) == "eager"
    for wrong in ("eagre", 3, ["eager"]):
        with pytest.raises(UsageError, match=r"^step train: @deco\(policy=.*\): expected one of fresh, eager$"):
            reader(policy=wrong).choice("policy", ("fresh", "eager"))


def test_a_name_that_a_config_has_and_the_decorator_lacks_is_an_error() -> None:
    decorator = SimpleNamespace(name="deco", defaults={"load": None, "root": None}, attributes={"lod": "x"})
    with pytest.raises(UsageError, match=r"^@deco has no argument 'lod'; it has load, root$"):
        ArgumentReader(decorator)


def test_a_task_reads_what_the_command_line_gave() -> None:
    given = through_the_command_line(load=[["a", None], ["b", 'pa"th']], card=False, policy="none", effort=True)
    assert given.value("load") == [["a", None], ["b", 'pa"th']]
    assert (given.flag("card"), given.flag("effort")) == (False, True)
    assert given.choice("policy", ("fresh", "none")) == "none"
    assert given.path("root") is None


@pytest.mark.parametrize(("given", "seconds"), [(None, None), ("null", None), (20, 20.0), ("30", 30.0), (0.5, 0.5)])
def test_seconds(given: object, seconds: float | None) -> None:
    assert reader(grace=given).seconds("grace") == seconds
    assert through_the_command_line(grace=given).seconds("grace") == seconds


@pytest.mark.parametrize("given", [0, -1, "soon", True, "inf", "nan", [20]])
def test_what_is_no_number_of_seconds(given: object) -> None:
    with pytest.raises(UsageError, match=r"^step train: @deco\(grace=.*expected a number of seconds above 0"):
        reader(grace=given).seconds("grace")
