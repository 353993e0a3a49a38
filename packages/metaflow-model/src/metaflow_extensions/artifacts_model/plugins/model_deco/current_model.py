"""`current.model`: the object that `@model` gives to the code of a step."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from metaflow_artifacts.plugin import (
    Loaded,
    Log,
    ModelArtifact,
    ModelKey,
    ParsedReference,
    PendingSave,
    Progress,
    Store,
    TaskSave,
    TemporaryDirectories,
    background_saves,
    in_flow,
    loaded_keys,
    patterns_of,
    save_options,
    store_for,
    with_older_names,
)

if TYPE_CHECKING:
    from .report import Report

__all__ = ["SLOW_SAVE_S", "CurrentModel"]

SLOW_SAVE_S = 1.0
"""A save that takes at least this many seconds has a line in the log."""


class CurrentModel:
    """Saves and loads models in a running task. Its methods may be called from any thread.

    A worker process may get it in a pickle: it then saves for the same task, and deletes no directory of it.
    """

    def __init__(
        self, store: Store, pathspec: str, attempt: int, log: Log, temp_dir_root: str | os.PathLike[str] | None
    ) -> None:
        self._store = store
        self._pathspec = pathspec
        self._attempt = attempt
        self._log = log
        self._temp_dir_root = temp_dir_root
        self._temporary = TemporaryDirectories(temp_dir_root)
        self._loaded = Loaded(self._temporary)
        self._parents_of_owner: list[str] = []
        self.report: Report | None = None
        """Notes loads and saves for the card, if the step has one."""

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_parents_of_owner": self._parents(), "report": None}

    def _parents(self) -> list[str]:
        """The keys of what this process has loaded, and before them those of the process that this is a pickle of."""
        return list(dict.fromkeys([*self._parents_of_owner, *loaded_keys()]))

    @property
    def loaded(self) -> Loaded:
        """A mapping of the names in `@model(load=…)`, and of the keys given to `load()`, to local directories.

        `loaded.info[name]` is the reference that belongs to `loaded[name]`. Where only some files were loaded, it also
        has their patterns, `only`, and their bytes, `loaded_size`.
        """
        return self._loaded

    @in_flow
    def save(
        self,
        path: str | os.PathLike[str] | Mapping[str, Any],
        label: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        storage_format: str | None = None,
    ) -> ModelArtifact:
        """Save a file, a directory or contents in memory as a model, and return the reference to it.

        Keep the reference in an artifact (`self.x`) and load it with `@model(load=["x"])`. The keys of everything that
        the task has loaded become the `parents` of the model. If the save raises an error, no model is stored.

        Parameters
        ----------
        path : str, os.PathLike or Mapping[str, bytes or str or os.PathLike]
            The file or directory to save; or a mapping of the paths of files in the model to their contents, each a
            bytes-like object, or the path of a file or directory.
        label : str, default None
            A name for the model, which its key begins with; by default, and if it is empty, the names of the flow and
            the step.
        metadata : Mapping[str, Any], default None
            A dict that is stored with the model. Values that JSON cannot hold become texts, with a warning.
        storage_format : str, default None
            Accepted for flows that were written for other packages; it changes nothing.

        Returns
        -------
        ModelArtifact
            The reference, a plain dict.

        Raises
        ------
        SourceError
            If `path` cannot be read.
        InvalidInput
            If the label or the metadata breaks a rule.
        StorageError
            If the datastore fails.
        """
        label = label or self._default_label()
        background_saves().settle()
        start = time.monotonic()
        progress = Progress()
        artifact = self._store.save_model(
            path,
            label,
            metadata,
            pathspec=self._pathspec,
            attempt=self._attempt,
            parents=self._parents(),
            progress=progress,
        )
        self._note_saved(artifact, label, progress, time.monotonic() - start)
        return with_older_names(artifact)

    def _default_label(self) -> str:
        flow, _, step, _ = self._pathspec.split("/")
        return f"{flow}_{step}"

    def _note_saved(
        self, artifact: ModelArtifact, label: str, progress: Progress, seconds: float, *, background: bool = False
    ) -> None:
        if self.report is not None:
            self.report.note_saved(artifact, progress.stored, seconds, background=background)
        if seconds >= SLOW_SAVE_S:
            from metaflow_artifacts.plugin import size_text

            self._log(
                f"Saved `{label}` in {seconds:.2f} seconds{' in the background' if background else ''}: "
                f"{size_text(progress.total)}, {size_text(progress.stored)} of it new to the datastore"
            )

    @in_flow
    def save_async(
        self,
        path: str | os.PathLike[str] | Mapping[str, Any],
        label: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        storage_format: str | None = None,
        *,
        consume: bool = False,
        on_busy: Literal["wait", "replace"] = "wait",
    ) -> PendingSave:
        """Save in the background: this returns as soon as the files may be changed again.

        What is saved is the state of the call. The saves of a task are stored in the order of the calls, one after the
        other. The step ends when all are stored, and fails where one of them failed, unless its error was asked for.
        `path`, `label`, `metadata` and `storage_format` are those of `save`.

        Parameters
        ----------
        consume : bool, default False
            Whether the files are given away: they are moved and not copied, and are gone when this returns.
        on_busy : str, default 'wait'
            What to do where one save is being stored and another one waits: `wait` for the first of them, or
            `replace` the one that waits, if it has the same label.

        Returns
        -------
        PendingSave
            `done()`, `result(timeout=None)`, which waits for the reference, and `exception(timeout=None)`. Kept in an
            artifact (`self.x`), it becomes the reference.

        Raises
        ------
        SourceError, InvalidInput
            As `save`. What fails later is the error of the PendingSave, such as StorageError.
        """
        name = label or self._default_label()
        progress, pending = Progress(), TaskSave()

        def finish(artifact: ModelArtifact) -> ModelArtifact:
            self._note_saved(artifact, name, progress, pending.seconds_storing, background=True)
            return with_older_names(artifact)

        return self._store.save_model_async(
            path,
            name,
            metadata,
            pathspec=self._pathspec,
            attempt=self._attempt,
            parents=self._parents(),
            options=save_options(self._log, consume, on_busy, self._temp_dir_root),
            progress=progress,
            pending=pending,
            finish=finish,
        )

    @in_flow
    def wait(self, timeout: float | None = None) -> list[ModelArtifact]:
        """Wait until all that `save_async` was called for in this process is stored.

        Parameters
        ----------
        timeout : float, default None
            Seconds to wait at most.

        Returns
        -------
        list of ModelArtifact
            The references to the models that were handed over since the last call, in the order of the calls.

        Raises
        ------
        SaveTimeout
            If that takes longer.
        ArtifactError
            The error of the first of them that failed.
        """
        return background_saves().wait(timeout, kind="model")

    @in_flow
    def load(
        self,
        reference: str | Mapping[str, Any],
        path: str | os.PathLike[str] | None = None,
        *,
        only: str | Sequence[str] | None = None,
    ) -> str:
        """Load a model, checkpoint or Hub snapshot into a directory, and return the path of the directory.

        Parameters
        ----------
        reference : str or Mapping[str, Any]
            The dict that a save returned, or its key or url.
        path : str or os.PathLike, default None
            The directory to load into. It is created if it does not exist; files of the same name are replaced, and
            other files are left alone. By default a new temporary directory, which is deleted when the task ends. What
            was saved as a single file is loaded under that file's name.
        only : str or list of str, default None
            A pattern for the paths of the files to load, or several: `*.safetensors`, `tokenizer/*`. `*` and `?` are
            wildcards, and match `/` too. Each must match a file. By default, all files are loaded.

        Returns
        -------
        str
            The path of the directory.

        Raises
        ------
        InvalidReference
            If `reference` is not a reference or a key.
        ArtifactNotFound
            If nothing is stored at the key, or a pattern in `only` matches no file.
        InvalidInput
            If `only` is no pattern, or an empty list.
        CorruptArtifact
            If content is missing or damaged.
        TargetError
            If the directory cannot be written.
        StorageError
            If the datastore cannot be reached.
        """
        parsed = ParsedReference.of(reference)
        name = hashlib.sha256(parsed.key.encode()).hexdigest()[:6]
        return self.load_as(name, parsed, path, entry=parsed.key, only=only)

    def load_as(
        self,
        name: str,
        reference: ParsedReference,
        path: str | os.PathLike[str] | None,
        *,
        entry: str | None = None,
        only: str | Sequence[str] | None = None,
    ) -> str:
        """Load with `name` in the log and in the temporary directory; `entry`, if given, is the name in `loaded`."""
        patterns = patterns_of(only)
        store = store_for(reference, self._store)
        info = with_older_names(reference.artifact or store.info(reference))
        start = time.monotonic()
        if path is None:
            path = self._temporary.new(f"metaflow_models_{name}_")
        progress = Progress()
        target = store.load(reference, path, only=patterns, progress=progress)
        seconds = time.monotonic() - start
        kind = "model" if isinstance(reference.parts, ModelKey) else "checkpoint"
        part = "" if patterns is None else _part(patterns, progress.total, info["size"])
        cached = _cached(progress.cached) if progress.cached else ""
        self._log(f"Loaded artifact `{name}[type:{kind}]` in {seconds:.2f} seconds{part}{cached}")
        # The reference may be the `info` of an earlier load of a part.
        shown = {member: value for member, value in info.items() if member not in ("only", "loaded_size")}
        if patterns is not None:
            shown |= {"only": patterns, "loaded_size": progress.total}
        self._loaded.add(entry or name, target, shown)
        if self.report is not None:
            self.report.note_loaded(None if entry else name, info, target, seconds, progress.total, progress.cached)
        return target

    def close(self) -> None:
        """Remove the temporary directories."""
        self._temporary.close()


def _cached(size: int) -> str:
    from metaflow_artifacts.plugin import size_text

    return f", {size_text(size)} from the node's cache"


def _part(patterns: list[str], loaded: int, size: int) -> str:
    from metaflow_artifacts.plugin import size_text

    return f": {size_text(loaded)} of {size_text(size)}, only {', '.join(patterns)}"
