"""Count the bytes that saves and loads of 1 GiB move to and from an S3 server: `nox -s installed -- python
benchmarks/traffic.py`."""

from __future__ import annotations

import functools
import os
import tempfile
from pathlib import Path

from metaflow_artifacts import StorageError, Store
from metaflow_artifacts._storage import open_storage
from metaflow_artifacts.testing.faults import Answer, Fault, FaultProxy, Request
from metaflow_artifacts.testing.seaweedfs import seaweedfs

SIZE = 1 << 30


def show(what: str, count: int, limit: str) -> None:
    print(f"{what:55} {count / 2**20:10.3f} MiB   (at most {limit})")


def main() -> None:
    with (
        tempfile.TemporaryDirectory() as work,
        seaweedfs(Path(work, "server")) as server,
        FaultProxy(server.endpoint) as proxy,
    ):
        client = functools.partial(server.client, endpoint_url=proxy.endpoint)
        store = Store(open_storage(f"{server.root}/traffic", client=client))
        model = Path(work, "model")
        model.mkdir()
        (model / "config.json").write_bytes(b"{}" * 1000)
        with (model / "weights").open("wb") as file:
            for _ in range(SIZE >> 24):
                file.write(os.urandom(1 << 24))

        chunks = 0

        def break_off(request: Request) -> Fault | None:
            nonlocal chunks
            chunks += request.method == "PUT" and "/chunks/" in request.path
            return Answer(403, "AccessDenied") if chunks > 50 else None

        proxy.plan = break_off
        try:
            store.save_model(model)
        except StorageError:
            show("save, broken off after 50 of 65 chunks", proxy.received, "-")
        proxy.plan = lambda request: None
        proxy.received = 0
        saved = store.save_model(model)
        show("... done again", proxy.received, "the rest")
        proxy.received = 0
        store.save_model(model)
        show("unchanged content saved again", proxy.received, "1")
        with (model / "weights").open("r+b") as weights:
            weights.seek(SIZE - SIZE // 10)
            for _ in range(SIZE // 10 >> 20):
                weights.write(os.urandom(1 << 20))
        proxy.received = 0
        store.save_model(model)
        show("the last tenth changed", proxy.received, "204.8")
        proxy.sent = 0
        store.read_file(saved, "config.json")
        show("one file of 2 kB read", proxy.sent, "1 and the manifest")


if __name__ == "__main__":
    main()
