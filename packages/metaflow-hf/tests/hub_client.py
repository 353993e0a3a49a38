"""The client of the Hub as its tests make it, before the test Hub, and a repo with a large file for it."""

from __future__ import annotations

import random
from typing import Any

from hub import Hub as HubServer
from hub_repo import Blob, lfs

from metaflow_extensions.artifacts_hf.plugins.hf_deco.arguments import RepoRequest
from metaflow_extensions.artifacts_hf.plugins.hf_deco.hub import Hub
from metaflow_extensions.artifacts_hf.plugins.hf_deco.streams import HubFile, HubStreams

BIG = random.Random(1).randbytes(3_000_000)
FILES: dict[str, bytes | Blob] = {"config.json": b"{}", "empty": b"", "sub/ü x.txt": b"hello", "weights.bin": lfs(BIG)}


def client(hub: HubServer, warnings: list[str] | None = None, **arguments: Any) -> Hub:
    request = RepoRequest.of({"repo_id": "org/name", "endpoint": hub.endpoint, "token": False, **arguments})
    return Hub(request, ([] if warnings is None else warnings).append)


def streams(hub: HubServer, warnings: list[str] | None = None, **arguments: Any) -> HubStreams:
    return HubStreams(client(hub, warnings, **arguments), "main")


def contents(hub: HubServer, **arguments: Any) -> dict[str, bytes]:
    asked = client(hub, **arguments)
    files = HubStreams(asked, asked.resolve().commit)
    return {file.path: b"".join(files.open(file)) for file in files.files()}


def big() -> HubFile:
    return HubFile("weights.bin", len(BIG), lfs(BIG).oid)
