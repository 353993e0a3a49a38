"""Forged manifests: anything in them, under digests that are right."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

KEY = "mf.models/models/artifacts/m_" + "0" * 32

Wire = dict[str, Any]


def chunk(content: bytes) -> list[Any]:
    """A row of `chunks`."""
    return [hashlib.sha256(content).hexdigest(), len(content)]


def wire(files: dict[str, bytes], dirs: list[str] | None = None, key: str = KEY) -> Wire:
    """A manifest that is right, with its content in one chunk: what forgers begin with."""
    rows = []
    offset = 0
    for path, content in files.items():
        rows.append([path, len(content), 0o644, offset])
        offset += len(content)
    stream = b"".join(files.values())
    artifact = {
        "key": key,
        "uuid": key.rpartition("/")[2],
        "type": "model",
        "pathspec": "",
        "attempt": 0,
        "created_on": "2026-01-01T00:00:00+00:00",
        "size": offset,
        "url": f"/elsewhere/{key}",
        "metadata": {},
        "label": "m",
    }
    return {
        "head": {"artifact": artifact, "latest": True},
        "chunk_size": 1 << 16,
        "files": rows,
        "dirs": dirs or [],
        "chunks": [chunk(stream)] if stream else [],
    }


def parts(made: Wire, dump: Callable[[Any], str] = json.dumps) -> tuple[bytes, bytes, bytes]:
    """The three parts of a manifest as `assemble` takes them."""
    rest = dump({name: value for name, value in made.items() if name not in ("head", "chunks")}).encode()
    return dump(made["head"]).encode(), dump(made["chunks"]).encode(), rest[1:-1]


def assemble(head: bytes, chunks: bytes, rest: bytes, version: bytes = b"1", **front: Any) -> bytes:
    """The bytes of a manifest, with digests and lengths as they should be but for those in `front`.

    `rest` are the members behind `chunks`, without the braces. `between` in `front` replaces the bytes between head
    and chunks.
    """
    says: dict[str, Any] = {
        "head_bytes": len(head),
        "head_sha256": hashlib.sha256(head).hexdigest(),
        "chunks_bytes": len(chunks),
        "chunks_sha256": hashlib.sha256(chunks).hexdigest(),
        "between": b',"chunks":',
        **front,
    }
    between = says.pop("between")
    members = ",".join(
        f'"{name}":{value if name.endswith("bytes") else json.dumps(value)}' for name, value in says.items()
    )
    start = b'{"format":"metaflow-artifacts","version":%b,%b,"head":' % (version, members.encode())
    return resign(start + head + between + chunks + (b"," + rest if rest else b""))


def sign(made: Wire, version: Any = 1) -> bytes:
    """The bytes of a manifest, its digests as they should be."""
    return assemble(*parts(made), version=json.dumps(version).encode())


def resign(body: bytes) -> bytes:
    """Put the tail behind all the other bytes of a manifest."""
    return body + b',"sha256":"%b"}\n' % hashlib.sha256(body).hexdigest().encode()
