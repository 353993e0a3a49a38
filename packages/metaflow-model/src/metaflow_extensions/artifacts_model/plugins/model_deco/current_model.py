"""`current.model`: what `@model` gives to the code of a step."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from metaflow_artifacts.plugin import (
    Loaded,
    Log,
    ModelArtifact,
    ModelKey,
    Progress,
    Store,
    TemporaryDirectories,
    in_flow,
    key_of,
    loaded_keys,
    parse_key,
    parse_reference,
    store_for,
)

__all__ = ["SLOW", "CurrentModel"]

SLOW = 1.0
"""Seconds from which a save has a line in the log."""


class CurrentModel:
    """Saves and loads models in a running task. Its methods may be called from any thread."""

    def __init__(
        self, store: Store, pathspec: str, attempt: int, log: Log, temp_dir_root: str | os.PathLike[str] | None
    ) -> None:
        self._store = store
        self._pathspec = pathspec
        self._attempt = attempt
        self._log = log
        self._temporary = TemporaryDirectories(temp_dir_root)
        self._loaded = Loaded()

    @property
    def loaded(self) -> Loaded:
        """Local paths of what was loaded: by the names in `@model(load=…)`, and by key for `load()`.

        A mapping; `loaded.info[name]` is the reference that belongs to `loaded[name]`.
        """
        return self._loaded

    @in_flow
    def save(
        self,
        path: str | os.PathLike[str],
        label: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        storage_format: str | None = None,
    ) -> ModelArtifact:
        """Save a file or directory and return the reference to it: a plain dict, to be kept in `self.x`.

        `label` names the model in its key, by default after flow and step. `metadata` is kept with it:
        anything that JSON holds, numpy scalars too. `storage_format` is accepted for flows written for other
        packages and changes nothing. The keys of everything that the task has loaded become the model's
        `parents`.

        Raises `metaflow_artifacts.errors.SourceError` where `path` cannot be read, `InvalidReference` for a
        label or metadata that break a rule, `StorageError` where the datastore fails; no model is stored
        then.
        """
        if label is None:
            flow, _, step, _ = self._pathspec.split("/")
            label = f"{flow}_{step}"
        start = time.monotonic()
        transfer = Progress()
        artifact = self._store.save_model(
            path,
            label,
            metadata,
            pathspec=self._pathspec,
            attempt=self._attempt,
            parents=loaded_keys(),
            progress=transfer,
        )
        seconds = time.monotonic() - start
        if seconds >= SLOW:
            from metaflow_artifacts.plugin import size_text

            self._log(
                f"Saved `{label}` in {seconds:.2f} seconds: {size_text(transfer.total)}, "
                f"{size_text(transfer.stored)} of it new to the datastore"
            )
        return artifact

    @in_flow
    def load(self, reference: str | Mapping[str, Any], path: str | os.PathLike[str] | None = None) -> str:
        """Load a model, checkpoint or Hub snapshot and return the directory it is in.

        `reference` is the dict that a save returned, or its key. Without `path`, the directory is a new
        temporary one, gone when the task ends; else it is made, or added to: files of the same name are
        replaced, nothing else is touched. What was saved as a single file lies in it under that file's name.

        Raises `metaflow_artifacts.errors.InvalidReference` for what is no reference, `ArtifactNotFound` where
        nothing is stored at the key, `CorruptArtifact` where content is missing or changed, `TargetError`
        where `path` cannot be written, `StorageError` where the datastore cannot be reached.
        """
        key = key_of(reference)
        return self.load_as(hashlib.sha256(key.encode()).hexdigest()[:6], reference, path, entry=key)

    def load_as(
        self,
        name: str,
        reference: str | Mapping[str, Any],
        path: str | os.PathLike[str] | None,
        *,
        entry: str | None = None,
    ) -> str:
        """Load under a name of the log and of temporary directories; `entry` is the one in `loaded`, if
        another."""
        store = store_for(reference, self._store)
        info = store.info(reference) if isinstance(reference, str) else parse_reference(reference)
        with self._timed(name, info["key"]):
            if path is None:
                path = self._temporary.new(f"metaflow_models_{name}_")
            target = store.load(reference, path)
        self._loaded.add(entry or name, target, info)
        return target

    @contextmanager
    def _timed(self, name: str, key: str) -> Iterator[None]:
        kind = "model" if isinstance(parse_key(key), ModelKey) else "checkpoint"
        start = time.monotonic()
        yield
        self._log(f"Loaded artifact `{name}[type:{kind}]` in {time.monotonic() - start:.2f} seconds")

    def close(self) -> None:
        """Remove the temporary directories."""
        self._temporary.close()
