"""What callers pass to name an artifact, parsed once: the functions here are where a reference enters the packages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from metaflow_artifacts._format.keys import CheckpointKey, ModelKey, parse_key
from metaflow_artifacts._format.reference import ModelArtifact, parse_reference
from metaflow_artifacts.errors import InvalidReference

__all__ = ["ParsedReference", "Reference", "key_of", "root_of"]


@dataclass(frozen=True)
class ParsedReference:
    """A key, or a reference, that was found to be well-formed. A store takes it without another look at it."""

    key: str
    parts: ModelKey | CheckpointKey
    """What the key says."""
    artifact: ModelArtifact | None
    """The reference; None where only a key was given."""

    @classmethod
    def of(cls, reference: Reference) -> ParsedReference:
        """What a reference says. Raises InvalidReference for neither a key nor the dict that a save returned."""
        if isinstance(reference, ParsedReference):
            return reference
        artifact: ModelArtifact | None = None
        if isinstance(reference, Mapping):
            artifact = parse_reference(reference)
            key = artifact["key"]
        elif isinstance(reference, str):
            key = reference
        else:
            raise InvalidReference(
                f"expected a key (str) or the dict that save() returned, found {type(reference).__name__}"
            )
        return cls(key, parse_key(key), artifact)

    @property
    def root(self) -> str | None:
        """The root of the store that it was saved to, from its `url`; None for a key."""
        if self.artifact is None:
            return None
        url, end = self.artifact["url"], "/" + self.key
        return url[: -len(end)] if url.endswith(end) else None


Reference = str | Mapping[str, Any] | ParsedReference
"""A key, the dict that a save returned, or either of them parsed."""


def key_of(reference: Reference) -> str:
    """The key of the artifact that a reference names. Raises InvalidReference."""
    return ParsedReference.of(reference).key


def root_of(reference: Reference) -> str | None:
    """The root of the store that a reference was saved to, from its `url`; None for a key. Raises InvalidReference."""
    return ParsedReference.of(reference).root
