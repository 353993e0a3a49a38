"""One save in the background: what is stored, and how that ends."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from metaflow_artifacts._format.reference import ModelArtifact
from metaflow_artifacts._store.pending import PendingSave
from metaflow_artifacts._transfer.content import Content, source_of
from metaflow_artifacts._transfer.removal import remove_tree
from metaflow_artifacts._transfer.scan import Source
from metaflow_artifacts._transfer.snapshot import Snapshot

__all__ = ["Foreground", "Job", "Storing"]

Storing = Callable[[Source], ModelArtifact]
"""Stores what is in a source; called once, by the worker."""


@dataclass
class Job:
    group: Hashable
    pending: PendingSave
    snapshot: Snapshot
    store: Storing
    note_unseen: Callable[[BaseException], None]
    tell: Callable[[str], None]

    def run(self) -> ModelArtifact | BaseException:
        self.pending._begin()
        try:
            reference = self.store(self.snapshot.source)
        except BaseException as error:
            self.snapshot.give_back()
            _strip(error)
            return error
        self.snapshot.close()
        return reference

    def release(self) -> None:
        """Hold the content no longer."""
        self.snapshot, self.store = _NOTHING, _nothing


def _strip(error: BaseException) -> None:
    """Remove the tracebacks of an error and of those it comes from: their frames hold the content."""
    todo: list[BaseException | None] = [error]
    seen: set[int] = set()
    while todo:
        one = todo.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        one.__traceback__ = None
        todo += [one.__cause__, one.__context__]


_NOTHING = Snapshot(Source())


def _nothing(source: Source) -> ModelArtifact:
    raise NotImplementedError


class Foreground(Snapshot):
    """The source itself, where there can be no snapshot; the caller waits until it is stored."""

    def __init__(self, content: Content, consume: bool) -> None:
        super().__init__(source_of(content))
        self._content = content
        self._consume = consume

    def close(self) -> None:
        if not self._consume:
            return
        values = self._content.values() if isinstance(self._content, Mapping) else [self._content]
        for path in values:
            if isinstance(path, (str, os.PathLike)):
                # As a move would: a link goes, and what it leads to stays.
                with suppress(OSError):
                    os.unlink(path)
                remove_tree(os.fspath(path))

    def give_back(self) -> None:
        pass
