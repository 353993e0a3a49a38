"""Models that are saved in the background."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from metaflow_artifacts._format.keys import ModelKey
from metaflow_artifacts._format.reference import ModelArtifact, normalise_metadata
from metaflow_artifacts._store.background import SaveOptions, Storing, background_saves
from metaflow_artifacts._store.pending import PendingSave
from metaflow_artifacts._transfer.content import Content
from metaflow_artifacts._transfer.progress import Progress
from metaflow_artifacts._transfer.scan import Source

__all__ = ["BackgroundModels"]


class BackgroundModels:
    """What a store has besides `save_model`."""

    def save_model_async(
        self,
        path: Content,
        label: str = "model",
        metadata: Mapping[str, Any] | None = None,
        *,
        pathspec: str = "",
        attempt: int = 0,
        parents: Sequence[str] = (),
        gang: str | None = None,
        options: SaveOptions | None = None,
        progress: Progress | None = None,
        pending: PendingSave | None = None,
        finish: Callable[[ModelArtifact], ModelArtifact] = lambda artifact: artifact,
    ) -> PendingSave:
        """As `save_model`, in the background: this returns as soon as the content may be changed again.

        A process has one worker, which stores in the order of the calls; the process does not end before all is stored.
        `finish` is called in the worker with the reference, and returns the one that the caller gets. Raises
        InvalidInput for a label, metadata or content that breaks a rule, SourceError for what cannot be read; other
        errors are those of the PendingSave that is returned: `pending`, or a new one.
        """
        ModelKey.new(label)
        normal = normalise_metadata(metadata)
        parents = list(parents)

        def store(source: Source) -> ModelArtifact:
            return finish(
                self.save_model(
                    source,
                    label,
                    normal,
                    pathspec=pathspec,
                    attempt=attempt,
                    parents=parents,
                    gang=gang,
                    progress=progress,
                )
            )

        def begin() -> Storing:
            return store

        group = "model", str(getattr(self, "storage", "")), pathspec, label
        return background_saves().submit(path, begin, options or SaveOptions(), group=group, pending=pending)

    def save_model(
        self,
        path: Content,
        label: str = "model",
        metadata: Mapping[str, Any] | None = None,
        *,
        pathspec: str = "",
        attempt: int = 0,
        parents: Sequence[str] = (),
        gang: str | None = None,
        progress: Progress | None = None,
    ) -> ModelArtifact:
        """Save now."""
        raise NotImplementedError
