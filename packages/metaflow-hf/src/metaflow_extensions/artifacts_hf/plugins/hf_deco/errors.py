"""What can go wrong with the Hub, under core's `ArtifactError`.

```
ArtifactError
└── HubError                 the Hub, or what it sent, is not what was asked for
    ├── HubMismatch          a file came, and is not the one that is listed
    ├── HubDenied            no such repo, revision or file, or not for this token
    └── HubUnavailable       offline, cannot be reached, overloaded, or failing: later it may be different
```
"""

from __future__ import annotations

from metaflow_artifacts.plugin import ArtifactError

__all__ = ["HubDenied", "HubError", "HubMismatch", "HubUnavailable"]


class HubError(ArtifactError):
    """The Hub does not give what was asked for; the message says why and what to do."""

    worth_another_try = False
    """Whether the same file, fetched anew from its first byte on, may come right."""


class HubMismatch(HubError):
    """What came is not what the Hub lists: other bytes, fewer or more."""

    worth_another_try = True


class HubDenied(HubError):
    """There is no such repo, revision or file on the Hub, or the token, if any, does not open it."""


class HubUnavailable(HubError):
    """The Hub cannot be reached (or must not be: HF_HUB_OFFLINE), refuses for now, or fails."""

    def __init__(self, message: str, *, retry_after: float | None = None, final: bool = False) -> None:
        """`retry_after`: seconds that the Hub asks to wait; `final`: trying again in this process is in vain."""
        super().__init__(message)
        self.retry_after = retry_after
        self.final = final
