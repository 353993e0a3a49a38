"""The log lines of the decorators, in the task's log or on standard error."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

__all__ = ["Log"]

_UNWRITABLE = OSError, ValueError
"""Where whoever reads the log has ended, or it is closed: what was to be done goes on without the line."""


class Log:
    """Writes lines that start with `[@<decorator>] `.

    `logger` is the function that Metaflow gives to `step_init`. Without one, the lines go to standard error. So do
    those of a Log that was pickled: its logger belongs to another process.
    """

    def __init__(self, decorator: str, logger: Callable[..., Any] | None = None) -> None:
        self._decorator = decorator
        self.prefix = f"[@{decorator}] "
        self._logger = logger

    def __call__(self, message: str) -> None:
        """Write `message`. If it has several lines, only the first one has the prefix."""
        with suppress(*_UNWRITABLE):
            if self._logger is None:
                # With PYTHONUNBUFFERED, `print` would write the newline by itself, and lines of several processes mix.
                print(f"{self.prefix}{message}\n", end="", file=sys.stderr, flush=True)
            else:
                self._logger(self.prefix + message, timestamp=False)

    def warning(self, message: str) -> None:
        """Write `message` as a warning, which a terminal shows in red."""
        if self._logger is None:
            self("Warning: " + message)
            return
        with suppress(*_UNWRITABLE):
            self._logger(f"{self.prefix}Warning: {message}", timestamp=False, bad=True)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._decorator,)

    def __deepcopy__(self, memo: dict[int, Any]) -> Log:
        return self
