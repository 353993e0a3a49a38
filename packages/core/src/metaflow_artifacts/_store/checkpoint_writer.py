"""Saving the checkpoints of an attempt: each gets a new key, and later saves get higher numbers."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from metaflow_artifacts._format.keys import CheckpointKey, CheckpointPlace, encode_part, parse_key
from metaflow_artifacts._format.reference import ModelArtifact
from metaflow_artifacts._store.background import SaveOptions, Storing, background_saves
from metaflow_artifacts._store.details import SaveDetails
from metaflow_artifacts._store.numbering import highest_number
from metaflow_artifacts._store.pending import PendingSave
from metaflow_artifacts._store.store import Store
from metaflow_artifacts._transfer.content import Content
from metaflow_artifacts._transfer.progress import Progress
from metaflow_artifacts._transfer.scan import Source
from metaflow_artifacts.errors import InvalidInput, StorageError

__all__ = ["DEFAULT_NAME", "CheckpointWriter"]

DEFAULT_NAME = "mfchckpt"


class CheckpointWriter:
    """Saves the checkpoints of one attempt of a task, numbered from 0 over all names. Safe to use from any thread.

    Several processes may save for the same attempt. A manifest is written only if its key is free, so nothing is
    overwritten. The number is drawn when a save begins: of the saves of one machine, one that begins later
    has a higher number.
    """

    def __init__(
        self,
        store: Store,
        place: CheckpointPlace,
        id: str,
        attempt: int,
        pathspec: str = "",
        start: int | None = None,
        draw: Callable[[int], int | None] | None = None,
        gang: str | None = None,
    ) -> None:
        """A writer for the task `pathspec` (`flow/run/step/task`), whose digits in keys are `id`.

        `start` is the first number, if the caller knows that this attempt has saved nothing before. `draw` returns a
        number that no process on this machine has drawn for this attempt, at least as high as its argument, or None
        if it cannot tell. `gang` is the pathspec of the gang's control task, in a `@parallel` step: its nodes share one
        sequence of numbers, so each save asks the store for the highest one.
        """
        self.store = store
        self.place = place
        self.id = id
        self.attempt = attempt
        self.pathspec = pathspec
        self.gang = gang
        self._next = start
        self._asks = start is None or gang is not None
        """Whether a number may need a request."""
        self._draw_here = draw
        self._lock = threading.Lock()

    def save(
        self,
        path: Content,
        name: str = DEFAULT_NAME,
        metadata: Mapping[str, Any] | None = None,
        *,
        label: str,
        parents: Sequence[str] = (),
        latest: bool = True,
        progress: Progress | None = None,
    ) -> ModelArtifact:
        """Save a file, directory or mapping as the next checkpoint. Raises as `Store.save_checkpoint`.

        `label`, `metadata`, `parents` and `latest` are those of SaveDetails. Where saves in the background are pending,
        this one is made after them.
        """
        background_saves().settle()
        details = self.details(label, metadata, parents, latest)
        artifact = self.store.save_checkpoint(path, self.keys(name), details, progress=progress)
        self.saved(artifact, latest)
        return artifact

    def save_async(
        self,
        content: Content,
        name: str = DEFAULT_NAME,
        metadata: Mapping[str, Any] | None = None,
        *,
        label: str,
        parents: Sequence[str] = (),
        latest: bool = True,
        options: SaveOptions | None = None,
        progress: Progress | None = None,
        pending: PendingSave | None = None,
        finish: Callable[[ModelArtifact], ModelArtifact] = lambda artifact: artifact,
    ) -> PendingSave:
        """As `save`, in the background: this returns as soon as the content may be changed again.

        The number is drawn now, and without a request where there is a `draw`. `finish` is called in the worker with
        the reference, and returns the one that the caller gets. Raises InvalidInput for a name, metadata or content
        that breaks a rule, SourceError for what cannot be read; other errors are those of the PendingSave that is
        returned: `pending`, or a new one.
        """
        encode_part(name, "name")
        details = self.details(label, metadata, parents, latest).normalised()

        def begin() -> Storing:
            # Where the store is asked for the number, the worker asks. It makes the saves in the order of the calls.
            drawn = None if self._asks else self.keys(name)

            def store(source: Source) -> ModelArtifact:
                artifact = self.store.save_checkpoint(source, drawn or self.keys(name), details, progress=progress)
                self.saved(artifact, latest)
                return finish(artifact)

            return store

        task = str(self.place), self.id, self.attempt, self.pathspec
        group = "checkpoint", self.store.storage.root, *task, name, latest
        return background_saves().submit(content, begin, options or SaveOptions(), group=group, pending=pending)

    def details(
        self, label: str, metadata: Mapping[str, Any] | None = None, parents: Sequence[str] = (), latest: bool = True
    ) -> SaveDetails:
        """What a save of this attempt says about its checkpoint."""
        return SaveDetails(label, metadata, self.pathspec, self.attempt, parents, latest, self.gang)

    def key(self, name: str, number: int | None = None) -> CheckpointKey:
        """The key of a checkpoint of this attempt; by default with the next number that none has. Nothing is drawn.

        Raises InvalidInput for a name or number that breaks a rule, StorageError.
        """
        encode_part(name, "name")
        if number is None:
            number = max(self._highest() + 1, self._next or 0)
        if isinstance(number, bool) or not isinstance(number, int) or number < 0:
            raise InvalidInput(f"version_id {number!r}: expected a number from 0")
        return CheckpointKey(self.place, self.id, self.attempt, name, number)

    def keys(self, name: str) -> Iterator[CheckpointKey]:
        """Keys to try in turn; the number of the first is drawn now.

        Raises InvalidInput for a name that breaks a rule, StorageError.
        """
        encode_part(name, "name")
        return self._keys(CheckpointKey(self.place, self.id, self.attempt, name, self._draw()))

    def _keys(self, key: CheckpointKey) -> Iterator[CheckpointKey]:
        while True:
            yield key
            # The key is taken: a process on another machine saves for this attempt too. The store has its numbers.
            highest = self._highest()
            if highest < key.n and self.store.storage.stat(str(key)) is None:
                raise StorageError(
                    f"cannot save {key}: {self.store.storage.server} says that it exists, and does not have it; use a "
                    "server that keeps If-None-Match, or another datastore root"
                )
            key = key.numbered(self._draw(max(key.n, highest) + 1))

    def _draw(self, at_least: int = 0) -> int:
        with self._lock:
            if self._next is None or self.gang is not None:
                self._next = max(self._highest() + 1, self._next or 0)
            at_least = max(at_least, self._next)
            if self._draw_here is not None:
                drawn = self._draw_here(at_least)
                if drawn is None:
                    # What others on this machine have drawn is not known any more: the store has what they saved.
                    self._draw_here = None
                    at_least = max(at_least, self._highest() + 1)
                else:
                    at_least = drawn
            self._next = at_least + 1
            return at_least

    def _highest(self) -> int:
        return highest_number(self.store.storage, self.place, self.id, self.attempt)

    def saved(self, artifact: ModelArtifact, latest: bool) -> None:
        """Finish the save of an artifact that was committed under one of `keys`; `latest` is that of the save."""
        if not latest:
            key = parse_key(artifact["key"])
            assert isinstance(key, CheckpointKey)
            # The manifest says the same. The tombstone spares a search one read, so it must not cost the save.
            with contextlib.suppress(StorageError):
                self.store.storage.put(key.tombstone, b"")
