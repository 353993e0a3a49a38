"""Peak memory and seconds of `check --read` and gc over a local store of many small chunks, each in its own process.

    TMPDIR=/dev/shm nox -s installed -- python benchmarks/upkeep.py --chunks 1000000
    nox -s installed -- python benchmarks/upkeep.py --s3 --chunks 20000 --artifacts 5000 --each 100

The chunks are written as files, without a save. `--garbage` is the share of them that no artifact names. With `--s3`,
the seconds of each stage of gc on SeaweedFS, on whose machine the server runs too: all chunks are garbage, and the
artifacts name chunks that do not exist, which gc does not notice.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from metaflow_artifacts import (
    Chunk,
    FileEntry,
    Manifest,
    ModelArtifact,
    Store,
    check,
    gc,
    open_storage,
    open_store,
    survey_store,
    sweep_chunks,
)
from metaflow_artifacts._format.manifest import encode
from metaflow_artifacts._transfer.chunks import put_chunk
from metaflow_artifacts._transfer.threads import ordered
from metaflow_artifacts._upkeep.survey import chunk_objects
from metaflow_artifacts.testing.seaweedfs import seaweedfs

_T = TypeVar("_T")


def make_store(root: str, chunks: int, named: int, each: int) -> None:
    """A store of `chunks` chunks of 8 bytes; the first `named` of them belong to artifacts of `each` chunks."""
    directory = f"{root}/mf.artifacts/chunks/sha256"
    for number in range(256):
        os.makedirs(f"{directory}/{number:02x}")
    os.makedirs(f"{root}/mf.models/models/artifacts")
    rows: list[Chunk] = []
    for number in range(chunks):
        data = number.to_bytes(8, "big")
        name = hashlib.sha256(data).hexdigest()
        Path(directory, name[:2], name[2:]).write_bytes(data)
        if number < named:
            rows.append(Chunk(name, 8))
        if len(rows) == each or (rows and number == named - 1):
            key, data = manifest(root, rows, number)
            Path(root, key).write_bytes(data)
            rows.clear()


def manifest(root: str, chunks: list[Chunk], number: int) -> tuple[str, bytes]:
    """Key and bytes of an artifact of one file that is stored in these chunks."""
    uuid = f"m_{number:032x}"
    key = f"mf.models/models/artifacts/{uuid}"
    size = sum(chunk.size for chunk in chunks)
    artifact: ModelArtifact = {
        "key": key,
        "uuid": uuid,
        "type": "model",
        "pathspec": "",
        "attempt": 0,
        "created_on": "2026-01-01T00:00:00.000000+00:00",
        "size": size,
        "url": f"{root}/{key}",
        "metadata": {},
        "label": "m",
    }
    return key, encode(Manifest(artifact, (FileEntry("f", size, 0o644, 0),), (), chunks, 8))


def measure_s3(work: str, chunks: int, artifacts: int, each: int) -> None:
    with seaweedfs(Path(work)) as server:
        store = Store(open_storage(f"{server.root}/upkeep", client=server.client))

        def put(number: int) -> None:
            if number < chunks:
                put_chunk(store.storage, number.to_bytes(8, "big"))
            else:
                names = [hashlib.sha256(b"%d.%d" % (number, chunk)).hexdigest() for chunk in range(each)]
                store.storage.put(*manifest(store.root, [Chunk(name, 8) for name in names], number))

        for _ in ordered(store.storage, put, range(chunks + artifacts)):
            pass
        timed("survey", artifacts, lambda: survey_store(store, grace=0, exclusive=True))
        survey = timed("survey, whole", artifacts, lambda: survey_store(store, grace=0, exclusive=True, whole=True))
        # In full pages: a prefix of so small a store has only some chunks.
        timed("list", chunks, lambda: sum(1 for _ in chunk_objects(store.storage)))
        survey = replace(survey, dry_run=False)
        timed("list and remove", chunks, lambda: sweep_chunks(store, survey, survey.prefixes))


def timed(what: str, count: int, call: Callable[[], _T]) -> _T:
    began, cpu = time.perf_counter(), time.process_time()
    result = call()
    seconds, used = time.perf_counter() - began, time.process_time() - cpu
    each = {"ms each": round(1000 * seconds / count, 3), "ms of the client's processor": round(1000 * used / count, 3)}
    print(json.dumps({"stage": what, "objects": count, "seconds": round(seconds, 1), **each}), flush=True)
    return result


def step(root: str, action: str) -> None:
    store = open_store(root)
    began = time.perf_counter()
    if action == "check":
        report = check(store, read=True)
        found = f"{report.chunks} chunks, {len(report.problems)} problems"
    else:
        stats = gc(store, grace=0, exclusive=True, dry_run=action == "plan")
        found = f"{stats.removed} of {stats.chunks} chunks"
    seconds = time.perf_counter() - began
    # Not ru_maxrss, which takes over what the parent had in memory when it started this process.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    peak = int(status["VmHWM"].split()[0]) / 1024
    print(json.dumps({"action": action, "seconds": round(seconds, 1), "peak MiB": round(peak, 1), "found": found}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chunks", type=int, default=1_000_000)
    parser.add_argument("--each", type=int, default=1000, help="chunks of an artifact")
    parser.add_argument("--garbage", type=float, default=0.5)
    parser.add_argument("--s3", action="store_true")
    parser.add_argument("--artifacts", type=int, default=5000, help="with --s3")
    parser.add_argument("--step", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        step(*options.step)
        return
    with tempfile.TemporaryDirectory() as work:
        if options.s3:
            measure_s3(work, options.chunks, options.artifacts, options.each)
            return
        root = f"{work}/store"
        make_store(root, options.chunks, round(options.chunks * (1 - options.garbage)), options.each)
        for action in ("check", "plan", "gc"):
            subprocess.run([sys.executable, __file__, "--step", root, action], check=True)


if __name__ == "__main__":
    main()
