"""Every error this project raises on purpose, under one root.

```
ArtifactError
├── InvalidReference (ValueError)   a key, reference, label, name or metadata that breaks a rule
├── ArtifactNotFound (LookupError)  nothing is stored at a well-formed key
├── CorruptArtifact                 what is stored is not what was saved
│   └── UnsupportedFormat           written by a later version of the format, or by something else
├── SourceError (OSError)           what is to be saved cannot be read
├── TargetError (OSError)           the place to load into cannot be written
├── StorageError                    the datastore refused or cannot be reached
│   └── TransientStorageError       ... and the same call may succeed when made again
└── UsageError (RuntimeError)       a call that makes no sense where it was made
```

ArtifactWarning (UserWarning) is no error: it tells of what was done otherwise than asked.

Classes are grouped by what a caller would do about them. A message is one line: the key or path, what was
found there, and the way out.
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
    "InvalidReference",
    "SourceError",
    "StorageError",
    "TargetError",
    "TransientStorageError",
    "UnsupportedFormat",
    "UsageError",
]


class ArtifactError(Exception):
    """Root of all errors raised by these packages."""


class InvalidReference(ArtifactError, ValueError):
    """A key, reference, label, checkpoint name or metadata value breaks a rule; nothing was changed."""


class ArtifactNotFound(ArtifactError, LookupError):
    """No artifact is stored at a well-formed key: deleted, never saved, or in another datastore."""


class CorruptArtifact(ArtifactError):
    """What is stored is not what was saved: a damaged manifest, or a chunk that is missing or changed."""


class UnsupportedFormat(CorruptArtifact):
    """The object at the key is of a later format version, or was not written by this format at all."""


class SourceError(ArtifactError, OSError):
    """The file or directory to be saved does not exist, cannot be read, or changed while it was read."""


class TargetError(ArtifactError, OSError):
    """The place to load into is a file, a link that leads elsewhere, not writable, or full."""


class StorageError(ArtifactError):
    """The datastore refused a request or cannot be reached; the message says which credential, endpoint or bucket."""


class TransientStorageError(StorageError):
    """A request failed in a way that passes: a reset connection, a 503, a truncated body."""


class UsageError(ArtifactError, RuntimeError):
    """A call made where it cannot work, such as saving a checkpoint outside of a task."""


class ArtifactWarning(UserWarning):
    """What was asked for was done, but for a part that the message names."""


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
        print(f"ArtifactWarning: {text}", file=sys.stderr)
