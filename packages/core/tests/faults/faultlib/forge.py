"""Manifests as a stranger would write them: anything in them, under digests that are right."""

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


def sign(made: Wire, version: Any = 1, dump: Callable[[Any], str] = json.dumps) -> bytes:
    """The bytes of a manifest, its digests as they should be."""
    head = dump(made["head"]).encode()
    rest = dump({name: value for name, value in made.items() if name != "head"}).encode()
    start = b'{"format":"metaflow-artifacts","version":%b,"head_sha256":"%b","head":'
    body = start % (dump(version).encode(), hashlib.sha256(head).hexdigest().encode())
    return resign(body + head + (b"," + rest[1:-1] if rest != b"{}" else b""))


def resign(body: bytes) -> bytes:
    """Put the tail behind all the other bytes of a manifest."""
    return body + b',"sha256":"%b"}\n' % hashlib.sha256(body).hexdigest().encode()
