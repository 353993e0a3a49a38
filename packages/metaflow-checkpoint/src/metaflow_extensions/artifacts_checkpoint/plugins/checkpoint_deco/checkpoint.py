"""`Checkpoint`: checkpoints in a subprocess of a task, in a notebook or in a script."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, cast

from metaflow_artifacts.plugin import in_flow, refuse_foreign_decorators

# Every Metaflow process imports this module, for the name `Checkpoint`. What only a save, load or list needs is
# imported there. Names of public annotations are also in checkpoint_stubs.py.
if TYPE_CHECKING:
    from metaflow.client.core import Task

    from metaflow_artifacts.plugin import Log, ModelArtifact, ParsedReference, PendingSave, Store, TaskIdentity

    from .journal import Journal

    References = list[ModelArtifact]

__all__ = ["PREFIX", "Checkpoint"]

PREFIX = "metaflow_checkpoint_"


class Checkpoint:
    """Saves, loads and lists checkpoints in processes that have no `current.checkpoint`.

    In a subprocess of a task with `@checkpoint` it belongs to that task, which it finds through an environment
    variable. In a notebook or a script it lists and loads what tasks have saved.

    ```python
    with Checkpoint() as cp:
        newest = cp.list(task="TrainFlow/12/train/34")[0]
        cp.load(newest)
        print(os.listdir(cp.directory))
    ```
    """

    @in_flow
    def __init__(self, temp_dir_root: str | os.PathLike[str] | None = None, init_dir: bool = False) -> None:
        """Make an object that belongs to the task of this process, if there is one.

        Parameters
        ----------
        temp_dir_root : str or os.PathLike, default None
            The directory in which `directory` is made; by default the system's directory for temporary files.
        init_dir : bool, default False
            Whether `directory` is made at once, and not at the begin of a `with` block.
        """
        from metaflow_artifacts.plugin import TemporaryDirectories

        refuse_foreign_decorators()
        self._log: Log | None = None
        self._temp_dir_root = temp_dir_root
        self._temporary = TemporaryDirectories(temp_dir_root)
        self._directory = self._temporary.new(PREFIX) if init_dir else None

    @property
    def directory(self) -> str | None:
        """The directory for `load` and `save` without a `path`.

        It is None outside of a `with` block, unless `init_dir` is set.
        """
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
        """Remove `directory` with its content."""
        self._temporary.close()
        self._directory = None

    @in_flow
    def save(
        self,
        path: str | os.PathLike[str] | Mapping[str, Any] | None = None,
        *arguments: str | Mapping[str, Any] | bool | None,
        metadata: Mapping[str, Any] | None = None,
        latest: bool | None = None,
        name: str | None = None,
        storage_format: str | None = None,
    ) -> ModelArtifact:
        """Save files, or contents in memory, as the next checkpoint of the task, and return the reference to it.

        When this returns, the checkpoint can be listed and loaded. A save that is interrupted is never listed or
        loaded. After `path`, the arguments may be given by position in any order: both `save(path, name, metadata,
        latest)` and `save(path, metadata, latest, name)` work, because their types tell them apart.

        Parameters
        ----------
        path : str, os.PathLike or Mapping[str, bytes or str or os.PathLike], default None
            The file or directory to save; by default `directory`. Or a mapping of the paths of files in the checkpoint
            to their contents, each a bytes-like object, or the path of a file or directory.
        metadata : Mapping[str, Any], default None
            A dict that is stored with the checkpoint. Values that JSON cannot hold become texts, with a warning.
        latest : bool, default True
            Whether a task that starts may load this checkpoint automatically.
        name : str, default 'mfchckpt'
            The name of the checkpoint; an empty one is the default. Checkpoints of all names share one sequence of
            numbers.
        storage_format : str, default None
            Accepted for flows that were written for metaflow-checkpoint; it changes nothing.

        Returns
        -------
        ModelArtifact
            The reference to the checkpoint, a plain dict.

        Raises
        ------
        NoTask
            If this process belongs to no task with `@checkpoint`.
        NoDirectory
            If there is no `path` and no `directory`.
        SourceError
            If `path` cannot be read.
        InvalidInput
            If the name breaks a rule.
        UsageError
            If an argument has the wrong type, or is given twice.
        StorageError
            If the datastore fails.
        """
        from metaflow_artifacts.plugin import DEFAULT_NAME, Progress, with_older_names

        from .arguments import save_arguments
        from .writer import writer_of

        task = self._task("save")
        given = save_arguments(arguments, name=name, metadata=metadata, latest=latest)
        may_be_latest = given.latest is not False
        if path is None:
            path = self._own_directory("save")
        journal = self._journal()
        progress = Progress()
        with journal.timed(progress) as enter:
            artifact = writer_of(task, journal).save(
                path,
                given.name or DEFAULT_NAME,
                given.metadata,
                label=f"{task.flow}_{task.step}",
                parents=journal.parents(),
                latest=may_be_latest,
                progress=progress,
            )
            enter(artifact, may_be_latest)
        return with_older_names(artifact)

    @in_flow
    def save_async(
        self,
        path: str | os.PathLike[str] | Mapping[str, Any] | None = None,
        *arguments: str | Mapping[str, Any] | bool | None,
        metadata: Mapping[str, Any] | None = None,
        latest: bool | None = None,
        name: str | None = None,
        consume: bool = False,
        on_busy: Literal["wait", "replace"] = "wait",
    ) -> PendingSave:
        """Save in the background: this returns as soon as the files may be changed again.

        What is saved is the state of the call. The checkpoints of a task are stored in the order of the calls, one
        after the other; a later `save` is made after them. The step ends when all are stored, and fails where one of
        them failed, unless its error was asked for. A process that called this does not end before all is stored.
        `path`, `metadata`, `latest` and `name` are those of `save`, and may be given by position in any order, too.

        Parameters
        ----------
        consume : bool, default False
            Whether the files are given away: they are moved and not copied, and are gone when this returns.
            `directory` is empty then.
        on_busy : str, default 'wait'
            What to do where one save is being stored and another one waits: `wait` for the first of them, or
            `replace` the one that waits, if it has the same name and the same `latest`.

        Returns
        -------
        PendingSave
            `done()`, `result(timeout=None)`, which waits for the reference, and `exception(timeout=None)`. Kept in an
            artifact (`self.x`), it becomes the reference.

        Raises
        ------
        NoTask, NoDirectory, SourceError, InvalidInput, UsageError
            As `save`. What fails later is the error of the PendingSave, such as StorageError.
        """
        from metaflow_artifacts.plugin import DEFAULT_NAME, Log, Progress, TaskSave, save_options, with_older_names

        from .arguments import save_arguments
        from .writer import writer_of

        task = self._task("save_async")
        given = save_arguments(arguments, name=name, metadata=metadata, latest=latest)
        may_be_latest = given.latest is not False
        own = self._own_directory("save_async") if path is None else None
        journal, progress, pending = self._journal(), Progress(), TaskSave()

        def finish(artifact: ModelArtifact) -> ModelArtifact:
            journal.enter_stored(artifact, may_be_latest, progress, pending.seconds_storing)
            return with_older_names(artifact)

        writer_of(task, journal).save_async(
            cast("Mapping[str, Any]", own if path is None else path),
            given.name or DEFAULT_NAME,
            given.metadata,
            label=f"{task.flow}_{task.step}",
            parents=journal.parents(),
            latest=may_be_latest,
            options=save_options(
                self._log or Log("checkpoint"), consume, on_busy, self._temp_dir_root, journal.note_failure
            ),
            progress=progress,
            pending=pending,
            finish=finish,
        )
        if own is not None:
            os.makedirs(own, mode=0o700, exist_ok=True)
        return pending

    @in_flow
    def wait(self, timeout: float | None = None) -> References:
        """Wait until all that `save_async` was called for in this process is stored.

        Parameters
        ----------
        timeout : float, default None
            Seconds to wait at most.

        Returns
        -------
        list of ModelArtifact
            The references to the checkpoints that were handed over since the last call, in the order of the calls.

        Raises
        ------
        SaveTimeout
            If that takes longer.
        ArtifactError
            The error of the first of them that failed.
        """
        from metaflow_artifacts.plugin import background_saves

        return background_saves().wait(timeout, kind="checkpoint")

    @property
    def pending(self) -> int:
        """How many saves in the background of this process are not stored yet."""
        from metaflow_artifacts.plugin import background_saves

        return background_saves().pending

    @property
    def seconds_waited(self) -> float:
        """How many seconds this process has waited for its saves in the background."""
        from metaflow_artifacts.plugin import background_saves

        return background_saves().seconds_waited

    @property
    def preempted(self) -> bool:
        """Whether this process has received SIGTERM, and `@checkpoint(preempt_grace=…)` gives the step time to leave.

        It is known too, from the first call of `save_async` in the main thread on, without `preempt_grace`.
        """
        from metaflow_artifacts.plugin import is_preempted

        return is_preempted()

    @in_flow
    def load(
        self,
        reference: str | Mapping[str, Any],
        path: str | os.PathLike[str] | None = None,
        *,
        only: str | Sequence[str] | None = None,
    ) -> str:
        """Load a checkpoint, or any other artifact, into a directory, and return the path of the directory.

        Nothing is changed in the directory until every byte has been verified.

        Parameters
        ----------
        reference : str or Mapping[str, Any]
            The dict that a save or `list` returned, or its key or url.
        path : str or os.PathLike, default None
            The directory to load into, by default `directory`. It is created if it does not exist; files of the same
            name are replaced, and other files are left alone. But without `path`, `current.checkpoint.load` replaces
            the whole content of `directory`.
        only : str or list of str, default None
            A pattern for the paths of the files to load, or several: `*.safetensors`, `tokenizer/*`. `*` and `?` are
            wildcards, and match `/` too. Each must match a file. By default, all files are loaded. Without `path`,
            `current.checkpoint.directory` then holds this part alone, and so does what is saved from it next.

        Returns
        -------
        str
            The path of the directory.

        Raises
        ------
        NoDirectory
            If there is no `path` and no `directory`.
        InvalidReference, ArtifactNotFound
            If `reference` is malformed, or nothing is stored at its key, or a pattern in `only` matches no file.
        InvalidInput
            If `only` is no pattern, or an empty list.
        CorruptArtifact
            If content is missing or damaged.
        TargetError
            If the directory cannot be written.
        StorageError
            If the datastore fails.
        """
        from metaflow_artifacts.plugin import ParsedReference, note_loaded, store_for

        parsed = ParsedReference.of(reference)
        if path is None:
            target = self._own_directory("load")
            self._load_into_own(parsed, target, only)
        else:
            target = store_for(parsed).load(parsed, path, only=only)
        note_loaded(parsed.key)
        self._note_load(parsed.key)
        self._journal().note_parents()
        return target

    def _note_load(self, key: str) -> None:
        """For the card, which a subprocess has none of."""

    @in_flow
    def list(
        self,
        name: str | None = None,
        task: Task | str | None = None,
        attempt: int | str | None = None,
        full_namespace: bool = False,
        as_dict: bool = True,
    ) -> References:
        """List references to checkpoints, newest first. This also works while the task runs.

        Parameters
        ----------
        name : str, default None
            List only checkpoints of this name; an empty one is the default, `mfchckpt`, as in `save`.
        task : metaflow.Task or str, default None
            The task whose checkpoints are listed, or its pathspec. By default the task of this process. For a node of a
            `@parallel` step, these are the checkpoints of all nodes, unless it has `per_node`. The task may also be
            one that ran with metaflow-checkpoint.
        attempt : int or str, default None
            List only checkpoints of this attempt. By default, with `task` those of the latest attempt, without `task`
            those of all attempts.
        full_namespace : bool, default False
            Also list what other runs have saved at the same place: the same flow, step, foreach value and namespace
            (and node, with `per_node`). `load_policy="eager"` chooses from these.
        as_dict : bool, default True
            With False, the fields of each reference are attributes, too: `CheckpointInfo`.

        Returns
        -------
        list of ModelArtifact
            The references, plain dicts. None for a task whose step has no `@checkpoint`.

        Raises
        ------
        NoTask
            If there is no `task`, and this process belongs to no task with `@checkpoint`.
        InvalidInput
            If `task` or `attempt` is malformed.
        ArtifactNotFound
            If the task does not exist.
        """
        from metaflow_artifacts.plugin import (
            DEFAULT_NAME,
            CheckpointInfo,
            list_foreign_checkpoints,
            store_of_metadata,
            with_older_names,
        )

        from .tasks import attempt_number, find_task, store_of

        number = attempt_number(attempt)
        name = DEFAULT_NAME if name == "" else name
        if task is None:
            mine = self._task("list")
            found = self._list(mine.store(), mine, name, number, full_namespace)
        else:
            of = find_task(task)
            number = of.attempt if number is None and not full_namespace else number
            if of.identity is not None:
                found = self._list(store_of(of.identity), of.identity, name, number, full_namespace)
            else:
                # Its step may have the @checkpoint of metaflow-checkpoint.
                store = store_of_metadata(of.metadata)
                found = list_foreign_checkpoints(store, of.pathspec, name=name, attempt=number)
        references = [with_older_names(artifact) for artifact in found]
        return references if as_dict else cast("References", [*map(CheckpointInfo, references)])

    @in_flow
    def generate_key(self, name: str = "", version_id: int | None = None) -> str:
        """The key that a checkpoint of this attempt has, or will have, under a name and number.

        Nothing is saved, and the number is not reserved: another save of the task may take it.

        Parameters
        ----------
        name : str, default 'mfchckpt'
            The name of the checkpoint.
        version_id : int, default None
            Its number; by default the next one that no checkpoint of this attempt has.

        Returns
        -------
        str
            The key.

        Raises
        ------
        NoTask
            If this process belongs to no task with `@checkpoint`.
        InvalidInput
            If the name or number breaks a rule.
        """
        from metaflow_artifacts.plugin import DEFAULT_NAME

        from .writer import writer_of

        task = self._task("generate_key")
        return str(writer_of(task, self._journal()).key(name or DEFAULT_NAME, version_id))

    def _list(
        self, store: Store, of: TaskIdentity, name: str | None, attempt: int | None, full_namespace: bool
    ) -> References:
        from metaflow_artifacts.plugin import list_checkpoints, pointing_to_blocks, task_of

        owner, prefix = None, of.checkpoint_place().prefix()
        if not full_namespace:
            owner, prefix = of.owner, f"{prefix}{of.id}." + ("" if attempt is None else f"{attempt}.")
        with pointing_to_blocks(store):
            return list_checkpoints(
                store,
                prefix,
                name=name,
                attempt=attempt,
                accept=lambda artifact: owner is None or task_of(artifact) == owner,
            )

    def _load_into_own(self, reference: ParsedReference, directory: str, only: str | Sequence[str] | None) -> None:
        from metaflow_artifacts.plugin import store_for

        store_for(reference).load(reference, directory, only=only)

    def _task(self, action: str) -> TaskIdentity:
        from metaflow_artifacts.plugin import ENVIRONMENT_VARIABLE, TaskIdentity

        task = TaskIdentity.from_environment()
        if task is None:
            from .errors import NoTask

            way_out = "pass task=…, or call it there" if action == "list" else "call it there"
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
            from .errors import NoDirectory

            raise NoDirectory(
                f"Checkpoint.{action}: without a path; give one, or use `with Checkpoint() as cp:`, which makes a "
                "directory"
            )
        return self.directory
