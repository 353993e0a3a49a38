"""Errors inside a flow: Metaflow shows the message and where it happened, without the traceback of our code.

Metaflow prints a `MetaflowException` as a headline and a message, and anything else as an internal error with
its traceback. An `ArtifactError` that leaves a wrapped function becomes both, so that `except
ArtifactNotFound` goes on working and nobody has to read through our frames to find the sentence.
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, ParamSpec, TypeVar

from metaflow.exception import MetaflowException

from metaflow_artifacts.errors import ArtifactError

__all__ = ["in_flow", "in_hook", "shown"]

P = ParamSpec("P")
R = TypeVar("R")

_OURS = re.compile(r"metaflow_artifacts(\.|$)|metaflow_extensions\.artifacts_")
_BETWEEN = re.compile(r"contextlib$|functools$|concurrent\.futures(\.|$)")
_METAFLOWS = re.compile(r"metaflow(\.|$)")


def in_flow(function: Callable[P, R]) -> Callable[P, R]:
    """Wrap what users call: an ArtifactError is shown by Metaflow while a task runs."""

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        with shown(always=False):
            return function(*args, **kwargs)

    return wrapper


def in_hook(function: Callable[P, R]) -> Callable[P, R]:
    """Wrap what Metaflow calls (`step_init`, `task_pre_step`, …): an ArtifactError is shown by Metaflow."""

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        with shown(always=True):
            return function(*args, **kwargs)

    return wrapper


@contextmanager
def shown(*, always: bool = True) -> Iterator[None]:
    """Let Metaflow show an ArtifactError that leaves the block; with `always=False`, while a task runs."""
    try:
        yield
    except ArtifactError as error:
        if not isinstance(error, MetaflowException) and (always or _task_runs()):
            _become_shown(error)
        raise


def _task_runs() -> bool:
    from metaflow.metaflow_current import current

    return bool(current.is_running_flow)


def _become_shown(error: ArtifactError) -> None:
    file, line = _user_frame(sys._getframe(1))
    # The object stays the same, with its traceback and cause: what Metaflow looks for is added.
    error.__class__ = _shown_class(type(error))  # type: ignore[arg-type]  # mypy: classes are not Hashable
    vars(error).update(source_file=file, line_no=line)


def _user_frame(frame: FrameType | None) -> tuple[str | None, int | None]:
    """File and line of the first caller that is not ours; none where that is Metaflow."""
    while frame is not None:
        module = str(frame.f_globals.get("__name__", ""))
        if _METAFLOWS.match(module):
            break
        if not _OURS.match(module) and not _BETWEEN.match(module):
            return frame.f_code.co_filename, frame.f_lineno
        frame = frame.f_back
    return None, None


@functools.cache
def _shown_class(original: type[ArtifactError]) -> type[ArtifactError]:
    def message(self: ArtifactError) -> str:
        return original.__str__(self)

    def reduce(self: ArtifactError) -> tuple[Any, ...]:
        # Pickled as what it was: the class here cannot be imported, and Metaflow may not be there.
        return original, self.args

    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", original.__name__).capitalize()
    namespace = {
        "__doc__": original.__doc__,
        "__module__": original.__module__,
        "__qualname__": original.__qualname__,
        "__reduce__": reduce,
        "__str__": message,
        "headline": words,
        "message": property(message),
    }
    return type(original.__name__, (original, MetaflowException), namespace)
