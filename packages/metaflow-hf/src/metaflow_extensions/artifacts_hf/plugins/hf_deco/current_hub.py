"""`current.huggingface_hub`: the object that `@huggingface_hub` gives to the code of a step."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ContextManager  # noqa: UP035

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
    with_older_names,
)

from .arguments import LoadSpec, RepoRequest
from .cache import Cache, SnapshotResult

__all__ = ["CurrentHuggingfaceHub", "Event"]

# The form of this type that `metaflow develop stubs` writes down with what the block gets.
PathContext = ContextManager[str]

_ANY_FLOW = "all-flows"
_ANY_STEP = "all-steps"
_ANY_NAMESPACE = "0" * 12


@dataclass(frozen=True)
class Event:
    """A repo that a task has asked for, and the snapshot that it got."""

    request: RepoRequest
    result: SnapshotResult
    path: str | None
    """The directory that it was loaded into; None if only its reference was asked for."""
    seconds: float
    """From the call to the last file."""


class CurrentHuggingfaceHub:
    """Repos of the Hugging Face Hub in a running task. Its methods may be called from any thread.

    A worker process may get it in a pickle: it then gets repos for the same task, and deletes no directory of it.
    """

    def __init__(
        self, task: TaskIdentity, cache_scope: str, log: Log, temp_dir_root: str | os.PathLike[str] | None = None
    ) -> None:
        self.task = task
        self.cache_scope = cache_scope
        self._log = log
        self._temp_dir_root = temp_dir_root
        self._temporary = TemporaryDirectories(temp_dir_root)
        self._loaded = Loaded(self._temporary)
        self._begin()

    def _begin(self) -> None:
        task, log = self.task, self._log
        self._writers: dict[CheckpointPlace, CheckpointWriter] = {}
        label = f"{task.flow}_{task.step}"
        self._cache = Cache(self._writer_of, label, log, log.warning, temp_dir_root=self._temp_dir_root)
        self.events: list[Event] = []
        """The repos that were asked for so far, for the card."""

    def __getstate__(self) -> dict[str, Any]:
        # Not the events, which may have a token, nor what holds locks.
        names = ("task", "cache_scope", "_log", "_temp_dir_root", "_temporary", "_loaded")
        return {name: getattr(self, name) for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._begin()

    @property
    def loaded(self) -> Loaded:
        """A mapping of repo ids to the local directories that `@huggingface_hub(load=…)` has loaded them into.

        `loaded.info[repo_id]` is the reference of the repo. It also has `hf_kwargs`, the arguments without secrets, and
        `cache_hit`, whether the datastore had all of the content.
        """
        return self._loaded

    @in_flow
    def snapshot_download(self, repo_id: str | None = None, **arguments: Any) -> ModelArtifact:
        """Store a repo in the datastore, unless it is there already, and return the reference to it.

        Keep the reference in an artifact (`self.x`) and load it with `@model(load=["x"])`. Files that the datastore
        has are not downloaded again. If the Hub cannot be reached, or fails, the newest snapshot that the datastore has
        of the same arguments is used, with a warning.

        Parameters
        ----------
        repo_id : str
            The repo, for example `google-bert/bert-base-uncased`.
        **arguments : Any
            Other arguments of `huggingface_hub.snapshot_download`. A branch or tag in `revision` is resolved to its
            commit once in a run. `force_download=True` asks the Hub again and downloads every file. `local_dir` is a
            directory into which the files are loaded as well.

        Returns
        -------
        ModelArtifact
            The reference, a plain dict. Its `metadata` has the repo and the commit.

        Raises
        ------
        HubError
            If neither the Hub nor the datastore has the repo.
        InvalidInput
            If an argument is unknown or has the wrong type.
        StorageError
            If the datastore fails.
        """
        request = RepoRequest.of(_with_repo(repo_id, arguments))
        return self._obtain(request, request.local_dir)[0].artifact

    @in_flow
    def load(
        self,
        repo_id: str | None = None,
        path: str | os.PathLike[str] | None = None,
        repo_type: str | None = None,
        **arguments: Any,
    ) -> PathContext:
        """Load a repo into a local directory: `with current.huggingface_hub.load(repo_id=…) as path:`.

        The repo is stored in the datastore first, unless it is there already, as with `snapshot_download`.

        Parameters
        ----------
        repo_id : str
            The repo, for example `google-bert/bert-base-uncased`.
        path : str or os.PathLike, default None
            The directory to load into. It is created if it does not exist; files of the same name are replaced, and
            other files are left alone. By default a new temporary directory, which is deleted at the end of the block.
        repo_type : str, default 'model'
            `model`, `dataset` or `space`.
        **arguments : Any
            Other arguments of `huggingface_hub.snapshot_download`.

        Returns
        -------
        ContextManager[str]
            A context manager that gives the path of the directory.

        Raises
        ------
        TargetError
            If the directory cannot be written.
        ArtifactError
            The same errors as `snapshot_download`.
        """
        request = RepoRequest.of({**_with_repo(repo_id, arguments), "repo_type": repo_type})
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
        """Load the repos of the decorator's `load`."""
        for spec in specs:
            request = spec.request
            if request.repo_id in self._loaded:
                self._log.warning(f"{request.repo_id} is in load= twice; loaded[{request.repo_id!r}] is the last one")
            path = spec.path if spec.path is not None else self._temporary.new(_prefix(request))
            result, target = self._obtain(request, path)
            info = {
                **result.artifact,
                "hf_kwargs": request.arguments(),
                "cache_hit": not result.from_hub,
                "force_download": request.force_download,
            }
            self._loaded.add(request.repo_id, target, info)

    def _obtain(self, request: RepoRequest, path: str | os.PathLike[str] | None) -> tuple[SnapshotResult, str]:
        began = time.monotonic()
        result = self._cache.obtain(request, path)
        result = replace(result, artifact=with_older_names(result.artifact))
        target = ""
        if path is not None:
            target = os.fspath(path)
            if not result.delivered:
                before = time.monotonic()
                self.task.store().load(result.artifact, path)
                self._log(f"Loaded {request} in {time.monotonic() - before:.2f} seconds")
            note_loaded(result.artifact["key"])
        self.events.append(Event(request, result, target or None, time.monotonic() - began))
        return result, target

    def _writer_of(self, request: RepoRequest) -> CheckpointWriter:
        place = self._place(request)
        if place not in self._writers:
            task = self.task
            self._writers[place] = CheckpointWriter(
                task.store(), place, task.id, task.attempt, task.pathspec, start=0, gang=task.gang
            )
        return self._writers[place]

    def _place(self, request: RepoRequest) -> CheckpointPlace:
        if self.cache_scope == "checkpoint":
            return self.task.checkpoint_place(HUB)
        # Each request has a separate place, because the place is listed to find its snapshots. A place for all flows
        # would be too long to list. No flow or step can have a name with a hyphen.
        flow = self.task.flow if self.cache_scope == "flow" else _ANY_FLOW
        return CheckpointPlace(flow, _ANY_STEP, _ANY_NAMESPACE, request.content_hash, HUB)

    def close(self) -> None:
        """Remove the temporary directories."""
        self._temporary.close()


def _with_repo(repo_id: str | None, arguments: dict[str, Any]) -> dict[str, Any]:
    return arguments if repo_id is None else {**arguments, "repo_id": repo_id}


def _prefix(request: RepoRequest) -> str:
    return f"metaflow_hf_{request.name}_"
