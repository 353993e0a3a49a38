"""Errors of other packages as text for our messages."""

from __future__ import annotations

import re

__all__ = ["one_line"]


def one_line(error: BaseException) -> str:
    """The message of an error as one line, without addresses: an address can contain a signature."""
    return re.sub(r"https?://\S+", "…", " ".join(str(error).split()))[:200]
