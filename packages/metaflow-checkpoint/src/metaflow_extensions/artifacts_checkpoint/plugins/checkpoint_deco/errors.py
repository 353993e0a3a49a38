"""Errors of this package, below those of core."""

from __future__ import annotations

from metaflow_artifacts.plugin import UsageError

__all__ = ["NoDirectory", "NoTask"]


class NoTask(UsageError, ValueError):
    """A call that needs a task with `@checkpoint`, made where none runs."""


class NoDirectory(UsageError, ValueError):
    """A call without `path` on a `Checkpoint` that has no directory of its own."""
