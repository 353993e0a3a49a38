"""The reference to a checkpoint, with its fields as attributes."""

from __future__ import annotations

from typing import Any

__all__ = ["CheckpointInfo"]


class CheckpointInfo(dict[str, Any]):
    """The reference to a checkpoint, with its fields as attributes: `info["key"]`, `info.key`.

    Pickles name this class, so an artifact that holds one can be read where core is installed.
    """

    # Artifacts live longer than the arrangement of modules: pickles have the public name.
    __module__ = "metaflow_artifacts"

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            fields = ", ".join(self)
            raise AttributeError(f"a checkpoint's info has no field {name!r}; it has {fields}") from None

    def to_dict(self) -> dict[str, Any]:
        """A copy as a plain dict."""
        return dict(self)
