"""What the option `sync` of a local store costs: seconds to save with it, and without.

python benchmarks/sync.py [--rounds 10] [--data DIRECTORY]
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

from metaflow_artifacts import Store
from metaflow_artifacts._storage import open_storage

CASES = {"10 kB": (1, 10_000), "1 MiB": (1, 1 << 20), "100 files of 10 kB": (100, 10_000), "256 MiB": (1, 256 << 20)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--data")
    options = parser.parse_args()
    seconds: dict[tuple[str, bool], list[float]] = {(name, sync): [] for name in CASES for sync in (False, True)}
    for number in range(options.rounds):
        for name, sync in list(seconds)[:: -1 if number % 2 else 1]:
            with tempfile.TemporaryDirectory(dir=options.data) as directory:
                source = Path(directory, "source")
                source.mkdir()
                files, size = CASES[name]
                for index in range(files):
                    (source / str(index)).write_bytes(os.urandom(size))
                os.sync()
                store = Store(open_storage(Path(directory, "store"), sync=sync))
                begin = time.perf_counter()
                store.save_model(source)
                seconds[name, sync].append(time.perf_counter() - begin)
                shutil.rmtree(source)
    print(
        f"medians of {options.rounds} rounds\n| save | without, s | with sync, s | ratio |\n| --- | --- | --- | --- |"
    )
    for name in CASES:
        without, with_sync = (statistics.median(seconds[name, sync]) for sync in (False, True))
        print(f"| {name} | {without:.4f} | {with_sync:.4f} | {with_sync / without:.1f} |")


if __name__ == "__main__":
    main()
