"""`Checkpoint`: checkpoints in a subprocess of a task, in a notebook, in a script."""

from __future__ import annotations

import builtins
import os
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

from metaflow_artifacts.plugin import in_flow, refuse_foreign_decorators, store_for

from .errors import NoDirectory, NoTask

# Every Metaflow process imports this module, for the name `Checkpoint`; what moves data is imported where it is used.
if TYPE_CHECKING:
    from metaflow.client.core import Task

    from metaflow_artifacts.plugin import ModelArtifact, TaskIdentity

    from .journal import Journal

__all__ = ["PREFIX", "Checkpoint"]

PREFIX = "metaflow_checkpoint_"


class Checkpoint:
    """Saves, loads and lists checkpoints where there is no `current.checkpoint`.

    In a subprocess of a task with `@checkpoint` it belongs to that task, which it finds through the environment;
    in a notebook or a script it lists and loads what tasks have saved.

    ```python
    with Checkpoint() as cp:
        newest = cp.list(task="TrainFlow/12/train/34")[0]
        cp.load(newest)
        print(os.listdir(cp.directory))
    ```
    """

    def __init__(self, temp_dir_root: str | os.PathLike[str] | None = None, init_dir: bool = False) -> None:
        """`temp_dir_root` is where `directory` is made, the system's place for temporary files by default.

        With `init_dir` it is made at once, else on `with`.
        """
        from metaflow_artifacts.plugin import TemporaryDirectories

        refuse_foreign_decorators()
        self._temporary = TemporaryDirectories(temp_dir_root)
        self._directory = self._temporary.new(PREFIX) if init_dir else None

    @property
    def directory(self) -> str | None:
        """What is loaded and saved without a `path`; None without `init_dir` outside of a `with` block."""
        return self._directory

    def __enter__(self) -> Checkpoint:
        if self._directory is None:
            self._directory = self._temporary.new(PREFIX)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.cleanup()

    def cleanup(self) -> None:
        """Remove `directory` and what is in it."""
        self._temporary.close()
        self._directory = None

    @in_flow
    def save(
        self,
        path: str | os.PathLike[str] | None = None,
        *arguments: str | Mapping[str, Any] | bool | None,
        metadata: Mapping[str, Any] | None = None,
        latest: bool | None = None,
        name: str | None = None,
        storage_format: str | None = None,
    ) -> ModelArtifact:
        """Save a file or directory as the task's next checkpoint and return the reference to it, a plain dict.

        `path` is what to save, `directory` by default. `metadata` is kept with it, a dict of anything: what JSON
        cannot hold becomes text, with a warning. With `latest=False` (by default it is True) it is never loaded by
        itself when a task starts. Checkpoints of every `name` (by default `mfchckpt`) count on in one row.
        `storage_format` is accepted for flows written for other packages and changes nothing.

        By position, after `path`, a text is the name, a dict the metadata and a bool `latest`, in any order: both
        `save(path, name, metadata, latest)` and `save(path, metadata, latest, name)` work.

        Only when this returns can the checkpoint be listed and loaded; a save that is cut short leaves no trace
        of it. Raises NoTask (a UsageError) outside of a task with `@checkpoint`, SourceError where `path` cannot be
        read, InvalidReference for a name that breaks a rule, UsageError for an argument of another type or one that is
        given twice, StorageError where the datastore fails.
        """
        from metaflow_artifacts.plugin import DEFAULT_NAME, Progress

        from .arguments import save_arguments
        from .writer import writer_of

        task = self._task("save")
        given = save_arguments(arguments, name=name, metadata=metadata, latest=latest)
        may_be_latest = given.latest is not False
        if path is None:
            path = self._own_directory("save")
        journal = self._journal()
        transfer = Progress()
        with journal.timed(transfer) as note:
            artifact = writer_of(task, journal).save(
                path,
                DEFAULT_NAME if given.name is None else given.name,
                given.metadata,
                label=f"{task.flow}_{task.step}",
                parents=journal.parents(),
                latest=may_be_latest,
                progress=transfer,
            )
            note(artifact, may_be_latest)
        return artifact

    @in_flow
    def load(self, reference: str | Mapping[str, Any], path: str | os.PathLike[str] | None = None) -> str:
        """Load a checkpoint, or anything else that was saved, and return the directory it is in.

        `reference` is the dict that a save or `list` returned, or its key. Without `path` it becomes the content
        of `directory`, in place of what was there; else the directory is made, or added to: files of the same
        name are replaced, nothing else is touched. Nothing changes until every byte was verified.

        Raises NoDirectory (a UsageError) where there is no `path` and no `directory`, InvalidReference for what is
        no reference, ArtifactNotFound where nothing is stored at the key, CorruptArtifact where content is missing
        or changed, TargetError where the directory cannot be written, StorageError where the datastore cannot be
        reached.
        """
        from metaflow_artifacts.plugin import key_of, note_loaded

        from .directory import replace_content

        key = key_of(reference)
        if path is None:
            target = self._own_directory("load")
            store = store_for(reference)
            with replace_content(target) as stage:
                store.load(reference, stage)
        else:
            target = store_for(reference).load(reference, path)
        note_loaded(key)
        self._journal().note_parents()
        return target

    @in_flow
    def list(
        self,
        name: str | None = None,
        task: Task | str | None = None,
        attempt: int | str | None = None,
        full_namespace: bool = False,
    ) -> builtins.list[ModelArtifact]:
        """References to checkpoints, newest first, while the task still runs too.

        Without `task`, those of the task that this process belongs to, of all its attempts or of `attempt`. With
        `task`, a `metaflow.Task` or its pathspec, those of its latest attempt, or of `attempt`. `name` leaves out
        checkpoints of other names. `full_namespace` adds what other runs have saved at the same place: the same
        flow, step, foreach value or node, and namespace, which is what `load_policy="eager"` chooses from.

        Raises NoTask (a UsageError) without `task` outside of a task with `@checkpoint`, InvalidReference for a
        task or attempt that is none, ArtifactNotFound for a task that does not exist, UsageError for one whose
        step had no `@checkpoint`.
        """
        from metaflow_artifacts.plugin import list_checkpoints

        from .tasks import attempt_number, find_task, store_of

        number = attempt_number(attempt)
        if task is None:
            of = self._task("list")
        else:
            of, latest = find_task(task)
            number = latest if number is None and not full_namespace else number
        place = of.checkpoint_place()
        if full_namespace:
            return list_checkpoints(store_of(of), place.prefix(), name=name, attempt=number)
        prefix = f"{place.prefix()}{of.id}." + ("" if number is None else f"{number}.")
        return list_checkpoints(
            store_of(of),
            prefix,
            name=name,
            attempt=number,
            accept=lambda artifact: artifact["pathspec"] == of.pathspec,
        )

    def _task(self, action: str) -> TaskIdentity:
        from metaflow_artifacts.plugin import ENVIRONMENT_VARIABLE, TaskIdentity

        task = TaskIdentity.from_environment()
        if task is None:
            way_out = "pass task=…" if action == "list" else "call it there"
            raise NoTask(
                f"Checkpoint.{action}: this process belongs to no task of a step with @checkpoint; {way_out}, or in "
                f"a subprocess of such a task that inherits its environment variable {ENVIRONMENT_VARIABLE}"
            )
        return task

    def _journal(self) -> Journal:
        from .journal import Journal

        return Journal.of_task()

    def _own_directory(self, action: str) -> str:
        if self.directory is None:
            raise NoDirectory(
                f"Checkpoint.{action}: without a path; give one, or use `with Checkpoint() as cp:`, which makes a "
                "directory"
            )
        return self.directory
