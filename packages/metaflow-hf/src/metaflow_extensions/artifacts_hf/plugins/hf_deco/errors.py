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

from metaflow_artifacts.plugin import ArtifactError

__all__ = ["CannotStream", "HubDenied", "HubError", "HubMismatch", "HubUnavailable"]


class HubError(ArtifactError):
    """The Hub did not give what was asked for. The message says why, and what to do."""

    status: int | None = None
    """The HTTP status that the Hub answered, if it did."""
    may_pass_on_retry = False
    """Whether another download of the same file, from its first byte, may succeed."""


class HubMismatch(HubError):
    """The content that arrived is not what the Hub lists: other bytes, fewer bytes or more."""

    may_pass_on_retry = True


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
