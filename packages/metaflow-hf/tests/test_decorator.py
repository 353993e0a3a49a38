"""The arguments of `@huggingface_hub`, checked before a run starts."""

from __future__ import annotations

from collections import UserList
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import metaflow  # noqa: F401  # Has to come first: it imports the decorators.
import pytest
from metaflow.exception import MetaflowException

from metaflow_artifacts import ArtifactError
from metaflow_extensions.artifacts_hf.plugins.hf_deco.decorator import HuggingfaceHubDecorator

TOKEN = "hf_very_secret"

Decorator: Any = HuggingfaceHubDecorator


def initialised(kind: str = "local", in_source: bool = True, **attributes: Any) -> Any:
    """The decorator after the hooks that Metaflow calls before a run; `in_source` is False for `--with`."""
    decorator = Decorator(attributes, statically_defined=in_source)
    decorator.external_init()
    datastore = SimpleNamespace(TYPE=kind, datastore_root="/there")
    decorator.step_init(None, None, "train", [], None, datastore, lambda *_, **__: None)
    return decorator


@pytest.mark.parametrize(
    ("load", "entries"),
    [
        (None, []),
        ("None", []),
        ("org/name", [("org/name", None)]),
        ('["a", ["b", "./p"]]', [("a", None), ("b", "./p")]),
        ("[('a', './p'), {'repo_id': 'c', 'token': False}]", [("a", "./p"), ("c", None)]),
        ('{"repo_id": "a"}', [("a", None)]),
        # A tuple is a list, also of two repos.
        (("a", "b"), [("a", None), ("b", None)]),
        ([("a", Path("p"))], [("a", "p")]),
        # A Config object can have sequences of its own.
        (UserList(["a", UserList(["b", "./p"])]), [("a", None), ("b", "./p")]),
    ],
    ids=repr,
)
def test_load_is_read_as_what_it_says(load: object, entries: object) -> None:
    decorator = initialised(in_source=False, load=load)
    assert [(spec.request.repo_id, spec.path) for spec in decorator._specs] == entries
    # What --with hands to the task means the same there.
    spec = decorator.make_decorator_spec().partition(":")[2]
    attributes = Decorator.parse_decorator_spec(spec).attributes
    assert initialised(in_source=False, **attributes)._specs == decorator._specs


@pytest.mark.parametrize("token", [True, False, None])
def test_whether_a_token_is_sent_is_no_secret(token: bool | None) -> None:
    decorator = initialised(in_source=False, load=[{"repo_id": "a", "token": token}])
    assert decorator.attributes["load"] == [{"repo_id": "a", "token": token}]
    assert decorator._specs[0].request.token is token


@pytest.mark.parametrize(
    "load",
    [
        [{"repo_id": "a", "token": TOKEN}],
        [({"repo_id": "a", "headers": {"authorization": TOKEN}}, "./p")],
        {"repo_id": "a", "use_auth_token": TOKEN},
        f"[{{'repo_id': 'a', 'token': '{TOKEN}'}}]",
        f"[{{'repo_id': 'a', 'token': '{TOKEN}'",
    ],
    ids=["token", "headers", "use_auth_token", "text", "malformed"],
)
def test_a_token_on_the_command_line_is_refused_and_not_shown(load: Any) -> None:
    with pytest.raises(ArtifactError) as raised:
        initialised(in_source=False, load=load)
    assert TOKEN not in str(raised.value)
    assert isinstance(raised.value, MetaflowException)


def test_the_refusal_says_what_to_do() -> None:
    with pytest.raises(ArtifactError, match=r"load= on the command line has 'token', .*; set HF_TOKEN, or"):
        initialised(in_source=False, load=[{"repo_id": "a", "token": TOKEN}])


def test_a_token_in_the_source_reaches_the_task_and_no_attribute() -> None:
    decorator = initialised(load=[{"repo_id": "a", "token": TOKEN}])
    assert decorator._specs[0].request.token == TOKEN
    assert decorator.attributes["load"] == [{"repo_id": "a"}]


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({"cache_scope": "world"}, "@huggingface_hub(cache_scope='world'): expected one of checkpoint, flow, global"),
        ({"temp_dir_root": 5}, "@huggingface_hub(temp_dir_root=5): expected a path (str or os.PathLike), found int"),
        ({"show_card": "nope"}, "@huggingface_hub(show_card='nope'): expected True or False"),
        ({"load": ("org/name", "./path")}, "a pair goes into a list: load=[('org/name', './path')]"),
        ({"kind": "azure"}, "the root '/there' of the datastore azure names no container; set METAFLOW_DATASTORE_"),
    ],
)
def test_a_mistake_is_an_error_that_metaflow_shows(attributes: dict[str, Any], words: str) -> None:
    with pytest.raises(ArtifactError) as raised:
        initialised(**attributes)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)
    assert isinstance(raised.value, MetaflowException)
