"""Artifacts of metaflow-checkpoint, read where they lie; `_format/foreign.py` says what lies where.

They have no digests: what is loaded has the sizes that the JSON and the headers say, and no more is known about it.
Nothing is written here; only `delete` removes what it is asked to.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from datetime import datetime
from fnmatch import fnmatchcase
from typing import cast

from metaflow_artifacts._format.foreign import (
    JSON_BYTES,
    ForeignArtifact,
    ForeignManifest,
    Location,
    json_key,
    json_prefix,
    key_of_json,
    parse_any_key,
    parse_json,
    task_prefix,
)
from metaflow_artifacts._format.manifest import FileEntry
from metaflow_artifacts._format.paths import local_path, path_bytes, path_problem, tree_problem
from metaflow_artifacts._format.reference import ModelArtifact
from metaflow_artifacts._format.tar import BadTar, TarFile, read_tar
from metaflow_artifacts._layout import ARTIFACT_PREFIXES, CHECKPOINTS, checkpoint_prefix
from metaflow_artifacts._storage.base import ObjectInfo, Storage
from metaflow_artifacts._store.references import ParsedReference
from metaflow_artifacts._store.selection import Patterns, patterns_of, select
from metaflow_artifacts._text import size_text
from metaflow_artifacts._transfer.foreign import fetch_files
from metaflow_artifacts._transfer.progress import Progress
from metaflow_artifacts._transfer.target import local_files, make_tree, open_target
from metaflow_artifacts._transfer.threads import ordered
from metaflow_artifacts.errors import ArtifactNotFound, CorruptArtifact, InvalidReference, TargetError

__all__ = [
    "delete_foreign",
    "demand_unchanged",
    "find",
    "foreign_manifest",
    "foreign_of_task",
    "foreign_problem",
    "holds",
    "is_latest",
    "keys_of_foreign",
    "load_foreign",
    "read_foreign",
    "refuse_partly",
]

_WINDOW = 256 << 10
"""Bytes that are read at once for the headers of a tar: those of small files come many at a time."""
_SHOWN = 3


def find(storage: Storage, key: str) -> ForeignArtifact | None:
    """The artifact of metaflow-checkpoint at a key; None if there is none. One read.

    Raises CorruptArtifact if the JSON about it is damaged, StorageError.
    """
    try:
        data = storage.get(json_key(key), 0, JSON_BYTES + 1)
    except (ArtifactNotFound, InvalidReference):
        return None
    return parse_json(data, key)


def read_foreign(storage: Storage, keys: Iterable[str]) -> Iterator[tuple[str, ForeignArtifact | CorruptArtifact]]:
    """The artifacts of metaflow-checkpoint at `keys` that still exist, each with its key. A read for each."""
    keys = [*keys]
    for key, found in zip(keys, ordered(storage, lambda key: _read(storage, json_key(key), key), keys), strict=True):
        if found is not None:
            yield key, found


def keys_of_foreign(storage: Storage, prefixes: Iterable[str] = ARTIFACT_PREFIXES) -> Iterator[str]:
    """The keys of all artifacts of metaflow-checkpoint that begin with one of the prefixes, in any order.

    One listing for each prefix, and nothing is read. Raises StorageError.
    """
    for prefix in prefixes:
        for info in storage.list(json_prefix(prefix)):
            key = key_of_json(info.key)
            if key is not None and _is_key(key):
                yield key


def foreign_of_task(
    storage: Storage, pathspec: str, *, name: str | None = None, attempt: int | None = None
) -> list[ModelArtifact]:
    """References to the checkpoints that metaflow-checkpoint has stored for a task, in any order.

    Snapshots of the Hub are no checkpoints here. Damaged ones are left out. One listing, and a read for each. Raises
    StorageError.
    """
    begin = "" if attempt is None else f"{attempt}."
    listed = storage.list(task_prefix(checkpoint_prefix(CHECKPOINTS), pathspec) + begin)
    # There is also `latest`, a copy of one of them.
    wanted = [info.key for info in listed if key_of_json(info.key) is not None]
    found = []
    for key, one in zip(wanted, ordered(storage, lambda key: _read(storage, key, None), wanted), strict=True):
        if isinstance(one, ForeignArtifact) and one.task_json == key and name in (None, one.artifact.get("name")):
            found.append(one.artifact)
    return found


def _is_key(key: str) -> bool:
    try:
        parse_any_key(key)
    except InvalidReference:
        return False
    return True


def _read(storage: Storage, at: str, key: str | None) -> ForeignArtifact | CorruptArtifact | None:
    """The artifact that the JSON at `at` is about; None if it was deleted since it was listed, or `at` is no key."""
    try:
        return parse_json(storage.get(at, 0, JSON_BYTES + 1), key)
    except (ArtifactNotFound, InvalidReference):
        return None
    except CorruptArtifact as error:
        return error


def foreign_manifest(storage: Storage, found: ForeignArtifact) -> ForeignManifest:
    """The files of an artifact, in its storage: from the headers of its tar, or from a listing.

    Raises CorruptArtifact for a tar that cannot be loaded in any part, and StorageError.
    """
    return _manifest_of_tar(storage, found) if found.storage_format == "tar" else _manifest_of_files(storage, found)


def _manifest_of_tar(storage: Storage, found: ForeignArtifact) -> ForeignManifest:
    key = found.key
    info = storage.stat(key)
    if info is None:
        raise CorruptArtifact(f"{storage.url(key)}: the tar is missing, of which {json_key(key)} tells; restore it")
    window = _Window(storage, key)
    try:
        tree = read_tar(window.read, info.size)
    except BadTar as error:
        raise CorruptArtifact(f"{storage.url(key)}: this tar cannot be loaded: {error}") from None
    listed = found.artifact["size"]
    damage = tree.damage
    if info.size != listed:
        damage = f"the tar has {info.size} bytes, and had {listed} when it was saved"
    return _manifest(found, tree.files, tree.dirs, [key] * len(tree.files), tree.refused, damage, {key: info.modified})


def _manifest_of_files(storage: Storage, found: ForeignArtifact) -> ForeignManifest:
    below = found.key + "/"
    objects = sorted(_objects(storage, found.key, found.artifact["size"]), key=lambda info: path_bytes(info.key))
    refused = {}
    files = []
    for info in objects:
        path = info.key[len(below) :]
        problem = path_problem(path)
        if problem is not None:
            refused[path] = problem
        else:
            files.append(TarFile(path, info.size, 0o644, 0))
    problem = tree_problem([file.path for file in files], ())
    if problem is not None:
        raise CorruptArtifact(f"{storage.url(found.key)}: its objects are no tree of files ({problem})")
    total, listed = sum(info.size for info in objects), found.artifact["size"]
    damage = None
    if total != listed:
        damage = f"its {len(objects)} objects have {total} bytes, and {listed} were saved: one was removed or replaced"
    modified = {info.key: info.modified for info in objects}
    return _manifest(found, files, [], [below + file.path for file in files], refused, damage, modified)


def _objects(storage: Storage, key: str, size: int | None) -> list[ObjectInfo]:
    """The objects of an artifact that is stored as files. One listing if they have `size` bytes, else two.

    A label may begin with the name of another model and a slash. That model has its key and objects below this one.
    """
    objects = list(storage.list_any(key + "/"))
    if size == sum(info.size for info in objects):
        return objects
    inner = {other for info in storage.list(json_prefix(key + "/")) if (other := key_of_json(info.key)) is not None}
    below = tuple(f"{other}/" for other in inner)
    return [info for info in objects if info.key not in inner and not info.key.startswith(below)]


def _manifest(
    found: ForeignArtifact,
    files: list[TarFile],
    dirs: list[str],
    keys: list[str],
    refused: dict[str, str],
    damage: str | None,
    modified: dict[str, float],
) -> ForeignManifest:
    entries = []
    offset = 0
    for file in files:
        entries.append(FileEntry(file.path, file.size, file.mode, offset))
        offset += file.size
    return ForeignManifest(
        artifact=cast(ModelArtifact, {**found.artifact, "size": offset}),
        files=entries,
        dirs=dirs,
        chunks=(),
        chunk_size=0,
        locations=[Location(key, file.start) for key, file in zip(keys, files, strict=True)],
        refused=refused,
        damage=damage,
        storage_format=found.storage_format,
        modified=modified,
    )


def demand_unchanged(storage: Storage, manifest: ForeignManifest, wanted: Iterable[int]) -> None:
    """Raise CorruptArtifact if content of the files of these numbers was written since they were listed.

    metaflow-checkpoint replaces objects: what was read of them could be of two states. One request for a tar, else a
    listing. Raises StorageError.
    """
    key, before = manifest.artifact["key"], manifest.modified or {}
    names = {manifest.locations[number].key for number in wanted}
    if manifest.storage_format == "tar":
        info = storage.stat(key)
        now = {} if info is None else {key: info.modified}
    else:
        now = {info.key: info.modified for info in storage.list_any(key + "/")}
    changed = sorted(name for name in names if now.get(name) != before.get(name))
    if changed:
        raise CorruptArtifact(f"{storage.url(changed[0])}: it was replaced or removed while it was read; load it again")


class _Window:
    """Reads small parts of an object that lie near to each other with one request."""

    def __init__(self, storage: Storage, key: str) -> None:
        self._storage = storage
        self._key = key
        self._start = 0
        self._data = b""

    def read(self, start: int, length: int) -> bytes:
        at = start - self._start
        if not 0 <= at <= len(self._data) - length:
            self._start, at = start, 0
            self._data = self._storage.get(self._key, start, max(_WINDOW, length))
        return self._data[at : at + length]


def refuse_partly(manifest: ForeignManifest, only: Patterns | None) -> None:
    """Raise CorruptArtifact if a load of all files, or of those that match, would not be what was saved."""
    patterns = patterns_of(only)
    refused = dict(manifest.refused or {})
    if patterns is not None:
        wanted = {path: why for path, why in refused.items() if any(fnmatchcase(path, one) for one in patterns)}
        refused = wanted
    elif manifest.damage is not None:
        refused = {"": manifest.damage, **refused}
    if refused:
        told = "; ".join(f"{path!r}: {why}" if path else why for path, why in [*refused.items()][:_SHOWN])
        more = f"; and {len(refused) - _SHOWN} more" if len(refused) > _SHOWN else ""
        raise CorruptArtifact(
            f"{manifest.artifact['key']}, which metaflow-checkpoint has stored, cannot be loaded as it was saved: "
            f"{told}{more}; load the other files with only="
        )


def load_foreign(
    storage: Storage,
    manifest: ForeignManifest,
    path: str | os.PathLike[str],
    only: Patterns | None,
    progress: Progress,
) -> None:
    """Load the files that match `only` into the directory `path`. Raises as `Store.load`."""
    refuse_partly(manifest, only)
    wanted = sorted(select(manifest, only))
    size = sum(manifest.files[number].size for number in wanted)
    progress.start(size)
    with open_target(path) as target:
        room = shutil.disk_usage(target.path).free
        if size > room:
            raise TargetError(
                f"cannot load into {target.path!r}: {size_text(size)} are needed, {size_text(room)} are free; "
                "make room, or choose another path"
            )
        files = local_files([manifest.files[number] for number in wanted])
        dirs = map(local_path, manifest.dirs) if only is None else ()
        make_tree(target.stage.files, (file.path for file in files), dirs)
        locations = [manifest.locations[number] for number in wanted]
        fetch_files(storage, [*zip(files, locations, strict=True)], target.stage.files, progress)
        demand_unchanged(storage, manifest, wanted)


def is_latest(storage: Storage, found: ForeignArtifact) -> bool:
    """Whether a task that starts again may load the artifact automatically, as far as the store tells.

    What was saved with `latest=False` is not marked. But a task's `latest` is a copy of its newest one that was not
    saved so: what is newer was. Raises StorageError.
    """
    if found.task_json is None or found.artifact["type"] == "model":
        return True
    prefix = next(prefix for prefix in ARTIFACT_PREFIXES if found.key.startswith(prefix))
    newest = _read(storage, task_prefix(prefix, found.artifact["pathspec"]) + "latest", None)
    if not isinstance(newest, ForeignArtifact):
        return False
    return _moment(found) <= _moment(newest)


def _moment(found: ForeignArtifact) -> datetime:
    try:
        moment = datetime.fromisoformat(found.artifact["created_on"])
    except ValueError:
        return datetime.min
    return moment.replace(tzinfo=None)


def holds(storage: Storage, wanted: ParsedReference) -> bool:
    """Whether an artifact is stored at a key, whoever has stored it. Raises StorageError."""
    return storage.stat(wanted.own_key) is not None or _has_json(storage, wanted.key)


def _has_json(storage: Storage, key: str) -> bool:
    """Whether metaflow-checkpoint has stored an artifact at a key, by the JSON about it."""
    try:
        return storage.stat(json_key(key)) is not None
    except InvalidReference:
        return False


def foreign_problem(storage: Storage, found: ForeignArtifact, *, read: bool) -> str | None:
    """What is wrong with an artifact; None if its content has the size that was saved.

    With `read`, the headers of a tar are read too.
    """
    try:
        if found.storage_format == "tar" and not read:
            info = storage.stat(found.key)
            size = found.artifact["size"]
            if info is None or info.size != size:
                return f"a tar of {size} bytes was saved; {'it is missing' if info is None else f'it has {info.size}'}"
            return None
        refuse_partly(foreign_manifest(storage, found), None)
    except CorruptArtifact as error:
        return str(error)
    return None


def delete_foreign(storage: Storage, found: ForeignArtifact) -> None:
    """Remove an artifact: the content first, and the JSON by which it is found last. Raises StorageError."""
    if found.storage_format == "tar":
        storage.delete([found.key])
    else:
        below = found.key + "/"
        # What has an empty part, `.` or `..` in its name is none of its files.
        storage.delete_any(
            info.key for info in _objects(storage, found.key, None) if path_problem(info.key[len(below) :]) is None
        )
    if found.task_json is not None and path_problem(found.task_json) is None:
        # Names of flows may have other characters than keys.
        storage.delete_any([found.task_json])
    storage.delete([json_key(found.key)])
