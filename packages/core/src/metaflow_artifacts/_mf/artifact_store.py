"""Which artifact store holds in this process: that of the flow, of the task whose subprocess this is, or of a block.

`@with_artifact_store` puts a `FlowStore` on Metaflow's flow datastore. A task tells its subprocesses the root by the
environment variable that names the task, and the options by a file that only this user can read.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from metaflow_artifacts._mf.store_config import StoreConfig, kind_of
from metaflow_artifacts.errors import StorageError, UsageError

if TYPE_CHECKING:
    # Imported where it is used: every Metaflow process imports this module, and few of them have such a store.
    from metaflow_artifacts._mf.temporary import TemporaryDirectories

__all__ = [
    "ENVIRONMENT_VARIABLE",
    "STORE_ROOT",
    "STORE_TYPE",
    "Block",
    "FlowStore",
    "config_of",
    "config_of_task",
    "enter_artifact_store",
    "exported",
    "flow_store",
    "inherited_store",
    "names_only_a_store",
    "open_block",
    "running_flow_datastore",
    "set_flow_store",
    "use_store",
]

ENVIRONMENT_VARIABLE = "METAFLOW_CHECKPOINT_UID"
"""The environment variable that tells a subprocess which task it belongs to, and that task's artifact store."""

_FIELD = "artifact_store"
_ATTRIBUTE = "_metaflow_artifacts_store"
STORE_TYPE, STORE_ROOT = "artifact-store-ds-type", "artifact-store-ds-root"
"""The fields of system tags and of metadata that name the store. metaflow-checkpoint has the same."""


def running_flow_datastore() -> Any:
    """Metaflow's flow datastore of the task that runs in this process; None outside of a task."""
    from metaflow.metaflow_current import current

    if not current.is_running_flow:
        return None
    try:
        from metaflow.system_context import system_context
    except ImportError:
        # Early releases of Metaflow 2.19 have it in the command line's context, in the main thread.
        from metaflow._vendor import click

        context: Any = cast(Any, click).get_current_context(silent=True)
        return getattr(context.obj, "flow_datastore", None) if context is not None else None
    return system_context.flow_datastore


class FlowStore:
    """The store that `@with_artifact_store` names, in one process of the flow."""

    def __init__(self, given_type: object, given_config: object) -> None:
        """Raises InvalidInput or StorageError for what can be known to be wrong without a call of the user's code."""
        self._where = "@with_artifact_store"
        self._kind = kind_of(given_type, self._where)
        self._where = f"@with_artifact_store(type={given_type!r})"
        self._given = given_config
        self._config: StoreConfig | None = None
        self._directory: TemporaryDirectories | None = None
        self._entered = False
        if not callable(given_config):
            self._config = StoreConfig.read(self._kind, given_config, self._where)
        StoreConfig(self._kind, "", "").require_sdk(self._where)

    @property
    def where(self) -> str:
        """The decorator, as errors name it."""
        return self._where

    def config(self) -> StoreConfig:
        """The config. A function of the user's is called the first time. Raises InvalidInput if it cannot be used."""
        if self._config is None:
            self._config = StoreConfig.read(self._kind, self._given, self._where)
        return self._config

    def check(self) -> None:
        """Raise InvalidInput where a task could not use the config, or not tell it to subprocesses."""
        self.config().encode()

    def tags(self) -> list[str]:
        """The system tags that name the store on a run."""
        return [f"{name}:{value}" for name, value in self._metadata().items()]

    def enter(self, metadata: Any, run: str, step: str, task: str, attempt: int) -> None:
        """A task with one of the decorators begins: note the store in its metadata, and tell it to subprocesses.

        A function of the user's is called again, since other decorators (`@secrets`) may have set what it reads.
        """
        if not self._entered:
            self._config = StoreConfig.read(self._kind, self._given, self._where)
            self.export()
            self._entered = True
        from metaflow.metadata_provider.metadata import MetaDatum

        tags = [f"attempt_id:{attempt}"]
        data = [MetaDatum(name, value, "metaflow-artifacts", tags) for name, value in self._metadata().items()]
        metadata.register_metadata(run, step, task, data)

    def _metadata(self) -> dict[str, str]:
        config = self.config()
        return {STORE_TYPE: config.kind, STORE_ROOT: config.given_root}

    def export(self) -> None:
        """Let subprocesses that are started from now on use this store, as the process of a task does.

        Options are written into a file of mode 0600, in a directory of mode 0700. It is removed when the process ends.
        """
        values = self.config().encode()
        options = values.pop("options")
        if options:
            if self._directory is None:
                from metaflow_artifacts._mf.temporary import TemporaryDirectories

                self._directory = TemporaryDirectories()
                self._path = os.path.join(self._directory.new("metaflow_artifact_store_"), "options.json")
            _write_private(self._path, json.dumps(options))
            values["file"] = self._path
        entry = {_FIELD: {**values, "process": os.getpid()}}
        os.environ[ENVIRONMENT_VARIABLE] = json.dumps(entry, separators=(",", ":"))


def _write_private(path: str, text: str) -> None:
    draft = f"{path}.{os.getpid()}"
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(fd, "w") as file:
        file.write(text)
    os.replace(draft, path)


def set_flow_store(flow_datastore: Any, store: FlowStore) -> None:
    """Let `store` be the store of the flow that has this datastore."""
    setattr(flow_datastore, _ATTRIBUTE, store)


def flow_store(flow_datastore: Any) -> FlowStore | None:
    """The store that the flow's `@with_artifact_store` names; None for none."""
    store: FlowStore | None = getattr(flow_datastore, _ATTRIBUTE, None)
    return store


def enter_artifact_store(flow_datastore: Any, metadata: Any, run: str, step: str, task: str, attempt: int) -> None:
    """A task with one of the decorators begins. To be called in `task_pre_step`, before anything asks for a store.

    If the flow has an artifact store, it is noted in the task's metadata, and subprocesses find it. Raises InvalidInput
    if its config cannot be used.
    """
    store = flow_store(flow_datastore)
    if store is not None:
        store.enter(metadata, run, step, task, attempt)


def _entry() -> Mapping[str, Any] | None:
    """What the environment says about the store of the task that this process belongs to."""
    with contextlib.suppress(ValueError):
        values = json.loads(os.environ.get(ENVIRONMENT_VARIABLE) or "null")
        entry = values.get(_FIELD) if isinstance(values, dict) else None
        if isinstance(entry, dict) and {"kind", "given_root", "root", "process"} <= set(entry):
            return entry
    return None


def names_only_a_store(text: str) -> bool:
    """Whether a value of the environment variable is about a task without `@checkpoint`."""
    with contextlib.suppress(ValueError):
        values = json.loads(text)
        return isinstance(values, dict) and set(values) == {_FIELD}
    return False


def exported() -> dict[str, Any]:
    """What the environment variable says about the store of this very process, to be kept when it is set anew."""
    entry = _entry()
    return {_FIELD: entry} if entry is not None and entry["process"] == os.getpid() else {}


def inherited_store() -> StoreConfig | None:
    """The store of the task whose subprocess this is; None for none. In another task, that one's does not hold.

    Raises StorageError if its options are not there any more.
    """
    from metaflow.metaflow_current import current

    entry = _entry()
    if entry is None or (current.is_running_flow and entry["process"] != os.getpid()):
        return None
    return _of_entry(entry)


def _of_entry(entry: Mapping[str, Any]) -> StoreConfig:
    path = entry.get("file")
    if path is None:
        return StoreConfig.decode(entry)
    try:
        status = os.stat(path)
        options = _options(path, status.st_mtime_ns, status.st_ino)
    except (OSError, ValueError) as error:
        raise StorageError(
            f"the settings of the artifact store {entry['root']} are no longer at {path} ({error}): the task that "
            "started this process has ended, or runs on another machine; use "
            "`with artifact_store_from(task=…, config=…)` here"
        ) from error
    return StoreConfig.decode({**entry, "options": options})


@functools.lru_cache(maxsize=2)
def _options(path: str, *version: int) -> dict[str, Any]:
    with open(path) as file:
        options: dict[str, Any] = json.load(file)
    return options


@dataclass(frozen=True)
class Block:
    """An open block of `artifact_store_from`: which store loads and lists use in it."""

    config: StoreConfig | None
    """The store; None for Metaflow's datastore."""


_blocks: list[Block] = []
_own_blocks: ContextVar[tuple[Block, ...]] = ContextVar("artifact_store_from", default=())


def open_block() -> Block | None:
    """The block that holds for this thread: its own innermost one, else the one that another thread has open.

    Raises UsageError if there is none of this thread, and those of others name different stores.
    """
    own = _own_blocks.get()
    if own:
        return own[-1]
    others = list(_blocks)
    if any(other.config != others[0].config for other in others):
        raise UsageError(
            "threads have opened artifact_store_from for different stores, and this thread has opened none; open it "
            "in this thread too"
        )
    return others[-1] if others else None


def config_of(root: str) -> StoreConfig | None:
    """The config with which this thread opens the store at `root`; None for Metaflow's own settings.

    It is that of a block of this thread, else that of the task, else that of another thread's block.

    Raises StorageError if the process belongs to a task with this store, whose options are not there any more.
    """
    for config in _with_root(root, _own_blocks.get()):
        # A block that was opened without options must not hide those that the task has for the same store.
        return config if config.options else config_of_task(root) or config
    return config_of_task(root) or next(_with_root(root, _blocks), None)


def _with_root(root: str, blocks: Sequence[Block]) -> Iterator[StoreConfig]:
    return (one.config for one in reversed(blocks) if one.config is not None and one.config.root == root)


def config_of_task(root: str) -> StoreConfig | None:
    """The config with which a task, or its subprocess, opens its own store at `root`, in a block or not.

    Raises as `config_of`.
    """
    of_flow = flow_store(running_flow_datastore())
    if of_flow is not None and of_flow.config().root == root:
        return of_flow.config()
    entry = _entry()
    return _of_entry(entry) if entry is not None and entry["root"] == root else None


@contextmanager
def use_store(config: StoreConfig | None) -> Iterator[None]:
    """Open a block in which loads and lists use a store; with None, Metaflow's datastore."""
    block = Block(config)
    before = _own_blocks.get()
    _blocks.append(block)
    _own_blocks.set((*before, block))
    try:
        yield
    finally:
        _own_blocks.set(before)
        _remove(block)


def _remove(block: Block) -> None:
    """Remove this very block: another one may be equal to it."""
    for index, one in enumerate(_blocks):
        if one is block:
            del _blocks[index]
            return
