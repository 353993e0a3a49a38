"""The arguments of `@checkpoint`, checked before a run starts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import metaflow  # noqa: F401  # Has to come first: it imports the decorators.
import pytest
from metaflow.exception import MetaflowException

from metaflow_artifacts import ArtifactError
from metaflow_extensions.artifacts_checkpoint.plugins.checkpoint_deco.decorator import CheckpointDecorator

Decorator: Any = CheckpointDecorator


def initialised(kind: str = "local", **attributes: Any) -> Any:
    """The decorator after the hooks that Metaflow calls before a run."""
    decorator = Decorator(attributes)
    datastore = SimpleNamespace(TYPE=kind, datastore_root="/there")
    decorator.step_init(None, None, "train", [], None, datastore, lambda *_, **__: None)
    return decorator


@pytest.mark.parametrize(
    ("given", "policy"), [("eager", "eager"), ("None", "none"), (None, "none"), ("none", "none")], ids=repr
)
def test_a_policy_from_the_command_line_reaches_the_task(given: object, policy: str) -> None:
    decorator = initialised(load_policy=given, temp_dir_root="None", show_card="False", per_node="False")
    assert (decorator._policy, decorator._temp_dir_root, decorator._per_node) == (policy, None, False)
    # Metaflow leaves out of --with what is None.
    spec = decorator.make_decorator_spec().partition(":")[2]
    attributes = Decorator.parse_decorator_spec(spec).attributes
    assert initialised(**attributes)._policy == policy


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({"load_policy": ""}, "@checkpoint(load_policy='') does not exist"),
        ({"load_policy": "Fresh"}, "@checkpoint(load_policy='Fresh') does not exist"),
        ({"temp_dir_root": 5}, "@checkpoint(temp_dir_root=5): expected a path (str or os.PathLike), found int"),
        ({"show_card": "nope"}, "@checkpoint(show_card='nope'): expected True or False"),
        ({"kind": "gs"}, "the root '/there' of the datastore gs names no bucket; set METAFLOW_DATASTORE_SYSROOT_GS to"),
    ],
)
def test_a_mistake_is_an_error_that_metaflow_shows(attributes: dict[str, Any], words: str) -> None:
    with pytest.raises(ArtifactError) as raised:
        initialised(**attributes)
    assert str(raised.value).startswith("step train")
    assert words in str(raised.value)
    assert isinstance(raised.value, MetaflowException)


def test_the_attempt_that_catch_runs_without_the_steps_code_loads_nothing() -> None:
    decorator = initialised()
    decorator.task_pre_step("train", None, None, "1", "2", None, None, 3, 2, None, None)
    assert decorator._checkpoint is None
    assert decorator.task_decorate(len, None, None, 3, 2, None) is len
