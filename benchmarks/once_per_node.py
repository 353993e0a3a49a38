"""Several tasks of one machine load one model from S3, with and without the node's cache.

    .venv/bin/python benchmarks/once_per_node.py                     8 tasks, 1 GiB
    .venv/bin/python benchmarks/once_per_node.py --tasks 4 --mib 256 --rounds 3
    .venv/bin/python benchmarks/once_per_node.py --rate 10           a link of 10 MB/s for each connection

It starts SeaweedFS. Each task is a process; all begin at once, and the seconds are those until the last one has its
files. *fetched* is what they say came from the server. *alone* is one task without the cache.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from uuid import uuid4

from link import Link

from metaflow_artifacts import Progress, open_store
from metaflow_artifacts.testing.seaweedfs import seaweedfs

MIB = 1 << 20


def task(root: str, key: str, path: str) -> None:
    store = open_store(root)
    store.storage.connect()
    print("ready", flush=True)
    sys.stdin.readline()
    progress = Progress()
    store.load(key, path, progress=progress)
    print(json.dumps(progress.total - progress.cached), flush=True)


def load(tasks: int, root: str, key: str, work: Path, env: dict[str, str]) -> tuple[float, float]:
    """Seconds until all have loaded, and the bytes that they fetched."""
    command = [sys.executable, __file__, "--task", root, key]
    processes = [
        subprocess.Popen(
            [*command, str(work / f"target{number}")], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for number in range(tasks)
    ]
    for process in processes:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
    begin = time.perf_counter()
    for process in processes:
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()
    fetched = sum(int(process.stdout.readline()) for process in processes if process.stdout)
    seconds = time.perf_counter() - begin
    for process in processes:
        process.communicate()
        assert process.returncode == 0
    for number in range(tasks):
        shutil.rmtree(work / f"target{number}")
    return seconds, fetched


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=8)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rate", type=float, help="MB/s of each connection; without it, there is no limit")
    parser.add_argument("--work", help="where the files lie")
    parser.add_argument("--task", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        task(*options.task)
        return
    with contextlib.ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=options.work, ignore_cleanup_errors=True)))
        server = stack.enter_context(seaweedfs(work / "server"))
        env = {**os.environ, **server.environment()}
        env.pop("METAFLOW_ARTIFACTS_CACHE", None)
        root = f"{server.root}/{uuid4().hex}"
        with (work / "weights").open("wb") as file:
            for _ in range(options.mib):
                file.write(random.randbytes(MIB))
        key = open_store(root, client=server.client).save_model(work / "weights")["key"]
        if options.rate:
            link = stack.enter_context(Link(server.endpoint, options.rate * 1e6, 0.02))
            env["METAFLOW_S3_ENDPOINT_URL"] = link.endpoint
        rows: dict[str, list[tuple[float, float]]] = {}
        for _ in range(options.rounds):
            cache = {"METAFLOW_ARTIFACTS_CACHE": str(work / "cache")}
            for name, count, more in (
                ("alone", 1, {}),
                ("without a cache", options.tasks, {}),
                ("an empty cache", options.tasks, cache),
                ("a full cache", options.tasks, cache),
            ):
                rows.setdefault(name, []).append(load(count, root, key, work, {**env, **more}))
            shutil.rmtree(work / "cache")
    print(f"{options.tasks} tasks, {options.mib} MiB, medians of {options.rounds} rounds\n")
    print("| | seconds | fetched, MiB |\n| --- | --- | --- |")
    for name, results in rows.items():
        seconds, fetched = (statistics.median(column) for column in zip(*results, strict=True))
        print(f"| {name} | {seconds:.1f} | {fetched / MIB:,.0f} |")


if __name__ == "__main__":
    main()
