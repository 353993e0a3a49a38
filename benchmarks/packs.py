"""How the sizes of packs and of shared files were chosen: seconds and bytes for several of them.

python benchmarks/packs.py [--rounds 5] [--root ROOT]

2,000 files of 16 kB are saved, loaded, and saved with one changed; ROOT is a directory, or s3:// (boto3).
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from uuid import uuid4

from metaflow_artifacts import Store, open_store
from metaflow_artifacts._format import plan
from metaflow_artifacts._store.store import CHUNK_SIZE

SETTINGS = [(CHUNK_SIZE // large, CHUNK_SIZE // pack) for large, pack in ((2, 1), (32, 1), (32, 4), (32, 16), (128, 4))]
"""Bytes from which a file has chunks of its own, and bytes that a pack holds at most."""


def run(store: Store, source: Path, work: Path) -> tuple[float, float, float]:
    """Seconds to save and to load all files, and MiB that are stored when one of them has changed."""
    begin = time.perf_counter()
    saved = store.save_model(source)
    save = time.perf_counter() - begin
    begin = time.perf_counter()
    store.load(saved, work / "out")
    load = time.perf_counter() - begin
    shutil.rmtree(work / "out")
    before = sum(info.size for info in store.storage.list("mf.artifacts/chunks/"))
    (source / "part01000.bin").write_bytes(os.urandom(16_000))
    store.save_model(source)
    after = sum(info.size for info in store.storage.list("mf.artifacts/chunks/"))
    return save, load, (after - before) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--root")
    options = parser.parse_args()
    found: dict[tuple[int, int], list[tuple[float, float, float]]] = {setting: [] for setting in SETTINGS}
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        source = work / "source"
        source.mkdir()
        for number in range(2000):
            (source / f"part{number:05}.bin").write_bytes(os.urandom(16_000))
        for _ in range(options.rounds):
            for large, pack in SETTINGS:
                plan._LARGE, plan._PACK = CHUNK_SIZE // large, CHUNK_SIZE // pack
                store = open_store(f"{options.root or work}/{uuid4().hex}")
                found[large, pack].append(run(store, source, work))
    print("| shared from | packs of | save, s | load, s | one changed, MiB |\n| --- | --- | --- | --- | --- |")
    for (large, pack), rounds in found.items():
        save, load, changed = (statistics.median(column) for column in zip(*rounds, strict=True))
        print(f"| {large >> 10} KiB | {pack >> 20} MiB | {save:.3f} | {load:.3f} | {changed:.1f} |")


if __name__ == "__main__":
    main()
