"""Peak memory and seconds of `check --read` and gc over a local store of many small chunks, each in its own process.

    TMPDIR=/dev/shm nox -s installed -- python benchmarks/upkeep.py --chunks 1000000

The chunks are written as files, without a save. `--garbage` is the share of them that no artifact names.
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
from pathlib import Path

from metaflow_artifacts import Chunk, FileEntry, Manifest, ModelArtifact, check, gc, open_store
from metaflow_artifacts._format.manifest import encode


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
            write_manifest(root, rows, number)
            rows.clear()


def write_manifest(root: str, chunks: list[Chunk], number: int) -> None:
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
    Path(root, key).write_bytes(encode(Manifest(artifact, (FileEntry("f", size, 0o644, 0),), (), chunks, 8)))


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
    parser.add_argument("--step", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        step(*options.step)
        return
    with tempfile.TemporaryDirectory() as work:
        root = f"{work}/store"
        make_store(root, options.chunks, round(options.chunks * (1 - options.garbage)), options.each)
        for action in ("check", "plan", "gc"):
            subprocess.run([sys.executable, __file__, "--step", root, action], check=True)


if __name__ == "__main__":
    main()
