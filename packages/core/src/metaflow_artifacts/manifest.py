"""The manifest: one immutable JSON object that says all about an artifact. Bytes in, bytes out, no I/O.

`docs/format.md` is the specification. In short: JSON in ASCII, a row per file, the chunks of the content in
order (or the content itself, base64, where it is small), and as the last member the SHA-256 of every byte
before it, so that a damaged manifest is never taken for a whole one.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, NoReturn, TypeGuard, cast

from metaflow_artifacts.artifact import MAX_DEPTH, ModelArtifact, depth, validate
from metaflow_artifacts.errors import CorruptArtifact, SourceError, UnsupportedFormat

__all__ = [
    "FORMAT",
    "HEAD_BYTES",
    "MAX_BYTES",
    "VERSION",
    "Chunk",
    "FileEntry",
    "Head",
    "Manifest",
    "decode",
    "decode_head",
    "encode",
]

FORMAT = "metaflow-artifacts"
VERSION = 1
MAX_BYTES = 256 << 20
"""A manifest of more bytes than this is neither written nor read: some 1.5 million files."""

_MAX_SIZE = 1 << 62
_MAX_PATH = 4096
_MAX_PARSED = 512 << 20
"""Bytes of memory that parsing may take, as far as counting brackets, quotes and commas tells."""
_HEX64 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_TAIL = re.compile(rb',"sha256":"([0-9a-f]{64})"\}\n')
_TAIL_LENGTH = 78
_HEAD = re.compile(
    rf'\{{"format":"{FORMAT}","version":(?P<version>[0-9]{{1,9}}),"head_sha256":"(?P<sha256>[0-9a-f]{{64}})","head":'
)
HEAD_BYTES = 4096
"""What to read of a manifest to have its head, unless its metadata is large."""
_WINDOWS_DEVICES = re.compile(r"(?i)(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?")


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file: `path` within the artifact, `size` bytes from `offset` of the stream, permission bits `mode`."""

    path: str
    size: int
    mode: int
    offset: int
    sha256: str | None = None
    """Digest of the content in hex, for a file that shares a chunk with others; else its chunks tell."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """One piece of the stream: its SHA-256 in hex, its name in the store too, and its size in bytes."""

    sha256: str
    size: int


@dataclass(frozen=True)
class Head:
    """What a manifest begins with: all that a listing tells about an artifact."""

    artifact: ModelArtifact
    latest: bool
    """As in the manifest."""


@dataclass(frozen=True)
class Manifest:
    """An artifact as it is stored."""

    artifact: ModelArtifact
    files: Sequence[FileEntry]
    """In the order of their paths' bytes; offsets add up."""
    dirs: Sequence[str]
    """Empty directories."""
    chunks: Sequence[Chunk]
    """The stream, in order. With inline content, one chunk that is not stored by itself."""
    chunk_size: int
    """Bytes; what the writer cut at. Readers go by the sizes of the chunks alone."""
    inline: bytes | None = None
    """The stream itself, where it is small."""
    latest: bool = True
    """Checkpoints: whether a task that starts again may load it without being told to."""

    @property
    def size(self) -> int:
        """Bytes of content."""
        return sum(chunk.size for chunk in self.chunks)


def encode(manifest: Manifest) -> bytes:
    """The manifest as the bytes of its object. Raises SourceError where they are more than a reader takes."""
    head = _dump({"artifact": manifest.artifact, "latest": manifest.latest})
    digest = hashlib.sha256(head).hexdigest()
    start = b'{"format":"%b","version":%d,"head_sha256":"%b","head":' % (FORMAT.encode(), VERSION, digest.encode())
    wire: dict[str, Any] = {
        "chunk_size": manifest.chunk_size,
        "files": [
            [f.path, f.size, f.mode, f.offset] if f.sha256 is None else [f.path, f.size, f.mode, f.offset, f.sha256]
            for f in manifest.files
        ],
        "dirs": list(manifest.dirs),
        "chunks": [[chunk.sha256, chunk.size] for chunk in manifest.chunks],
    }
    if manifest.inline is not None:
        wire["inline"] = base64.b64encode(manifest.inline).decode()
    body = start + head + b"," + _dump(wire)[1:-1]
    data = body + b',"sha256":"' + hashlib.sha256(body).hexdigest().encode() + b'"}\n'
    if len(data) > MAX_BYTES or _parsed(data) > _MAX_PARSED:
        raise SourceError(
            f"{manifest.artifact['key']}: {len(manifest.files)} files make a manifest of {len(data)} bytes, more than "
            f"the {MAX_BYTES} that are read; save fewer files, or put them into archives"
        )
    return data


def _dump(value: dict[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode()


def _parsed(data: bytes) -> int:
    """About the bytes that the JSON in `data` takes in memory, and never much less."""
    containers = data.count(b"[") + data.count(b"{")
    return 72 * containers + 30 * data.count(b'"') + 32 * data.count(b",")


def decode(data: bytes, key: str) -> Manifest:
    """The manifest in the bytes of the object at `key`.

    Raises UnsupportedFormat for another format or a later version, and CorruptArtifact for anything that breaks
    the format: every field is checked, since whoever can write to the store may be a stranger.
    """
    if len(data) > MAX_BYTES:
        raise CorruptArtifact(f"{key}: the manifest has more than the {MAX_BYTES} bytes that are read; {_REMEDY}")
    if _parsed(data) > _MAX_PARSED:
        raise CorruptArtifact(f"{key}: the manifest has more entries than memory should be given for; {_REMEDY}")
    tail = _TAIL.fullmatch(data[-_TAIL_LENGTH:])
    try:
        text = data.decode("ascii")
        wire = _JSON.decode(text)
    except (ValueError, RecursionError) as error:
        if data.lstrip()[:1] != b"{" or b'"format"' not in data[:100]:
            raise UnsupportedFormat(
                f"{key}: what is stored there is not a manifest of these packages ({len(data)} bytes, starting "
                f"{data[:20]!r}); it is damaged, or was written by something else; {_REMEDY}"
            ) from None
        raise CorruptArtifact(f"{key}: the manifest is damaged ({error}); {_REMEDY}") from None
    if not isinstance(wire, dict) or wire.get("format") != FORMAT:
        raise UnsupportedFormat(
            f"{key}: what is stored there is not a manifest of these packages; it is damaged, or was written by "
            f"something else; {_REMEDY}"
        )
    version = wire.get("version")
    if not _is_int(version) or version < 1:
        raise CorruptArtifact(f"{key}: the manifest is damaged (version {str(version)[:20]}); {_REMEDY}")
    if version > VERSION:
        raise UnsupportedFormat(
            f"{key}: format version {str(version)[:20]}, this installation reads up to {VERSION}; "
            "upgrade metaflow-artifacts"
        )
    if tail is None or hashlib.sha256(data[:-_TAIL_LENGTH]).hexdigest().encode() != tail[1]:
        raise CorruptArtifact(f"{key}: the manifest is damaged (its checksum does not match); {_REMEDY}")
    try:
        if _head_of(text) is None:
            raise _Bad("head: does not come first, or its digest does not match")
        return _manifest(wire)
    except _Bad as error:
        raise CorruptArtifact(f"{key}: the manifest breaks the format ({str(error)[:200]}); {_REMEDY}") from None


def decode_head(data: bytes) -> Head | None:
    """What the first bytes of a manifest say, where they hold all of its head and it is whole; else None.

    None says nothing about the manifest: read all of it then.
    """
    try:
        head = _head_of(data.decode("ascii"))
        return None if head is None else _head(head)
    except (_Bad, ValueError):
        return None


def _head_of(text: str) -> dict[str, Any] | None:
    match = _HEAD.match(text)
    if match is None or int(match["version"]) > VERSION:
        return None
    try:
        head, end = _JSON.raw_decode(text, match.end())
    except (ValueError, RecursionError):
        return None
    whole = hashlib.sha256(text[match.end() : end].encode()).hexdigest() == match["sha256"]
    return head if whole and isinstance(head, dict) else None


_REMEDY = "save the artifact again, or load another one"


class _Bad(Exception):
    pass


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a member that occurs twice")
    return members


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number in JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text[:20]} is too large")
    return number


_JSON = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_number, parse_float=_finite)


def _head(wire: dict[str, Any]) -> Head:
    artifact = wire.get("artifact")
    problems = validate(artifact)
    if problems or not isinstance(artifact, dict):
        raise _Bad("artifact: " + "; ".join(problems))
    if depth(artifact) > MAX_DEPTH + 1:
        raise _Bad(f"artifact: nested in more than {MAX_DEPTH} levels")
    latest = wire.get("latest")
    if not isinstance(latest, bool):
        raise _Bad(f"latest: {latest!r}")
    return Head(cast(ModelArtifact, artifact), latest)


def _manifest(wire: dict[str, Any]) -> Manifest:
    if not isinstance(wire.get("head"), dict):
        raise _Bad("head: expected an object")
    head = _head(wire["head"])
    artifact = head.artifact
    chunk_size = wire.get("chunk_size")
    if not _is_int(chunk_size) or not 0 < chunk_size < _MAX_SIZE:
        raise _Bad(f"chunk_size: {chunk_size!r}")
    files = [_file(row, number) for number, row in enumerate(_rows(wire, "files"))]
    chunks = [_chunk(row, number) for number, row in enumerate(_rows(wire, "chunks"))]
    dirs = _rows(wire, "dirs")
    for number, path in enumerate(dirs):
        if not isinstance(path, str):
            raise _Bad(f"dirs[{number}]: {path!r}")
        _check_path(path, f"dirs[{number}]")
    _check_tree([file.path for file in files], dirs)
    size = 0
    for number, file in enumerate(files):
        if file.offset != size:
            raise _Bad(f"files[{number}]: offset {file.offset}, the files before it end at {size}")
        size += file.size
    stored = sum(chunk.size for chunk in chunks)
    if not size == stored == artifact["size"]:
        raise _Bad(f"sizes: files add up to {size}, chunks to {stored}, the artifact says {artifact['size']}")
    inline = _inline(wire, chunks)
    return Manifest(artifact, files, dirs, chunks, chunk_size, inline, head.latest)


def _rows(wire: dict[str, Any], name: str) -> list[Any]:
    rows = wire.get(name)
    if not isinstance(rows, list):
        raise _Bad(f"{name}: expected a list")
    return rows


def _is_int(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _file(row: Any, number: int) -> FileEntry:
    where = f"files[{number}]"
    if not isinstance(row, list) or len(row) not in (4, 5) or not isinstance(row[0], str):
        raise _Bad(f"{where}: expected [path, size, mode, offset] or that and a sha256")
    path, size, mode, offset = row[:4]
    _check_path(path, where)
    if not (_is_int(size) and _is_int(offset) and 0 <= size < _MAX_SIZE and 0 <= offset < _MAX_SIZE):
        raise _Bad(f"{where}: size {size!r}, offset {offset!r}")
    if not _is_int(mode) or not 0 <= mode <= 0o7777:
        raise _Bad(f"{where}: mode {mode!r}")
    digest = row[4] if len(row) == 5 else None
    if digest is not None and not (isinstance(digest, str) and _HEX64.fullmatch(digest)):
        raise _Bad(f"{where}: sha256 {digest!r}")
    return FileEntry(path, size, mode, offset, digest)


def _chunk(row: Any, number: int) -> Chunk:
    if not (isinstance(row, list) and len(row) == 2 and isinstance(row[0], str) and _HEX64.fullmatch(row[0])):
        raise _Bad(f"chunks[{number}]: expected [sha256, size]")
    if not _is_int(row[1]) or not 0 < row[1] < _MAX_SIZE:
        raise _Bad(f"chunks[{number}]: size {row[1]!r}")
    return Chunk(row[0], row[1])


def _inline(wire: dict[str, Any], chunks: Sequence[Chunk]) -> bytes | None:
    text = wire.get("inline")
    if text is None:
        return None
    try:
        inline = base64.b64decode(text, validate=True)
    except (TypeError, ValueError, binascii.Error):
        raise _Bad("inline: not base64") from None
    if len(chunks) > 1 or len(inline) != sum(chunk.size for chunk in chunks):
        raise _Bad("inline: its size is not that of one chunk")
    return inline


def _check_path(path: str, where: str) -> None:
    if len(path) > _MAX_PATH:
        raise _Bad(f"{where}: a path of {len(path)} characters, at most {_MAX_PATH} are allowed")
    parts = path.split("/")
    if "" in parts or "." in parts or ".." in parts or "\0" in path:
        raise _Bad(f"{where}: {path!r} is not a relative, normalised path")
    try:
        same = path.isascii() or os.fsdecode(os.fsencode(path)) == path
    except UnicodeEncodeError:
        same = False
    if not same:
        raise _Bad(f"{where}: {path!r} is not how the name of a file is written")
    if os.name == "nt" and any(
        _WINDOWS_DEVICES.fullmatch(part) or set(part) & set('\\:*?"<>|') or part[-1] in " ." for part in parts
    ):
        raise _Bad(f"{where}: {path!r} cannot be a name on this system")


def _check_tree(files: list[str], dirs: list[str]) -> None:
    ordered = [os.fsencode(path) for path in files]
    if any(a >= b for a, b in pairwise(ordered)):
        raise _Bad("files: not in the order of their paths, or twice the same")
    names = set(files)
    if len(set(dirs)) != len(dirs) or not names.isdisjoint(dirs):
        raise _Bad("dirs: one twice, or one that is a file too")
    parents: set[str] = set()
    for path in [*files, *dirs]:
        for parent in accumulate(path.split("/")[:-1], "{}/{}".format):
            parents.add(parent)
    if not parents.isdisjoint(names) or not parents.isdisjoint(dirs):
        raise _Bad("files: one is a directory of another, or an empty directory is not empty")
