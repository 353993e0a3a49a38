"""S3 through the fault proxy, at full size and with the patience that users have. Run as a program:

    PYTHONPATH=packages/core/tests/faults python -m faultlib.network flaky DIRECTORY [--mib 1024] [--rate 0.05]
    PYTHONPATH=packages/core/tests/faults python -m faultlib.network permanent DIRECTORY

`flaky` saves and loads a tree of that size while that part of all requests fails in a way that passes, chosen at
random, and compares. `permanent` saves and loads while all requests fail, in each way, and tells how many seconds it
took until the error. Both start an S3 server of their own in DIRECTORY, and print JSON.
"""

from __future__ import annotations

import argparse
import filecmp
import functools
import json
import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from metaflow_artifacts import ArtifactError, Store
from metaflow_artifacts._storage import open_storage
from metaflow_artifacts._storage.s3 import client_config
from metaflow_artifacts.testing.faults import Answer, Cut, Damage, Fault, FaultProxy, Lose, Refuse, Request, Stall
from metaflow_artifacts.testing.seaweedfs import SeaweedServer, seaweedfs

MIB = 1 << 20


def store_at(root: str, server: SeaweedServer, endpoint: str) -> Store:
    """A store whose client is set up as the default one is."""
    client = functools.partial(server.client, endpoint_url=endpoint, config=client_config())
    return Store(open_storage(root, client=client))


def write_tree(root: Path, mib: int) -> None:
    """One file of half the size, eight of a sixteenth, a thousand small ones."""
    (root / "small").mkdir(parents=True)
    chosen = random.Random(7)
    sizes = {"big.bin": mib * MIB // 2, **{f"shard-{number}": mib * MIB // 16 - 1000 for number in range(8)}}
    for name, size in sizes.items():
        with (root / name).open("wb") as file:
            for begin in range(0, size, MIB):
                file.write(chosen.randbytes(min(MIB, size - begin)))
    for number in range(1000):
        (root / "small" / f"{number}.txt").write_bytes(chosen.randbytes(8 * number))


def same(one: Path, other: Path) -> bool:
    """Whether two trees have the same files with the same bytes."""
    names = [sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()) for root in (one, other)]
    return names[0] == names[1] and filecmp.cmpfiles(one, other, names[0], shallow=False)[0] == names[0]


def flaky(server: SeaweedServer, work: Path, mib: int, rate: float) -> dict[str, Any]:
    """Save and load while requests fail at that rate."""
    write_tree(work / "tree", mib)
    chosen = random.Random(11)
    kinds: list[Callable[[], Fault]] = [
        lambda: Answer(500, "InternalError"),
        lambda: Answer(503, "SlowDown"),
        Lose,
        lambda: Refuse(chosen.randrange(4 * MIB)),
        lambda: Cut(chosen.randrange(16 * MIB)),
        lambda: Cut(chosen.randrange(16 * MIB), reset=False),
        lambda: Damage(chosen.randrange(16 * MIB)),
        lambda: Damage(chosen.randrange(16 * MIB), sent=True),
    ]
    faults: Counter[str] = Counter()

    def plan(request: Request) -> Fault | None:
        if chosen.random() >= rate:
            return None
        fault = chosen.choice(kinds)()
        faults[type(fault).__name__] += 1
        return fault

    with FaultProxy(server.endpoint) as proxy:
        proxy.plan = plan
        store = store_at(f"{server.root}/flaky", server, proxy.endpoint)
        began = time.monotonic()
        key = store.save_model(work / "tree")["key"]
        saved = time.monotonic()
        store.load(key, work / "loaded")
        loaded = time.monotonic()
        return {
            "MiB": mib,
            "rate": rate,
            "requests": len(proxy.requests),
            "faults": dict(faults),
            "seconds to save": round(saved - began, 1),
            "seconds to load": round(loaded - saved, 1),
            "right bytes": same(work / "tree", work / "loaded"),
        }


def permanent(server: SeaweedServer, work: Path) -> dict[str, Any]:
    """Save and load while everything fails: the seconds until the error, and what it says."""
    (work / "tree").mkdir()
    (work / "tree" / "weights.bin").write_bytes(os.urandom(64 * MIB))
    root = f"{server.root}/permanent"
    key = store_at(root, server, server.endpoint).save_model(work / "tree")["key"]
    (work / "tree" / "weights.bin").write_bytes(os.urandom(64 * MIB))
    plans: dict[str, Callable[[Request], Fault | None]] = {
        "no answer": lambda request: Stall(),
        "no answer to PUT and to GET of chunks": lambda request: _of_chunks(request, Stall()),
        "500 InternalError": lambda request: Answer(500, "InternalError"),
        "503 SlowDown": lambda request: Answer(503, "SlowDown"),
        "503 SlowDown for chunks": lambda request: _of_chunks(request, Answer(503, "SlowDown")),
        "connections are reset": lambda request: Lose(),
        "bodies stall in their middle, then all": lambda request: _of_chunks(
            request, Stall() if "range" in request.headers else Cut(5 * MIB, stall=True)
        ),
        "bodies are cut short": lambda request: _of_chunks(request, Cut(0, reset=False)),
        "403 ExpiredToken": lambda request: Answer(403, "ExpiredToken"),
    }

    def attempt(case: tuple[str, str]) -> tuple[str, dict[str, Any]]:
        what, name = case
        with FaultProxy(server.endpoint) as proxy:
            proxy.plan = plans[name]
            store = store_at(root, server, proxy.endpoint)
            began = time.monotonic()
            said = "no error"
            try:
                if what == "save":
                    store.save_model(work / "tree")
                else:
                    store.load(key, work / f"loaded {name}")
            except ArtifactError as error:
                said = f"{type(error).__name__}: {error}"
            return f"{what}: {name}", {"seconds": round(time.monotonic() - began, 1), "said": said}

    # A save reads no bodies.
    cases = [(what, name) for what in ("save", "load") for name in plans if what == "load" or "bodies" not in name]
    with ThreadPoolExecutor(len(cases)) as pool:
        return dict(pool.map(attempt, cases))


def _of_chunks(request: Request, fault: Fault) -> Fault | None:
    return fault if request.method in ("GET", "PUT") and "/chunks/" in request.path else None


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["flaky", "permanent"])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--rate", type=float, default=0.05)
    options = parser.parse_args()
    work = options.directory / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    with seaweedfs(options.directory / "server") as server:
        flaky_options = (server, work, options.mib, options.rate)
        result = flaky(*flaky_options) if options.what == "flaky" else permanent(server, work)
    shutil.rmtree(work)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
