"""Errors in a flow: Metaflow prints their message and the user's line, without a traceback through our code.

Metaflow prints a `MetaflowException` as a headline and a message, and any other error as an internal error with its
traceback. An `ArtifactError` that leaves a wrapped function is made an instance of both classes. `except
ArtifactNotFound` still works, and Metaflow prints one line. `@catch` prints and keeps the traceback of an error and of
its causes: of our frames, only the one of the wrapped function is left in them.
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from metaflow.exception import MetaflowException

# Every Metaflow process imports this module. The errors are imported when there is one.
if TYPE_CHECKING:
    from metaflow_artifacts.errors import ArtifactError

__all__ = ["in_flow", "in_hook", "is_ours", "shown"]

P = ParamSpec("P")
R = TypeVar("R")

_OUR_MODULES = ("metaflow_artifacts.", "metaflow_extensions.artifacts_")
_LIBRARY_MODULES = ("contextlib.", "functools.", "concurrent.futures.")
_METAFLOW_MODULES = ("metaflow.",)
"""Each is the begin of the names of some modules, with a dot at their end."""


def in_flow(function: Callable[P, R]) -> Callable[P, R]:
    """Wrap a function that users call: while a task runs, Metaflow prints only the message of an ArtifactError."""
    return _showing(function, _task_runs)


def in_hook(function: Callable[P, R]) -> Callable[P, R]:
    """Wrap a hook (`step_init`, `task_pre_step`, …): Metaflow prints only the message of an ArtifactError."""
    return _showing(function, lambda: True)


def _showing(function: Callable[P, R], is_wanted: Callable[[], bool]) -> Callable[P, R]:
    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except Exception as error:
            from metaflow_artifacts.errors import ArtifactError

            if not isinstance(error, ArtifactError) or not is_wanted():
                raise
            _become_shown(error)
            _forget_frames(error)
            raise error from error.__cause__

    return wrapper


def _forget_frames(error: BaseException) -> None:
    """Drop the tracebacks of an error and its causes, so that the error's own begins where it is raised again."""
    links: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in links:
        link.__traceback__ = None
        links.append(link)
        link = link.__cause__ or link.__context__


@contextmanager
def shown(*, always: bool = True) -> Iterator[None]:
    """Convert an ArtifactError that leaves the block, so that Metaflow prints its message and not a traceback.

    With `always=False`, this is done only while a task runs in this process.
    """
    try:
        yield
    except Exception as error:
        from metaflow_artifacts.errors import ArtifactError

        if isinstance(error, ArtifactError) and (always or _task_runs()):
            _become_shown(error)
        raise


def _task_runs() -> bool:
    from metaflow.metaflow_current import current

    return bool(current.is_running_flow)


def _become_shown(error: ArtifactError) -> None:
    if isinstance(error, MetaflowException):
        return
    file, line = _user_frame(sys._getframe(1))
    # It stays the same object, with its cause; only what Metaflow looks for is added.
    error.__class__ = _shown_class(type(error))  # type: ignore[arg-type]  # mypy: classes are not Hashable
    vars(error).update(source_file=file, line_no=line)


def is_ours(frame: FrameType) -> bool:
    """Whether a frame runs code of core or of a decorator package."""
    return _module_of(frame).startswith(_OUR_MODULES)


def _module_of(frame: FrameType) -> str:
    """The name of the module that a frame runs, and a dot."""
    return f"{frame.f_globals.get('__name__', '')}."


def _user_frame(frame: FrameType | None) -> tuple[str | None, int | None]:
    """File and line of the first caller outside of our code; (None, None) if that is Metaflow."""
    while frame is not None:
        module = _module_of(frame)
        if module.startswith(_METAFLOW_MODULES):
            break
        if not module.startswith((*_OUR_MODULES, *_LIBRARY_MODULES)):
            return frame.f_code.co_filename, frame.f_lineno
        frame = frame.f_back
    return None, None


@functools.cache
def _shown_class(original: type[ArtifactError]) -> type[ArtifactError]:
    def message(self: ArtifactError) -> str:
        return original.__str__(self)

    def reduce(self: ArtifactError) -> tuple[Any, ...]:
        # It is pickled with its original class: the class made here cannot be imported, and Metaflow may be missing.
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
