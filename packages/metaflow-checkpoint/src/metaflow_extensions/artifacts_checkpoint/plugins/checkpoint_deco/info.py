"""What is known of a loaded checkpoint, as a dict and as attributes."""

from __future__ import annotations

from typing import Any

__all__ = ["CheckpointInfo"]


class CheckpointInfo(dict[str, Any]):
    """The reference to a checkpoint whose fields are attributes too: `info["key"]`, `info.key`.

    Pickled and copied as the plain dict that it is, so that it can be kept in an artifact and read where this
    package is not installed.
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            known = ", ".join(self)
            raise AttributeError(f"a checkpoint's info has no field {name!r}; it has {known}") from None

    def to_dict(self) -> dict[str, Any]:
        """A copy as a plain dict."""
        return dict(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)
