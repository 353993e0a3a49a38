"""Snapshots: the caller may change the source as soon as there is one, and it is stored later.

What is in memory stays there. Files are cloned on their own file system (`snapshot_clones.py`). Clones have no name,
and are read from descriptors: nothing is left when the process is killed, and the caller may remove the directory.
Where there are too many for descriptors, the smallest are together in one file, which is mapped into memory. With
`consume`, files are moved (`snapshot_moves.py`).
"""

from __future__ import annotations

import os

from metaflow_artifacts._format.paths import path_bytes
from metaflow_artifacts._transfer.content import Content, source_of
from metaflow_artifacts._transfer.scan import Source
from metaflow_artifacts._transfer.snapshot_clones import Cloner, writable_directory
from metaflow_artifacts._transfer.snapshot_moves import move_away
from metaflow_artifacts._transfer.snapshot_parts import NoSnapshot, Snapshot
from metaflow_artifacts._transfer.source import read_inline

__all__ = ["NoSnapshot", "Snapshot", "take_snapshot"]

_IN_MEMORY_BYTES = 1 << 20
"""Files of at most this many bytes in all are read into memory instead."""


def take_snapshot(
    content: Content, *, consume: bool = False, temp_root: str | os.PathLike[str] | None = None
) -> Snapshot:
    """A snapshot of a file, directory or mapping. The caller closes it.

    With `consume`, files and directories are moved. `temp_root` is where a snapshot is made if the source's file system
    cannot be written to. Raises NoSnapshot where there is no room, or where `consume` would have to copy; else as
    `source_of`, and SourceError for a file that changes each time it is cloned.
    """
    source = source_of(content)
    if all(file.content is not None for file in source.files):
        # Nobody can change a mapping of bytes, nor a directory without files.
        return Snapshot(source)
    if consume:
        return move_away(content, source)
    if sum(file.size for file in source.files if file.content is None) <= _IN_MEMORY_BYTES:
        source = _read(source) or source
        if all(file.content is not None for file in source.files):
            return Snapshot(source)
    cloner = Cloner(source, writable_directory(content, source, temp_root))
    try:
        return Snapshot(cloner.clone_all(), opened=cloner.opened)
    except BaseException:
        for file in cloner.opened:
            file.close()
        raise


def _read(source: Source) -> Source | None:
    """The source with the content of its files in memory; None where they have become large."""
    on_disk = Source([file for file in source.files if file.content is None], source.dirs)
    content = read_inline(on_disk, _IN_MEMORY_BYTES)
    if content is None:
        return None
    files = [file for file in source.files if file.content is not None]
    view, offset = memoryview(content), 0
    for file in on_disk.files:
        if not file.gone:
            files.append(file._replace(content=view[offset : offset + file.size]))
            offset += file.size
    files.sort(key=lambda file: path_bytes(file.path))
    return Source(files, source.dirs)
