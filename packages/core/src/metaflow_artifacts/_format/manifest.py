"""The manifest: one immutable JSON object that describes an artifact. It is encoded and decoded here, without I/O.

`docs/format.md` is the specification. In short: a manifest is JSON in ASCII. Its first bytes give the length and digest
of the head (which a listing shows) and of the rows of chunks (which gc needs), so that either can be read without the
rest. A row for each file follows, and the content itself if it is small. The last member is the SHA-256 of all bytes
before it, so that damage is always detected.
"""

from __future__ import annotations

import base64
import binascii
import functools
import hashlib
import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NoReturn, TypeGuard, cast

from metaflow_artifacts._format.floats import with_floats, without_floats
from metaflow_artifacts._format.paths import path_problem, stored_path, tree_problem
from metaflow_artifacts._format.reference import MAX_DEPTH, ModelArtifact, depth, validate_reference
from metaflow_artifacts.errors import CorruptArtifact, LaterFormat, SourceError, UnsupportedFormat

__all__ = [
    "FORMAT",
    "FRONT_BYTES",
    "MAX_BYTES",
    "MAX_SIZE",
    "VERSION",
    "Chunk",
    "FileEntry",
    "Front",
    "Head",
    "Manifest",
    "Outline",
    "begins_manifest",
    "begins_of",
    "decode",
    "decode_front",
    "decode_head",
    "decode_outline",
    "demand_version",
    "encode",
]

FORMAT = "metaflow-artifacts"
VERSION = 1
MAX_BYTES = 256 << 20
"""A manifest of more bytes is neither written nor read. This is enough for about 1.5 million files."""
MAX_SIZE = 1 << 62
"""No file, chunk or artifact has so many bytes."""

_MAX_PARSED = 512 << 20
"""Most bytes of memory that parsing may take, estimated from the number of brackets, quotes and commas."""
_HEX64 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_TAIL = re.compile(rb',"sha256":"([0-9a-f]{64})"\}\n')
_TAIL_LENGTH = 78
_START = re.compile(rb'\{"format":"metaflow-artifacts","version":(?P<version>0|[1-9][0-9]{0,8})(?=[,}])', re.ASCII)
_FRONT = re.compile(
    rb',"head_bytes":(?P<head_bytes>0|[1-9][0-9]{0,8}),"head_sha256":"(?P<head_sha256>[0-9a-f]{64})"'
    rb',"chunks_bytes":(?P<chunks_bytes>0|[1-9][0-9]{0,8}),"chunks_sha256":"(?P<chunks_sha256>[0-9a-f]{64})","head":',
    re.ASCII,
)
_BEFORE_CHUNKS = b',"chunks":'
_FIXED = ("format", "version", "head_bytes", "head_sha256", "chunks_bytes", "chunks_sha256", "head", "chunks")
FRONT_BYTES = 4096
"""Bytes to read of a manifest at first: they contain the head, unless the metadata is large."""


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file: `path` within the artifact, `size` bytes from `offset` of the stream, permission bits `mode`."""

    path: str
    size: int
    mode: int
    offset: int
    sha256: str | None = None
    """Digest of the content in hex, if the file shares a chunk with others. Otherwise those of its chunks suffice."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """One piece of the stream: its SHA-256 in hex, by which the store names it, and its size in bytes."""

    sha256: str
    size: int


@dataclass(frozen=True)
class Head:
    """What a listing shows about an artifact: the first part of its manifest."""

    artifact: ModelArtifact
    latest: bool
    """As in the manifest."""


@dataclass(frozen=True)
class Outline(Head):
    """A manifest without the rows of its files."""

    chunks: Sequence[Chunk]
    """As in the manifest."""


@dataclass(frozen=True)
class Front:
    """The positions of the parts of a manifest, as its first bytes give them, and the digests (hex) of the parts."""

    head: slice
    head_sha256: str
    chunks: slice
    chunks_sha256: str


@dataclass(frozen=True)
class Manifest:
    """An artifact as it is stored."""

    artifact: ModelArtifact
    files: Sequence[FileEntry]
    """In the order of their paths' bytes; offsets add up."""
    dirs: Sequence[str]
    """Empty directories."""
    chunks: Sequence[Chunk]
    """The stream, in order; empty if the content is `inline`."""
    chunk_size: int
    """Bytes at which the writer cut. Readers use only the sizes of the chunks."""
    inline: bytes | None = None
    """The stream itself, if it is small."""
    latest: bool = True
    """Checkpoints: whether a task that starts again may load it automatically."""

    @property
    def size(self) -> int:
        """Bytes of content."""
        return self.artifact["size"]

    @functools.cached_property
    def chunk_begins(self) -> Sequence[int]:
        """Where each chunk begins in the stream."""
        return begins_of(self.chunks)

    @functools.cached_property
    def _by_path(self) -> dict[str, FileEntry]:
        return {file.path: file for file in self.files}

    def file(self, path: str) -> FileEntry | None:
        """The file that this process calls `path`; None if there is none."""
        return self._by_path.get(stored_path(path))


def begins_of(chunks: Iterable[Chunk]) -> list[int]:
    """Where each of a stream's chunks begins, in bytes."""
    return list(accumulate((chunk.size for chunk in chunks), initial=0))[:-1]


def encode(manifest: Manifest) -> bytes:
    """The manifest as the bytes of its object. Raises SourceError if they are more than readers accept."""
    head = _dump(_head_members(manifest))
    chunks = _dump([[chunk.sha256, chunk.size] for chunk in manifest.chunks])
    rest: dict[str, Any] = {
        "chunk_size": manifest.chunk_size,
        "files": [
            [f.path, f.size, f.mode, f.offset] if f.sha256 is None else [f.path, f.size, f.mode, f.offset, f.sha256]
            for f in manifest.files
        ],
        "dirs": list(manifest.dirs),
    }
    if manifest.inline is not None:
        rest["inline"] = base64.b64encode(manifest.inline).decode()
    body = b"".join(
        (
            b'{"format":"%b","version":%d' % (FORMAT.encode(), VERSION),
            b',"head_bytes":%d,"head_sha256":"%b"' % (len(head), _hex(head)),
            b',"chunks_bytes":%d,"chunks_sha256":"%b","head":' % (len(chunks), _hex(chunks)),
            head,
            _BEFORE_CHUNKS,
            chunks,
            b",",
            _dump(rest)[1:-1],
        )
    )
    data = body + b',"sha256":"' + _hex(body) + b'"}\n'
    if len(data) > MAX_BYTES or _is_too_much(data):
        raise SourceError(
            f"{manifest.artifact['key']}: {len(manifest.files)} files make a manifest of {len(data)} bytes, more than "
            f"the {MAX_BYTES} that are read; save fewer files, or put them into archives"
        )
    return data


def _head_members(manifest: Manifest) -> dict[str, Any]:
    metadata, floats = without_floats(manifest.artifact["metadata"])
    head: dict[str, Any] = {"artifact": {**manifest.artifact, "metadata": metadata}, "latest": manifest.latest}
    if floats:
        head["floats"] = floats
    return head


def _hex(data: bytes) -> bytes:
    return hashlib.sha256(data).hexdigest().encode()


def _dump(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode()


def _is_too_much(data: bytes) -> bool:
    """Whether json.loads may need too much memory for `data`, by an upper estimate."""
    if 72 * len(data) <= _MAX_PARSED:
        return False
    containers = data.count(b"[") + data.count(b"{")
    return 72 * containers + 30 * data.count(b'"') + 32 * data.count(b",") > _MAX_PARSED


def decode(data: bytes, key: str) -> Manifest:
    """The manifest in the bytes of the object at `key`.

    Raises UnsupportedFormat for another format or a later version, and CorruptArtifact for anything that breaks
    the format. Every field is checked, because the writer of a manifest is not trusted.
    """
    if len(data) > MAX_BYTES:
        raise CorruptArtifact(f"{key}: the manifest has more than the {MAX_BYTES} bytes that are read; {_REMEDY}")
    if _is_too_much(data):
        raise CorruptArtifact(
            f"{key}: parsing the manifest would need more than {_MAX_PARSED >> 20} MiB of memory; {_REMEDY}"
        )
    demand_version(data, key)
    tail = _TAIL.fullmatch(data[-_TAIL_LENGTH:])
    if tail is None or _hex(data[:-_TAIL_LENGTH]) != tail[1]:
        raise CorruptArtifact(f"{key}: the manifest is damaged (its checksum does not match); {_REMEDY}")
    try:
        return _manifest(data)
    except _Bad as error:
        raise CorruptArtifact(f"{key}: the manifest breaks the format ({str(error)[:200]}); {_REMEDY}") from None


def begins_manifest(data: bytes) -> bool:
    """Whether an object that begins with these bytes may be a manifest, of any version."""
    return _START.match(data) is not None


def demand_version(data: bytes, key: str) -> None:
    """Raise UnsupportedFormat or CorruptArtifact if the first bytes of an object are not those of a manifest of this
    version."""
    start = _START.match(data)
    if start is None:
        raise UnsupportedFormat(
            f"{key}: what is stored there is not a manifest of these packages ({len(data)} bytes, starting "
            f"{data[:20]!r}); it is damaged, or was written by another program; {_REMEDY}"
        )
    version = int(start["version"])
    if version > VERSION:
        raise LaterFormat(
            f"{key}: format version {version}, this installation reads up to {VERSION}; upgrade metaflow-artifacts"
        )
    if version < VERSION:
        raise CorruptArtifact(f"{key}: the manifest is damaged (version {version}); {_REMEDY}")


def decode_front(data: bytes) -> Front | None:
    """The positions of the parts of a manifest, from its first bytes; None if these are not those of a manifest.

    After None, read all of the manifest and `decode` it: that tells what is wrong.
    """
    start = _START.match(data)
    if start is None or int(start["version"]) != VERSION:
        return None
    match = _FRONT.match(data, start.end())
    if match is None:
        return None
    head = slice(match.end(), match.end() + int(match["head_bytes"]))
    begin = head.stop + len(_BEFORE_CHUNKS)
    chunks = slice(begin, begin + int(match["chunks_bytes"]))
    if chunks.stop > MAX_BYTES:
        return None
    return Front(head, match["head_sha256"].decode(), chunks, match["chunks_sha256"].decode())


def decode_head(data: bytes, front: Front) -> Head | None:
    """The head, from the first bytes of a manifest and the positions in `front`; None if it is damaged."""
    if _is_too_much(data[front.head]):
        return None
    try:
        return _head(data, front)
    except _Bad:
        return None


def decode_outline(data: bytes, front: Front) -> Outline | None:
    """Head and chunks, from the first bytes of a manifest; None if either is damaged."""
    if _is_too_much(data[: front.chunks.stop]):
        return None
    try:
        head = _head(data, front)
        return Outline(head.artifact, head.latest, _chunks(data, front, head.artifact))
    except _Bad:
        return None


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


def _parse(data: bytes, what: str) -> Any:
    try:
        return _JSON.decode(data.decode("ascii"))
    except (ValueError, RecursionError) as error:
        raise _Bad(f"{what}: {error}") from None


def _part(data: bytes, where: slice, sha256: str, what: str) -> Any:
    """The part of a manifest at `where`, verified and parsed."""
    part = data[where]
    if len(part) != where.stop - where.start or _hex(part).decode() != sha256:
        raise _Bad(f"{what}: its length or digest is not the one that the first bytes give")
    return _parse(part, what)


def _head(data: bytes, front: Front) -> Head:
    wire = _part(data, front.head, front.head_sha256, "head")
    if not isinstance(wire, dict):
        raise _Bad("head: expected an object")
    artifact = wire.get("artifact")
    problems = validate_reference(artifact)
    if problems or not isinstance(artifact, dict):
        raise _Bad("artifact: " + "; ".join(problems))
    # Counting is fast, and a value is not deeper than it has brackets.
    brackets = data.count(b"[", front.head.start, front.head.stop) + data.count(b"{", front.head.start, front.head.stop)
    if brackets > MAX_DEPTH and depth(artifact) > MAX_DEPTH + 1:
        raise _Bad(f"artifact: nested in more than {MAX_DEPTH} levels")
    latest = wire.get("latest")
    if not isinstance(latest, bool):
        raise _Bad(f"latest: {latest!r}")
    floats = wire.get("floats", [])
    if not isinstance(floats, list):
        raise _Bad(f"floats: {floats!r}")
    try:
        artifact["metadata"] = with_floats(artifact["metadata"], floats)
    except ValueError as error:
        raise _Bad(f"floats: {error}") from None
    return Head(cast(ModelArtifact, artifact), latest)


def _chunks(data: bytes, front: Front, artifact: ModelArtifact) -> list[Chunk]:
    rows = _part(data, front.chunks, front.chunks_sha256, "chunks")
    if not isinstance(rows, list):
        raise _Bad("chunks: expected a list")
    chunks = [_chunk(row, number) for number, row in enumerate(rows)]
    stored = sum(chunk.size for chunk in chunks)
    # Inline content has no chunks.
    if chunks and stored != artifact["size"]:
        raise _Bad(f"sizes: chunks add up to {stored}, the artifact says {artifact['size']}")
    return chunks


def _manifest(data: bytes) -> Manifest:
    front = decode_front(data)
    if front is None or data[front.head.stop : front.chunks.start] != _BEFORE_CHUNKS:
        raise _Bad("its first bytes do not give the positions of head and chunks")
    head = _head(data, front)
    artifact = head.artifact
    chunks = _chunks(data, front, artifact)
    if data[front.chunks.stop : front.chunks.stop + 1] != b",":
        raise _Bad("chunks: no other member follows")
    wire = _parse(b"{" + data[front.chunks.stop + 1 :], "members after chunks")
    if not wire.keys().isdisjoint(_FIXED):
        raise _Bad("a member that occurs twice")
    chunk_size = wire.get("chunk_size")
    if not _is_int(chunk_size) or not 0 < chunk_size < MAX_SIZE:
        raise _Bad(f"chunk_size: {chunk_size!r}")
    files = [_file(row, number) for number, row in enumerate(_rows(wire, "files"))]
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
    if size != artifact["size"]:
        raise _Bad(f"sizes: files add up to {size}, the artifact says {artifact['size']}")
    return Manifest(artifact, files, dirs, chunks, chunk_size, _inline(wire, chunks, size), head.latest)


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
    if not (_is_int(size) and _is_int(offset) and 0 <= size < MAX_SIZE and 0 <= offset < MAX_SIZE):
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
    if not _is_int(row[1]) or not 0 < row[1] < MAX_SIZE:
        raise _Bad(f"chunks[{number}]: size {row[1]!r}")
    return Chunk(row[0], row[1])


def _inline(wire: dict[str, Any], chunks: Sequence[Chunk], size: int) -> bytes | None:
    text = wire.get("inline")
    if text is None:
        if size and not chunks:
            raise _Bad(f"sizes: no chunks and no inline content for {size} bytes")
        return None
    try:
        inline = base64.b64decode(text, validate=True)
    except (TypeError, ValueError, binascii.Error):
        raise _Bad("inline: not base64") from None
    if chunks or len(inline) != size:
        raise _Bad(f"inline: {len(inline)} bytes beside {len(chunks)} chunks, for {size} bytes of content")
    return inline


def _check_path(path: str, where: str) -> None:
    if problem := path_problem(path):
        raise _Bad(f"{where}: {problem}")


def _check_tree(files: list[str], dirs: list[str]) -> None:
    if problem := tree_problem(files, dirs):
        raise _Bad(problem)
