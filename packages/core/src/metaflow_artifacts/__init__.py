"""Models and checkpoints, stored by content on local disk, S3, Azure and Google Cloud Storage. See `open_store`.

The public names are those of this module, of `metaflow_artifacts.errors`, and of `metaflow_artifacts.testing` for tests
of storages. `metaflow_artifacts.plugin` is for decorator packages only. All other modules are private.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._lazy import lazy_names

if TYPE_CHECKING:
    from ._cli.roots import configured_store as configured_store
    from ._format.info import CheckpointInfo as CheckpointInfo
    from ._format.keys import CheckpointKey as CheckpointKey
    from ._format.keys import CheckpointPlace as CheckpointPlace
    from ._format.keys import ModelKey as ModelKey
    from ._format.manifest import Chunk as Chunk
    from ._format.manifest import FileEntry as FileEntry
    from ._format.manifest import Head as Head
    from ._format.manifest import Manifest as Manifest
    from ._format.manifest import Outline as Outline
    from ._format.reference import ModelArtifact as ModelArtifact
    from ._format.reference import is_model_artifact as is_model_artifact
    from ._format.reference import parse_reference as parse_reference
    from ._format.reference import validate_reference as validate_reference
    from ._storage import ObjectInfo as ObjectInfo
    from ._storage import Reader as Reader
    from ._storage import Staged as Staged
    from ._storage import Storage as Storage
    from ._storage import open_storage as open_storage
    from ._store.ancestry import lineage as lineage
    from ._store.background import SaveOptions as SaveOptions
    from ._store.checkpoint_writer import CheckpointWriter as CheckpointWriter
    from ._store.checkpoints import latest_checkpoints as latest_checkpoints
    from ._store.checkpoints import list_checkpoints as list_checkpoints
    from ._store.copying import CopyResult as CopyResult
    from ._store.details import SaveDetails as SaveDetails
    from ._store.pending import PendingSave as PendingSave
    from ._store.references import ParsedReference as ParsedReference
    from ._store.store import Store as Store
    from ._store.store import open_store as open_store
    from ._transfer.progress import Progress as Progress
    from ._upkeep.check import check as check
    from ._upkeep.contents import Checked as Checked
    from ._upkeep.contents import Damage as Damage
    from ._upkeep.garbage import Waiting as Waiting
    from ._upkeep.gc import GcPlan as GcPlan
    from ._upkeep.gc import GcStats as GcStats
    from ._upkeep.gc import execute_gc as execute_gc
    from ._upkeep.gc import gc as gc
    from ._upkeep.gc import plan_gc as plan_gc
    from ._upkeep.report import CheckReport as CheckReport
    from ._upkeep.report import Note as Note
    from ._upkeep.report import Problem as Problem
    from ._upkeep.retain import Group as Group
    from ._upkeep.retain import Kept as Kept
    from ._upkeep.retain import RetentionPlan as RetentionPlan
    from ._upkeep.retain import RetentionStats as RetentionStats
    from ._upkeep.retain import Rules as Rules
    from ._upkeep.retain import execute_retention as execute_retention
    from ._upkeep.retain import plan_retention as plan_retention
    from ._upkeep.stages import Survey as Survey
    from ._upkeep.stages import Swept as Swept
    from ._upkeep.stages import Upkeep as Upkeep
    from ._upkeep.stages import check_chunks as check_chunks
    from ._upkeep.stages import finish_upkeep as finish_upkeep
    from ._upkeep.stages import survey_store as survey_store
    from ._upkeep.stages import sweep_chunks as sweep_chunks
    from .errors import ArtifactError as ArtifactError
    from .errors import ArtifactNotFound as ArtifactNotFound
    from .errors import ArtifactWarning as ArtifactWarning
    from .errors import CorruptArtifact as CorruptArtifact
    from .errors import InvalidInput as InvalidInput
    from .errors import InvalidReference as InvalidReference
    from .errors import LaterFormat as LaterFormat
    from .errors import SaveReplaced as SaveReplaced
    from .errors import SaveTimeout as SaveTimeout
    from .errors import SourceError as SourceError
    from .errors import SourceNotFound as SourceNotFound
    from .errors import StorageError as StorageError
    from .errors import TargetError as TargetError
    from .errors import TransientStorageError as TransientStorageError
    from .errors import UnsupportedFormat as UnsupportedFormat
    from .errors import UsageError as UsageError

__version__ = "0.1.0"

# Metaflow reads this name and puts the package into the code package of every flow, so that remote tasks have it.
METAFLOW_PACKAGE_POLICY = "include"

_WHERE = {
    "_cli.roots": ("configured_store",),
    "_format.info": ("CheckpointInfo",),
    "_format.keys": ("CheckpointKey", "CheckpointPlace", "ModelKey"),
    "_format.manifest": ("Chunk", "FileEntry", "Head", "Manifest", "Outline"),
    "_format.reference": ("ModelArtifact", "is_model_artifact", "parse_reference", "validate_reference"),
    "_storage": ("ObjectInfo", "Reader", "Staged", "Storage", "open_storage"),
    "_store.ancestry": ("lineage",),
    "_store.background": ("SaveOptions",),
    "_store.checkpoint_writer": ("CheckpointWriter",),
    "_store.checkpoints": ("latest_checkpoints", "list_checkpoints"),
    "_store.copying": ("CopyResult",),
    "_store.details": ("SaveDetails",),
    "_store.pending": ("PendingSave",),
    "_store.references": ("ParsedReference",),
    "_store.store": ("Store", "open_store"),
    "_transfer.progress": ("Progress",),
    "_upkeep.check": ("check",),
    "_upkeep.contents": ("Checked", "Damage"),
    "_upkeep.garbage": ("Waiting",),
    "_upkeep.gc": ("GcPlan", "GcStats", "execute_gc", "gc", "plan_gc"),
    "_upkeep.report": ("CheckReport", "Note", "Problem"),
    "_upkeep.retain": (
        "Group",
        "Kept",
        "RetentionPlan",
        "RetentionStats",
        "Rules",
        "execute_retention",
        "plan_retention",
    ),
    "_upkeep.stages": (
        "Survey",
        "Swept",
        "Upkeep",
        "check_chunks",
        "finish_upkeep",
        "survey_store",
        "sweep_chunks",
    ),
    "errors": (
        "ArtifactError",
        "ArtifactNotFound",
        "ArtifactWarning",
        "CorruptArtifact",
        "InvalidInput",
        "InvalidReference",
        "LaterFormat",
        "SaveReplaced",
        "SaveTimeout",
        "SourceError",
        "SourceNotFound",
        "StorageError",
        "TargetError",
        "TransientStorageError",
        "UnsupportedFormat",
        "UsageError",
    ),
}

__all__ = sorted(name for names in _WHERE.values() for name in names)
__getattr__, __dir__ = lazy_names(globals(), _WHERE)
