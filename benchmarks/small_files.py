"""What many small files cost: 2,000 files of 16 kB saved, loaded, and saved again with one of them changed.

python benchmarks/small_files.py [--against PYTHON] [--rounds 7] [--root ROOT]

PYTHON is an environment with another version of metaflow-artifacts: both are timed in turn, and the ratio is printed.
ROOT is where to store, a directory by default; for s3://, boto3 must be configured.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FILES, SIZE = 2000, 16_000


def measure(root: str, work: Path) -> dict[str, float]:
    from metaflow_artifacts import open_store

    store = open_store(root)
    source = work / "source"
    source.mkdir()
    for number in range(FILES):
        (source / f"part{number:05}.bin").write_bytes(os.urandom(SIZE))
    result = {}
    begin = time.perf_counter()
    reference = store.save_model(source)
    result["save_s"] = time.perf_counter() - begin
    for turn in ("first_load_s", "load_s"):
        begin = time.perf_counter()
        store.load(reference, work / turn)
        result[turn] = time.perf_counter() - begin
        shutil.rmtree(work / turn)
    before = sum(info.size for info in store.storage.list("mf.artifacts/chunks/"))
    (source / "part01000.bin").write_bytes(os.urandom(SIZE))
    begin = time.perf_counter()
    store.save_model(source)
    result["one_changed_s"] = time.perf_counter() - begin
    result["one_changed_mib"] = (sum(i.size for i in store.storage.list("mf.artifacts/chunks/")) - before) / 2**20
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--against", metavar="PYTHON")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--root")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        if options.one:
            root = options.root or str(work / "store")
            print(json.dumps(measure(f"{root}/{os.getpid()}" if options.root else root, work)))
            return
    found: dict[str, list[dict[str, float]]] = {sys.executable: []}
    if options.against:
        found[options.against] = []
    arguments = [__file__, "--one", *(["--root", options.root] if options.root else [])]
    for number in range(options.rounds):
        for python in list(found)[:: -1 if number % 2 else 1]:
            done = subprocess.run([python, *arguments], capture_output=True, text=True, check=True)
            found[python].append(json.loads(done.stdout))
    print(f"{FILES} files of {SIZE} bytes, medians of {options.rounds} rounds")
    for metric in found[sys.executable][0]:
        ours, *other = (statistics.median(round_[metric] for round_ in rounds) for rounds in found.values())
        print(f"{metric:16} {ours:9.4f}" + "".join(f"   against {one:9.4f}: {ours / one:5.2f}" for one in other))


if __name__ == "__main__":
    main()
