"""The reference to a loaded checkpoint, with its fields as attributes."""

from __future__ import annotations

from typing import Any

__all__ = ["CheckpointInfo"]


class CheckpointInfo(dict[str, Any]):
    """The reference to a checkpoint, with its fields as attributes: `info["key"]`, `info.key`.

    It is pickled and copied as a plain dict, so that an artifact that holds it can be read without this package.
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            fields = ", ".join(self)
            raise AttributeError(f"a checkpoint's info has no field {name!r}; it has {fields}") from None

    def to_dict(self) -> dict[str, Any]:
        """A copy as a plain dict."""
        return dict(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)
