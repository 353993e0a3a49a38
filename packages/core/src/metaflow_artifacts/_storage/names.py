"""Which keys a storage accepts: one rule for all backends, so that a store can be copied to any other."""

from __future__ import annotations

import re

from metaflow_artifacts._layout import PROBE, TEMPORARY
from metaflow_artifacts.errors import InvalidReference

__all__ = ["PROBE", "TEMPORARY", "check_key", "check_prefix", "is_key"]

# A part is a file name on a disk (255 bytes there), a whole key one on S3 (1024 bytes with the root's prefix).
_MAX_PART_CHARS = 255
_MAX_KEY_CHARS = 800
# Nearly all keys are like this. The others are looked at part by part, which tells what is wrong with them.
_COMMON = re.compile(r"[A-Za-z0-9%_-][A-Za-z0-9%._-]{0,254}(?:/[A-Za-z0-9%_-][A-Za-z0-9%._-]{0,254})*", re.ASCII)


def _fault(key: str) -> str | None:
    if not isinstance(key, str):
        return f"is a {type(key).__name__}, not a string"
    if not key:
        return "is empty"
    if len(key) > _MAX_KEY_CHARS:
        return f"has {len(key)} characters, at most {_MAX_KEY_CHARS} are allowed"
    if _COMMON.fullmatch(key):
        return None
    if not key.isascii() or not key.isprintable() or "\\" in key:
        return "holds a backslash, or characters other than printable ASCII"
    for part in key.split("/"):
        if not part:
            return "has an empty part (it starts or ends with '/', or holds '//')"
        if part in {".", ".."}:
            return f"has a part {part!r}"
        if len(part) > _MAX_PART_CHARS:
            return f"has a part of {len(part)} characters, at most {_MAX_PART_CHARS} are allowed"
    return None


def is_key(key: str) -> bool:
    """Whether a storage could hold an object of this key."""
    return _fault(key) is None


def _shown(key: object) -> str:
    text = repr(key)
    return text if len(text) <= 120 else text[:100] + "..." + text[-1]


def check_key(key: str, *, writing: bool = False) -> None:
    """Raise InvalidReference unless `key` is one that every storage can hold below its root.

    With `writing`, keys of temporary objects are refused as well.
    """
    fault = _fault(key)
    if fault is None and writing and key.startswith(TEMPORARY):
        fault = f"lies below {TEMPORARY!r}, which is for temporary objects"
    if fault is not None:
        raise InvalidReference(f"storage key {_shown(key)} {fault}; keys are relative, '/'-separated ASCII")


def check_prefix(prefix: str) -> None:
    """Raise InvalidReference where no key can start with `prefix`; an empty one is the start of all keys."""
    key = prefix
    if isinstance(prefix, str) and prefix.rpartition("/")[2] in {"", ".", ".."}:
        # Keys can start with 'a/', 'a/.' and 'a/..', but not with 'a//' and '../'.
        key += "x"
    fault = _fault(key)
    if fault is not None:
        raise InvalidReference(f"storage prefix {_shown(prefix)} {fault}; keys are relative, '/'-separated ASCII")
