"""The errors of this package, below those of core."""

from __future__ import annotations

from metaflow_artifacts.plugin import UsageError

__all__ = ["NoDirectory", "NoTask"]


class NoTask(UsageError, ValueError):
    """A call that needs a task with `@checkpoint`, in a process that belongs to no such task."""


class NoDirectory(UsageError, ValueError):
    """A call without `path` on a `Checkpoint` that has no directory."""
