"""Log lines of the decorators, in the task's log and in a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

__all__ = ["Log"]


class Log:
    """Writes lines that start with `[@<decorator>] `.

    `logger` is the one that Metaflow gives to `step_init`; without one, lines go to standard error.
    """

    def __init__(self, decorator: str, logger: Callable[..., Any] | None = None) -> None:
        self.prefix = f"[@{decorator}] "
        self._logger = logger

    def __call__(self, message: str) -> None:
        """Write `message`; its further lines, if any, come without the prefix."""
        if self._logger is None:
            print(self.prefix + message, file=sys.stderr, flush=True)
        else:
            self._logger(self.prefix + message, timestamp=False)

    def warning(self, message: str) -> None:
        """Write `message` so that it stands out where the terminal has colours."""
        if self._logger is None:
            self("Warning: " + message)
        else:
            self._logger(f"{self.prefix}Warning: {message}", timestamp=False, bad=True)
