"""Which checkpoints a task may resume from when it starts, the best first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from metaflow_artifacts.plugin import ArtifactError, UsageError

if TYPE_CHECKING:
    # Every process of a flow checks the policy, those that make its cards too; few of them use a store.
    from metaflow_artifacts.plugin import ModelArtifact, TaskIdentity

__all__ = ["POLICIES", "candidates", "check_policy", "of_any_run"]

POLICIES = ("fresh", "eager", "none")


def check_policy(policy: object, step: str) -> str:
    """The `load_policy` of a step, with None as `none`. Raises UsageError for a policy that does not exist.

    With `--with` on the command line, None is a text.
    """
    if policy is None or policy == "None" or policy == "null":
        return "none"
    if not isinstance(policy, str) or policy not in POLICIES:
        raise UsageError(
            f"step {step}: @checkpoint(load_policy={policy!r}) does not exist; choose 'fresh', 'eager' or 'none'"
        )
    return policy


def candidates(policy: str, task: TaskIdentity, on_damage: Callable[[ArtifactError], None]) -> Iterator[ModelArtifact]:
    """The checkpoints that the task may resume from under a policy, the best first.

    They are looked up one by one, as the iterator is advanced. `on_damage` is called for each damaged one, which is
    skipped.
    """
    if policy == "none":
        return
    from metaflow_artifacts.plugin import latest_checkpoints

    # The task's own checkpoints come first under every policy: another run may save at the same time.
    if task.attempt:
        yield from latest_checkpoints(
            task.store(),
            task.checkpoint_place(),
            id=task.id,
            pathspec=task.owner,
            before_attempt=task.attempt,
            on_damage=on_damage,
        )
    if policy == "eager":
        yield from of_any_run(task, on_damage)


def of_any_run(task: TaskIdentity, on_damage: Callable[[ArtifactError], None]) -> Iterator[ModelArtifact]:
    """The checkpoints that other tasks at the same place in the flow have saved, in any run, newest first."""
    from metaflow_artifacts.plugin import latest_checkpoints, task_of

    for artifact in latest_checkpoints(task.store(), task.checkpoint_place(), on_damage=on_damage):
        if task_of(artifact) != task.owner:
            yield artifact
