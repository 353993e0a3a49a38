"""Every error this project raises on purpose, under one root.

```
ArtifactError
├── InvalidInput (ValueError)       an argument that breaks a rule: a label, name, path, root or grace period
│   └── InvalidReference            what is no key of an artifact, or no reference to one
├── ArtifactNotFound (LookupError)  nothing is stored at a well-formed key
├── CorruptArtifact                 what is stored is not what was saved
│   └── UnsupportedFormat           written by a later version of the format, or by another program
│       └── LaterFormat             written by a later version: upgrade
├── SourceError (OSError)           what is to be saved cannot be read
│   └── SourceNotFound (FileNotFoundError)   ... because nothing is at this path
├── TargetError (OSError)           the directory to load into cannot be written
├── StorageError                    the datastore refused or cannot be reached
│   └── TransientStorageError       ... and the same call may succeed if it is repeated
├── UsageError (RuntimeError)       a call that cannot work where it was made
├── SaveReplaced                    a save in the background was replaced by a later one, as that one asked for
└── SaveTimeout (TimeoutError)      a save in the background is not done yet
```

ArtifactWarning (UserWarning) is not an error: the call succeeded, except for the part that the message names.

Classes are grouped by what a caller would do about them. A message is one line: the key or path, what was
found there, and how to go on.
"""

from __future__ import annotations

import re
import sys
import warnings
from types import FrameType

__all__ = [
    "ArtifactError",
    "ArtifactNotFound",
    "ArtifactWarning",
    "CorruptArtifact",
    "InvalidInput",
    "InvalidReference",
    "LaterFormat",
    "SaveReplaced",
    "SaveTimeout",
    "SourceError",
    "SourceNotFound",
    "StorageError",
    "TargetError",
    "TransientStorageError",
    "UnsupportedFormat",
    "UsageError",
]


class ArtifactError(Exception):
    """Root of all errors raised by these packages."""


class InvalidInput(ArtifactError, ValueError):
    """An argument breaks a rule: a label, name, path, root, byte range or grace period. Nothing was changed."""


class InvalidReference(InvalidInput):
    """A value is not a well-formed key, or not a reference to an artifact. Nothing was changed."""


class ArtifactNotFound(ArtifactError, LookupError):
    """No artifact is stored at a well-formed key: deleted, never saved, or in another datastore."""


class CorruptArtifact(ArtifactError):
    """What is stored is not what was saved: a damaged manifest, or a chunk that is missing or changed."""


class UnsupportedFormat(CorruptArtifact):
    """The object at the key has a later format version, or is not in this format at all."""


class LaterFormat(UnsupportedFormat):
    """The object at the key was written by a later version of metaflow-artifacts. Nothing is damaged: upgrade."""


class SourceError(ArtifactError, OSError):
    """The file or directory to be saved does not exist, cannot be read, or changed while it was read."""


class SourceNotFound(SourceError, FileNotFoundError):
    """Nothing is at the path that is to be saved. Nothing was stored."""


class TargetError(ArtifactError, OSError):
    """The directory to load into is a file, a link that leads elsewhere, not writable, or full."""


class StorageError(ArtifactError):
    """The datastore refused a request or cannot be reached; the message says which credential, endpoint or bucket."""


class TransientStorageError(StorageError):
    """A request failed for a reason that may pass: a reset connection, a 503, a truncated body."""


class UsageError(ArtifactError, RuntimeError):
    """A call made where it cannot work, such as saving a checkpoint outside of a task."""


class SaveReplaced(ArtifactError):
    """A save in the background was not begun: a later one with `on_busy="replace"` has taken its place."""


class SaveTimeout(ArtifactError, TimeoutError):
    """A save in the background is not done after the seconds that the caller wanted to wait. It goes on."""


class ArtifactWarning(UserWarning):
    """The call succeeded, except for the part that the message names."""


_OURS = re.compile(r"(metaflow_artifacts|contextlib|functools)(\.|$)|metaflow_extensions\.artifacts_")


def warn(text: str) -> None:
    """Give an ArtifactWarning that points to the first caller that is not ours.

    Where the user has made warnings errors, it must not cost a save: it goes to standard error then.
    """
    level = 1
    frame: FrameType | None = sys._getframe(0)
    while frame is not None and _OURS.match(str(frame.f_globals.get("__name__", ""))):
        frame = frame.f_back
        level += 1
    try:
        warnings.warn(text, ArtifactWarning, stacklevel=level)
    except ArtifactWarning:
        print(f"ArtifactWarning: {text}\n", end="", file=sys.stderr)
