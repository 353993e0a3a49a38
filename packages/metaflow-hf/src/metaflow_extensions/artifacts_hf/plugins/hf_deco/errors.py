"""The errors of this package, below core's `ArtifactError`.

```
ArtifactError
└── HubError                 the Hub did not give what was asked for
    ├── HubMismatch          the content of a file is not what the Hub lists
    ├── HubDenied            no such repo, revision or file, or this token has no access
    └── HubUnavailable       offline, unreachable, overloaded or failing; a later call may succeed
```
"""

from __future__ import annotations

import re

from metaflow_artifacts.plugin import ArtifactError

__all__ = ["CannotStream", "HubDenied", "HubError", "HubMismatch", "HubUnavailable", "one_line"]


class HubError(ArtifactError):
    """The Hub did not give what was asked for. The message says why, and what to do."""

    status: int | None = None
    """The HTTP status that the Hub answered, if it did."""


class HubMismatch(HubError):
    """The content that arrived is not what the Hub lists: other bytes, fewer bytes or more."""


class HubDenied(HubError):
    """The Hub has no such repo, revision or file, or the token, if there is one, gives no access to it."""


class HubUnavailable(HubError):
    """The Hub cannot be reached, must not be asked (HF_HUB_OFFLINE), refuses for now, or fails."""

    def __init__(self, message: str, *, retry_after: float | None = None, final: bool = False) -> None:
        """`retry_after` is the time in seconds that the Hub asks to wait; `final` says that no retry can succeed."""
        super().__init__(message)
        self.retry_after = retry_after
        self.final = final


class CannotStream(Exception):
    """Files cannot be streamed with this huggingface_hub, or from this server: huggingface_hub must download them.

    It says why, and does not leave this package.
    """


def one_line(error: BaseException) -> str:
    """The message of an error as one line, without addresses: an address can contain a signature."""
    return re.sub(r"https?://\S+", "…", " ".join(str(error).split()))[:200]
