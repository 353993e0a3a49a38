"""Identities of tasks in a store on disk, for tests without a run."""

from __future__ import annotations

from pathlib import Path

from metaflow_artifacts._mf.task import TaskIdentity


def task_in(root: Path, run: str = "1", task: str = "2", attempt: int = 0, place: str = "b" * 12) -> TaskIdentity:
    """A task of the step Flow/train, which writes to the store in `root`."""
    return TaskIdentity("Flow", run, "train", task, attempt, "a" * 12, place, "local", str(root))
