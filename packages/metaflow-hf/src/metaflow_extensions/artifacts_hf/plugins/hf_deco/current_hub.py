"""`current.huggingface_hub`: what `@huggingface_hub` gives to the code of a step."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

from metaflow_artifacts.plugin import (
    HUB,
    CheckpointPlace,
    CheckpointWriter,
    Loaded,
    Log,
    ModelArtifact,
    TaskIdentity,
    TemporaryDirectories,
    in_flow,
    note_loaded,
    shown,
)

from .arguments import LoadSpec, RepoRequest
from .cache import Cache, SnapshotResult

__all__ = ["CurrentHuggingfaceHub", "Event"]

_ANY_FLOW = "all-flows"
_ANY_STEP = "all-steps"
_ANY_NAMESPACE = "0" * 12


@dataclass(frozen=True)
class Event:
    """A repo that a task has asked for, and what came of it."""

    request: RepoRequest
    result: SnapshotResult
    path: str | None
    """Where it was loaded to; None where only its reference was asked for."""
    seconds: float
    """From the question to the last file."""


class CurrentHuggingfaceHub:
    """Repos of the Hugging Face Hub in a running task. Its methods may be called from any thread."""

    def __init__(
        self, task: TaskIdentity, cache_scope: str, log: Log, temp_dir_root: str | os.PathLike[str] | None = None
    ) -> None:
        self.task = task
        self.cache_scope = cache_scope
        self._log = log
        self._temp_dir_root = temp_dir_root
        self._temporary = TemporaryDirectories(temp_dir_root)
        self._loaded = Loaded()
        self._writers: dict[CheckpointPlace, CheckpointWriter] = {}
        self._cache = Cache(self._writer_of, f"{task.flow}_{task.step}", log, log.warning)
        self.events: list[Event] = []
        """What was asked for so far, for the card."""
        self.watch: Callable[[], None] = lambda: None
        """Called after each of them."""

    @property
    def loaded(self) -> Loaded:
        """Repo id -> local path of what `@huggingface_hub(load=…)` has loaded.

        A mapping; `loaded.info[repo_id]` is the reference that belongs to `loaded[repo_id]`.
        """
        return self._loaded

    @in_flow
    def snapshot_download(self, repo_id: str | None = None, **arguments: Any) -> ModelArtifact:
        """Make sure that a repo is in the datastore, and return the reference to it: a plain dict, to be kept in
        `self.x` and loaded with `@model(load=["x"])`.

        Takes the arguments of `huggingface_hub.snapshot_download`. What the datastore has already is not downloaded
        again, unless `force_download=True`. A branch or tag is what it is on the Hub at this moment; where the Hub
        cannot be reached, or fails, it is what the datastore has of it, with a warning. With `local_dir`, the files
        are brought there too.

        Raises HubError (an `ArtifactError`) where neither the Hub nor the datastore has it, InvalidReference for
        arguments that make no sense, StorageError where the datastore fails.
        """
        request = RepoRequest.of(_with_repo(repo_id, arguments))
        return self._obtain(request, request.local_dir)[0]

    @in_flow
    def load(
        self, repo_id: str | None = None, path: str | os.PathLike[str] | None = None, **arguments: Any
    ) -> AbstractContextManager[str]:
        """`with current.huggingface_hub.load(repo_id=…) as path:` has the files of a repo in a local directory.

        Takes the arguments of `huggingface_hub.snapshot_download`, and raises as `snapshot_download` does. Without
        `path`, the directory is a new temporary one, gone at the end of the block; else it is made, or added to.
        """
        request = RepoRequest.of(_with_repo(repo_id, arguments))
        return self._loading(request, path if path is not None else request.local_dir)

    @contextmanager
    def _loading(self, request: RepoRequest, path: str | os.PathLike[str] | None) -> Iterator[str]:
        temporary = TemporaryDirectories(self._temp_dir_root)
        try:
            with shown(always=False):
                if path is None:
                    path = temporary.new(_prefix(request))
                self._obtain(request, path)
            yield os.fspath(path)
        finally:
            temporary.close()

    def load_first(self, specs: list[LoadSpec]) -> None:
        """Load what the decorator's `load` names."""
        for spec in specs:
            request = spec.request
            if request.repo_id in self._loaded:
                self._log.warning(f"{request.repo_id} is named twice in load=; loaded[{request.repo_id!r}] is the last")
            path = spec.path if spec.path is not None else self._temporary.new(_prefix(request))
            artifact, target = self._obtain(request, path)
            self._loaded.add(request.repo_id, target, artifact)

    def _obtain(self, request: RepoRequest, path: str | os.PathLike[str] | None) -> tuple[ModelArtifact, str]:
        began = time.monotonic()
        obtained = self._cache.obtain(request, path)
        target = ""
        if path is not None:
            target = os.fspath(path)
            if not obtained.delivered:
                before = time.monotonic()
                self.task.store().load(obtained.artifact, path)
                self._log(f"Loaded {request} in {time.monotonic() - before:.2f} seconds")
            note_loaded(obtained.artifact["key"])
        self.events.append(Event(request, obtained, target or None, time.monotonic() - began))
        self.watch()
        return obtained.artifact, target

    def _writer_of(self, request: RepoRequest) -> CheckpointWriter:
        place = self._place(request)
        if place not in self._writers:
            task = self.task
            self._writers[place] = CheckpointWriter(task.store(), place, task.id, task.attempt, task.pathspec, start=0)
        return self._writers[place]

    def _place(self, request: RepoRequest) -> CheckpointPlace:
        if self.cache_scope == "checkpoint":
            return self.task.checkpoint_place(HUB)
        # A place for each request: it is listed to find what is stored, and everybody's would be too much. No flow or
        # step can have such a name.
        flow = self.task.flow if self.cache_scope == "flow" else _ANY_FLOW
        return CheckpointPlace(flow, _ANY_STEP, _ANY_NAMESPACE, request.place, HUB)

    def close(self) -> None:
        """Remove the temporary directories."""
        self._temporary.close()


def _with_repo(repo_id: str | None, arguments: dict[str, Any]) -> dict[str, Any]:
    return arguments if repo_id is None else {**arguments, "repo_id": repo_id}


def _prefix(request: RepoRequest) -> str:
    return f"metaflow_hf_{request.name}_"
