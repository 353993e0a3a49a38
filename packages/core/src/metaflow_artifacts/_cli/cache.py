"""The command `cache`: what the node's cache holds, and how it is emptied. It belongs to no store."""

from __future__ import annotations

import argparse
import errno
import os
from collections.abc import Callable
from importlib.util import find_spec

from metaflow_artifacts._cli.output import escape, print_json, warn
from metaflow_artifacts._text import count_text, size_text, time_text
from metaflow_artifacts._transfer.cache import CACHE, Cache, cache_from
from metaflow_artifacts.errors import ArtifactNotFound, InvalidInput, StorageError

__all__ = ["add_commands"]

_OTHERS = {errno.EACCES, errno.EPERM, errno.ENOENT}
"""What the removal of a chunk of another user raises, or of one that another process has removed."""


def add_commands(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add cache. `command` makes the parser of one command."""
    cache = command("cache", _cache, f"show what this machine's cache ({CACHE}) holds, or empty it")
    cache.add_argument("--clear", action="store_true", help="remove all of it, but what is being written")


def _cache(options: argparse.Namespace) -> int:
    if options.root is not None:
        raise InvalidInput(
            "cache takes no --root: it is about a directory of this machine, whatever store it is used for"
        )
    cache = _configured()
    if cache is None:
        raise ArtifactNotFound(f"no cache is configured; set {CACHE} to a directory on a disk of this machine")
    try:
        before = cache.chunks()
        if options.clear:
            cache.clear()
        chunks = cache.chunks() if options.clear else before
        size = sum(chunk.size for chunk in chunks)
        limit = cache.limit(size)
    except OSError as error:
        reason = cache.reason(error)
        raise StorageError(f"cannot use the cache in {cache.directory!r} ({CACHE}): {reason}") from error
    removed = {chunk.sha256: chunk.size for chunk in before}
    for chunk in chunks:
        removed.pop(chunk.sha256, None)
    if options.json:
        print_json(
            {
                "directory": cache.directory,
                "limit": limit,
                "size": size,
                "chunks": len(chunks),
                "oldest_use": chunks[0].used if chunks else None,
                "removed": len(removed),
            }
        )
    else:
        if options.clear:
            print(f"removed {count_text(len(removed), 'chunk')} of {size_text(sum(removed.values()))}")
        held = f"{count_text(len(chunks), 'chunk')} of {size_text(size)}"
        oldest = f", the oldest used at {time_text(chunks[0].used)} UTC" if chunks else ""
        print(f"{held} in {escape(cache.directory)}{oldest}; at most {size_text(limit)}")
    if options.clear and chunks:
        obstacle = cache.obstacle(chunks[0])
        if obstacle is None or obstacle.errno in _OTHERS:
            warn(f"{count_text(len(chunks), 'chunk')} of other users, or written since, could not be removed")
        else:
            warn(f"{count_text(len(chunks), 'chunk')} could not be removed: {cache.reason(obstacle)}")
        return 1
    return 0


def _configured() -> Cache | None:
    if find_spec("metaflow") is None:
        return cache_from(os.environ)
    from metaflow_artifacts._mf.datastore import configured_cache

    return configured_cache()
