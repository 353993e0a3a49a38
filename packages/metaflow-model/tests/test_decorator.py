"""The arguments of `@model`, checked before a run starts."""

from __future__ import annotations

from collections import UserList
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import metaflow  # noqa: F401  # Has to come first: it imports the decorators.
import pytest
from metaflow.exception import MetaflowException

from metaflow_artifacts import ArtifactError
from metaflow_extensions.artifacts_model.plugins.model_deco.decorator import ModelDecorator

Decorator: Any = ModelDecorator


class Flow:
    reference = "a Parameter"


GRAPH = {"start": SimpleNamespace(in_funcs=[]), "train": SimpleNamespace(in_funcs=["start"])}


def initialised(step: str = "train", kind: str = "local", root: str = "/there", **attributes: Any) -> Any:
    """The decorator after the hooks that Metaflow calls before a run."""
    decorator = Decorator(attributes)
    datastore = SimpleNamespace(TYPE=kind, datastore_root=root)
    decorator.step_init(Flow(), GRAPH, step, [], None, datastore, lambda *_, **__: None)
    return decorator


@pytest.mark.parametrize(
    ("load", "entries"),
    [
        (None, None),
        ("None", None),
        ("", None),
        ("name", [["name", None]]),
        ('["a", "b"]', [["a", None], ["b", None]]),
        ('[["a", "./p"], "b"]', [["a", "./p"], ["b", None]]),
        ('[["a", null, "*.bin"]]', [["a", None, ["*.bin"]]]),
        ([("a", Path("p"), ["*.bin", "x,y:*"]), "b"], [["a", "p", ["*.bin", "x,y:*"]], ["b", None]]),
        ("('a', 'b')", [["a", None], ["b", None]]),
        ("[('a', './p')]", [["a", "./p"]]),
        # A Config object can have sequences of its own.
        (UserList(["a", UserList(["b", "./p"])]), [["a", None], ["b", "./p"]]),
    ],
    ids=repr,
)
def test_load_is_read_as_what_it_says(load: object, entries: object) -> None:
    decorator = initialised(load=load)
    assert decorator.attributes["load"] == entries
    # What --with hands to the task means the same there.
    spec = decorator.make_decorator_spec().partition(":")[2]
    attributes = Decorator.parse_decorator_spec(spec).attributes
    assert initialised(**attributes).attributes["load"] == entries


def test_other_arguments_are_read_as_what_they_say(tmp_path: Path) -> None:
    given = initialised(best_effort_load="False", temp_dir_root="None")
    assert (given._best_effort, given._temp_dir_root) == (False, None)
    given = initialised(best_effort_load="True", temp_dir_root=tmp_path)
    assert (given._best_effort, given._temp_dir_root) == (True, str(tmp_path))


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({"load": ("model", "./path")}, "found './path' (str), which is no name of an artifact or Parameter; write"),
        ({"load": "[a"}, "neither JSON nor a literal of Python"),
        ({"load": 5}, "takes a name, or a list of names, (name, path) and (name, path, pattern); found 5 (int)"),
        (
            {"load": [("a", None, [])]},
            "only: expected a pattern such as '*.safetensors', or a list of patterns, found []",
        ),
        (
            {"load": [("a", None, 5)]},
            "only: expected a pattern such as '*.safetensors', or a list of patterns, found 5",
        ),
        ({"load": [("a", "./p", "x", "y")]}, "found ('a', './p', 'x', 'y') (tuple) in the list"),
        ({"temp_dir_root": 5}, "@model(temp_dir_root=5): expected a path (str or os.PathLike), found int"),
        ({"best_effort_load": "maybe"}, "@model(best_effort_load='maybe'): expected True or False"),
        ({"kind": "hdfs", "root": "hdfs://bucket/x"}, "the datastore hdfs (hdfs://bucket/x) cannot keep models and"),
        ({"kind": "azure", "root": "container/x"}, "has no endpoint; set METAFLOW_AZURE_STORAGE_BLOB_SERVICE_ENDPOINT"),
        ({"step": "start", "load": "nope"}, "'nope' in @model(load=…) is not an artifact or Parameter of the flow"),
    ],
)
def test_a_mistake_is_an_error_that_metaflow_shows(attributes: dict[str, Any], words: str) -> None:
    with pytest.raises(ArtifactError) as raised:
        initialised(**attributes)
    message = str(raised.value)
    assert message.startswith(f"step {attributes.get('step', 'train')}")
    assert words in message
    assert "\n" not in message
    assert isinstance(raised.value, MetaflowException)


def test_the_first_step_has_parameters_and_what_spin_gives_it() -> None:
    assert initialised("start", load="reference").attributes["load"] == [["reference", None]]
    assert initialised("start", load="nope", best_effort_load=True).attributes["load"] == [["nope", None]]
    assert initialised("start", "spin", load="nope").attributes["load"] == [["nope", None]]
    # Any other step may find it among the artifacts.
    assert initialised("train", load="nope").attributes["load"] == [["nope", None]]
