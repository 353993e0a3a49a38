"""The commands that read artifacts: ls, show, tree, cat, get, lineage."""

from __future__ import annotations

import argparse
import codecs
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate
from typing import Any

from metaflow_artifacts._cli.bar import bar
from metaflow_artifacts._cli.output import Table, escape, escape_lines, print_json, print_table, warn
from metaflow_artifacts._cli.roots import resolve, store_of
from metaflow_artifacts._cli.selecting import Selection, add_selection, count
from metaflow_artifacts._format.foreign import ForeignArtifact, ForeignManifest
from metaflow_artifacts._format.manifest import FileEntry, Manifest
from metaflow_artifacts._format.reference import ModelArtifact
from metaflow_artifacts._store.ancestry import lineage
from metaflow_artifacts._store.checkpoints import created_at
from metaflow_artifacts._store.foreign import read_foreign
from metaflow_artifacts._store.store import Store
from metaflow_artifacts._text import count_text, size_text, time_text
from metaflow_artifacts._upkeep.newest import newest_artifacts
from metaflow_artifacts.errors import ArtifactNotFound, CorruptArtifact

__all__ = ["add_commands"]

_PIECE = 16 << 20


def add_commands(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add ls, show, tree, cat, get and lineage. `command` makes the parser of one command."""
    ls = command("ls", _ls, "list artifacts, newest first")
    add_selection(ls)
    ls.add_argument("--limit", type=count, metavar="N", help="only the N newest")
    _key(command("show", _show, "show an artifact's reference, and how it is stored"))
    _key(command("tree", _tree, "list the files of an artifact"))
    cat = _key(command("cat", _cat, "print the content of one file of an artifact"))
    cat.add_argument("file", metavar="FILE", help="the path of the file in the artifact, as `tree` shows it")
    get = _key(command("get", _get, "load an artifact into a directory; every byte is verified"))
    get.add_argument(
        "path",
        metavar="PATH",
        help="the directory; it is created if it does not exist, and other files in it are left alone",
    )
    get.add_argument(
        "--only",
        metavar="PATTERN",
        action="append",
        help="only the files whose path matches (* also matches /, **/ also nothing); may be given several times",
    )
    _key(command("lineage", _lineage, "list an artifact and those that it was made from, newest first"))


def _key(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument("key", metavar="KEY", help="the artifact's key, or its url")
    return parser


def _ls(options: argparse.Namespace) -> int:
    store = store_of(options)
    selection = Selection.of(options, store.storage)
    damaged = 0
    artifacts: list[ModelArtifact] = []
    table = Table(_TITLES, right=["size"])
    with bar("ls") as progress:
        objects, foreign = selection.all_objects(store.storage)
        own = newest_artifacts(store, objects, selection.matches, options.limit, progress)
        theirs = read_foreign(store.storage, foreign)
        for found in _merged(own, (one for _, one in theirs), selection, options.limit):
            if isinstance(found, CorruptArtifact):
                damaged += 1
                progress.hide()
                warn(str(found))
            elif options.json:
                artifacts.append({**found, "url": store.storage.url(found["key"])})
            else:
                progress.hide()
                table.add(_row(found))
    if options.json:
        print_json(artifacts)
    else:
        table.end()
    return 1 if damaged else 0


def _merged(
    own: Iterator[ModelArtifact | CorruptArtifact],
    theirs: Iterable[ForeignArtifact | CorruptArtifact],
    selection: Selection,
    limit: int | None,
) -> Iterator[ModelArtifact | CorruptArtifact]:
    """Artifacts and damage, with those of metaflow-checkpoint between ours: the newest first, at most `limit`."""
    waiting: list[ModelArtifact] = []
    for one in theirs:
        if isinstance(one, CorruptArtifact):
            yield one
        elif selection.matches(one.artifact):
            waiting.append(one.artifact)
    waiting.sort(key=created_at)
    left = limit
    for found in own:
        if isinstance(found, CorruptArtifact):
            yield found
            continue
        while waiting and created_at(waiting[-1]) > created_at(found) and left != 0:
            left = None if left is None else left - 1
            yield waiting.pop()
        if left != 0:
            left = None if left is None else left - 1
            yield found
    yield from waiting[::-1][:left]


_TITLES = ("created on", "size", "type", "label", "pathspec", "key")


def _row(a: ModelArtifact) -> tuple[str, ...]:
    return time_text(a["created_on"]), size_text(a["size"]), a["type"], a["label"], a["pathspec"] or "-", a["key"]


def _manifest(options: argparse.Namespace) -> tuple[Store, Manifest]:
    store, (key,) = resolve(options, [options.key])
    return store, store.manifest(key)


def _show(options: argparse.Namespace) -> int:
    store, manifest = _manifest(options)
    artifact: dict[str, Any] = {**manifest.artifact, "url": store.storage.url(manifest.artifact["key"])}
    more: dict[str, Any] = {"latest": manifest.latest, "files": len(manifest.files)}
    if isinstance(manifest, ForeignManifest):
        more |= {"stored_by": "metaflow-checkpoint", "storage_format": manifest.storage_format}
        more["cannot_be_loaded"] = dict(manifest.refused or {})
        more["damage"] = manifest.damage
    else:
        more["chunks"] = len(manifest.chunks)
        more["chunk_size"] = manifest.chunk_size
        more["inline"] = manifest.inline is not None
    if options.json:
        print_json({"artifact": artifact, **more})
        return 0
    shown = {**artifact, "size": f"{artifact['size']} ({size_text(artifact['size'])})", **more}
    for name, value in shown.items():
        if isinstance(value, dict):
            rows = [f"{name}:", *(f"  {key}: {_text(item)}" for key, item in value.items())]
        elif isinstance(value, list):
            rows = [f"{name}:", *(f"  {_text(item)}" for item in value)]
        else:
            rows = [f"{name}: {_text(value)}"]
        for row in rows:
            print(escape(row))
    return 0


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _tree(options: argparse.Namespace) -> int:
    _, manifest = _manifest(options)
    if options.json:
        files = [{"path": f.path, "size": f.size, "mode": f.mode, "sha256": f.sha256} for f in manifest.files]
        print_json({"files": files, "dirs": list(manifest.dirs)})
        return 0
    entries = [(file.path, file) for file in manifest.files] + [(path, None) for path in manifest.dirs]
    shown: set[str] = set()
    for path, file in sorted(entries, key=lambda entry: entry[0].split("/")):
        parts = path.split("/")
        for level, directory in enumerate(accumulate(parts if file is None else parts[:-1], "{}/{}".format)):
            if directory not in shown:
                shown.add(directory)
                print(f"{'':>10}  {'    ' * level}{escape(parts[level])}/")
        if file is not None:
            mark = "*" if file.mode & 0o111 else ""
            print(f"{size_text(file.size):>10}  {'    ' * (len(parts) - 1)}{escape(parts[-1])}{mark}")
    print(f"{size_text(manifest.size):>10}  in {count_text(len(manifest.files), 'file')}")
    return 0


def _cat(options: argparse.Namespace) -> int:
    store, manifest = _manifest(options)
    file = manifest.file(options.file)
    if file is None:
        raise ArtifactNotFound(f"{manifest.artifact['key']} has no file {options.file!r}; `tree` lists its files")
    pieces = (store.read_file(manifest, file.path, start, end - start) for start, end in _pieces(manifest, file))
    if sys.stdout.isatty():
        decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
        for piece in pieces:
            sys.stdout.write(escape_lines(decoder.decode(piece)))
        sys.stdout.write(escape_lines(decoder.decode(b"", True)))
        return 0
    for piece in pieces:
        sys.stdout.buffer.write(piece)
    return 0


def _pieces(manifest: Manifest, file: FileEntry) -> Iterator[tuple[int, int]]:
    """The begin and end of the parts of a file that are read one at a time.

    A part lies in one chunk, so that no chunk is read twice, and has at most `_PIECE` bytes, which bounds the memory.
    """
    if manifest.inline is not None:
        yield 0, file.size
    if isinstance(manifest, ForeignManifest):
        yield from ((start, min(file.size, start + _PIECE)) for start in range(0, file.size, _PIECE))
    begin = 0
    for chunk in manifest.chunks:
        first = max(begin, file.offset) - file.offset
        last = min(begin + chunk.size, file.offset + file.size) - file.offset
        for start in range(first, last, _PIECE):
            yield start, min(last, start + _PIECE)
        begin += chunk.size


def _get(options: argparse.Namespace) -> int:
    store, (key,) = resolve(options, [options.key])
    with bar("get") as progress:
        path = store.load(key, options.path, only=options.only, progress=progress)
    if options.json:
        print_json({"path": path, "size": progress.total, "found": progress.found, "cached": progress.cached})
    else:
        found = f", {size_text(progress.found)} of it had been there already" if progress.found else ""
        cached = f", {size_text(progress.cached)} of it from the node's cache" if progress.cached else ""
        print(f"{size_text(progress.total)} in {escape(path)}{found}{cached}")
    return 0


def _lineage(options: argparse.Namespace) -> int:
    store, (key,) = resolve(options, [options.key])
    artifacts = lineage(key, store)
    if options.json:
        print_json(artifacts)
    else:
        print_table(_TITLES, map(_row, artifacts), right=["size"])
    return 0
