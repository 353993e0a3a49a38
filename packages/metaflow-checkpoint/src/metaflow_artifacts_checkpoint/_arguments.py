"""Checks of the callbacks' arguments."""

from __future__ import annotations

from metaflow_artifacts.plugin import UsageError

__all__ = ["positive"]


def positive(value: object, what: str) -> int:
    """`value` as a number from 1. Raises UsageError."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UsageError(f"{what}: expected a number from 1, found {value!r}")
    return value
