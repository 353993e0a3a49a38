"""The names of core that decorator packages may use.

They keep their meaning within a minor version; all other modules of core may change at any time. Each name is imported
when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._lazy import lazy_names

if TYPE_CHECKING:
    from ._cli.bar import bar as bar
    from ._format.info import CheckpointInfo as CheckpointInfo
    from ._format.keys import HUB as HUB
    from ._format.keys import CheckpointKey as CheckpointKey
    from ._format.keys import CheckpointPlace as CheckpointPlace
    from ._format.keys import ModelKey as ModelKey
    from ._format.keys import parse_key as parse_key
    from ._format.manifest import FileEntry as FileEntry
    from ._format.manifest import Manifest as Manifest
    from ._format.reference import ModelArtifact as ModelArtifact
    from ._format.reference import with_older_names as with_older_names
    from ._mf.arguments import ArgumentReader as ArgumentReader
    from ._mf.artifact_store import enter_artifact_store as enter_artifact_store
    from ._mf.background import TaskSave as TaskSave
    from ._mf.background import save_options as save_options
    from ._mf.background import with_pending_saves as with_pending_saves
    from ._mf.card import Html as Html
    from ._mf.card import TimelinePoint as TimelinePoint
    from ._mf.card import code as code
    from ._mf.card import facts as facts
    from ._mf.card import metadata_text as metadata_text
    from ._mf.card import note as note
    from ._mf.card import notice as notice
    from ._mf.card import paragraph as paragraph
    from ._mf.card import section as section
    from ._mf.card import table as table
    from ._mf.card import task_heading as task_heading
    from ._mf.card import tiles as tiles
    from ._mf.card import timeline as timeline
    from ._mf.conflict import guard_decorators as guard_decorators
    from ._mf.conflict import refuse_foreign_decorators as refuse_foreign_decorators
    from ._mf.datastore import require_usable as require_usable
    from ._mf.datastore import store_of_flow as store_of_flow
    from ._mf.errors import in_flow as in_flow
    from ._mf.errors import in_hook as in_hook
    from ._mf.errors import shown as shown
    from ._mf.live_card import CardReport as CardReport
    from ._mf.live_card import LiveCard as LiveCard
    from ._mf.live_card import has_card as has_card
    from ._mf.live_card import shown_on as shown_on
    from ._mf.loaded import Loaded as Loaded
    from ._mf.loaded import loaded_keys as loaded_keys
    from ._mf.loaded import note_loaded as note_loaded
    from ._mf.log import Log as Log
    from ._mf.preemption import is_preempted as is_preempted
    from ._mf.preemption import watch_for_preemption as watch_for_preemption
    from ._mf.stores import default_store as default_store
    from ._mf.stores import pointing_to_blocks as pointing_to_blocks
    from ._mf.stores import store_for as store_for
    from ._mf.stores import store_of_block as store_of_block
    from ._mf.stores import store_of_metadata as store_of_metadata
    from ._mf.task import ENVIRONMENT_VARIABLE as ENVIRONMENT_VARIABLE
    from ._mf.task import NotRegistered as NotRegistered
    from ._mf.task import TaskIdentity as TaskIdentity
    from ._mf.temporary import TemporaryDirectories as TemporaryDirectories
    from ._storage.base import ObjectInfo as ObjectInfo
    from ._store.background import background_saves as background_saves
    from ._store.checkpoint_writer import DEFAULT_NAME as DEFAULT_NAME
    from ._store.checkpoint_writer import CheckpointWriter as CheckpointWriter
    from ._store.checkpoints import latest_checkpoints as latest_checkpoints
    from ._store.checkpoints import list_checkpoints as list_checkpoints
    from ._store.checkpoints import list_foreign_checkpoints as list_foreign_checkpoints
    from ._store.checkpoints import task_of as task_of
    from ._store.choices import Choice as Choice
    from ._store.choices import GangChoice as GangChoice
    from ._store.lease import single_flight as single_flight
    from ._store.pending import PendingSave as PendingSave
    from ._store.references import ParsedReference as ParsedReference
    from ._store.selection import patterns_of as patterns_of
    from ._store.snapshots import SnapshotId as SnapshotId
    from ._store.snapshots import Snapshots as Snapshots
    from ._store.store import Store as Store
    from ._store.streams import StreamedFile as StreamedFile
    from ._text import count_text as count_text
    from ._text import duration_text as duration_text
    from ._text import seconds_of as seconds_of
    from ._text import size_text as size_text
    from ._text import time_text as time_text
    from ._transfer.progress import Progress as Progress
    from ._transfer.removal import allow_owner as allow_owner
    from ._transfer.removal import remove_tree as remove_tree
    from ._transfer.target import staged_target as staged_target
    from .errors import ArtifactError as ArtifactError
    from .errors import ArtifactNotFound as ArtifactNotFound
    from .errors import CorruptArtifact as CorruptArtifact
    from .errors import InvalidInput as InvalidInput
    from .errors import InvalidReference as InvalidReference
    from .errors import SaveReplaced as SaveReplaced
    from .errors import TargetError as TargetError
    from .errors import UsageError as UsageError

_WHERE = {
    "_cli.bar": ("bar",),
    "_format.info": ("CheckpointInfo",),
    "_format.keys": ("CheckpointKey", "CheckpointPlace", "HUB", "ModelKey", "parse_key"),
    "_format.manifest": ("FileEntry", "Manifest"),
    "_format.reference": ("ModelArtifact", "with_older_names"),
    "_mf.arguments": ("ArgumentReader",),
    "_mf.artifact_store": ("enter_artifact_store",),
    "_mf.background": ("TaskSave", "save_options", "with_pending_saves"),
    "_mf.card": (
        "Html",
        "TimelinePoint",
        "code",
        "facts",
        "metadata_text",
        "note",
        "notice",
        "paragraph",
        "section",
        "table",
        "task_heading",
        "tiles",
        "timeline",
    ),
    "_mf.conflict": ("guard_decorators", "refuse_foreign_decorators"),
    "_mf.datastore": ("require_usable", "store_of_flow"),
    "_mf.errors": ("in_flow", "in_hook", "shown"),
    "_mf.loaded": ("Loaded", "loaded_keys", "note_loaded"),
    "_mf.temporary": ("TemporaryDirectories",),
    "_mf.live_card": ("CardReport", "LiveCard", "has_card", "shown_on"),
    "_mf.log": ("Log",),
    "_mf.preemption": ("is_preempted", "watch_for_preemption"),
    "_mf.stores": ("default_store", "pointing_to_blocks", "store_for", "store_of_block", "store_of_metadata"),
    "_mf.task": ("ENVIRONMENT_VARIABLE", "NotRegistered", "TaskIdentity"),
    "_storage.base": ("ObjectInfo",),
    "_store.background": ("background_saves",),
    "_store.checkpoint_writer": ("CheckpointWriter", "DEFAULT_NAME"),
    "_store.checkpoints": ("latest_checkpoints", "list_checkpoints", "list_foreign_checkpoints", "task_of"),
    "_store.choices": ("Choice", "GangChoice"),
    "_store.lease": ("single_flight",),
    "_store.pending": ("PendingSave",),
    "_store.references": ("ParsedReference",),
    "_store.selection": ("patterns_of",),
    "_store.snapshots": ("SnapshotId", "Snapshots"),
    "_store.store": ("Store",),
    "_store.streams": ("StreamedFile",),
    "_text": ("count_text", "duration_text", "seconds_of", "size_text", "time_text"),
    "_transfer.progress": ("Progress",),
    "_transfer.removal": ("allow_owner", "remove_tree"),
    "_transfer.target": ("staged_target",),
    "errors": (
        "ArtifactError",
        "ArtifactNotFound",
        "CorruptArtifact",
        "InvalidInput",
        "InvalidReference",
        "SaveReplaced",
        "TargetError",
        "UsageError",
    ),
}

__all__ = sorted(name for names in _WHERE.values() for name in names)
__getattr__, __dir__ = lazy_names(globals(), _WHERE)
