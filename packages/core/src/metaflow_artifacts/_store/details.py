"""What a save says about an artifact besides its content."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Any

from metaflow_artifacts._format.reference import normalise_metadata

__all__ = ["SaveDetails"]


@dataclass(frozen=True)
class SaveDetails:
    """What the caller of a save says about the artifact."""

    label: str
    metadata: Mapping[str, Any] | None = None
    """The user's. Values that JSON cannot hold are stored as text, with one ArtifactWarning."""
    pathspec: str = ""
    """`flow/run/step/task` that saves; empty outside of a task."""
    attempt: int = 0
    """Attempt of that task, from 0. A checkpoint has the attempt of its key instead."""
    parents: Sequence[str] = ()
    """Keys of the artifacts that it was made from."""
    latest: bool = True
    """Checkpoints: whether a task that starts again may load it automatically."""
    gang: str | None = None
    """`@parallel` steps only: the pathspec of the gang's control task."""

    def normalised(self) -> SaveDetails:
        """The same with metadata as JSON holds it. Raises InvalidInput where it is no mapping."""
        return replace(self, metadata=normalise_metadata(self.metadata))

    def reference(self, kind: str, uuid: str) -> dict[str, Any]:
        """The members of the reference that do not depend on the content, created now; to be called on `normalised`."""
        members = {
            "uuid": uuid,
            "type": kind,
            "pathspec": self.pathspec,
            "attempt": self.attempt,
            "created_on": datetime.now(timezone.utc).isoformat(timespec="microseconds"),
            "metadata": dict(self.metadata or {}),
            "label": self.label,
            "parents": list(self.parents),
        }
        return members if self.gang is None else {**members, "gang": self.gang}
