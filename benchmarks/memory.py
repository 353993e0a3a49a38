"""Peak memory of a save and a load, each in a process of its own.

    nox -s installed -- python benchmarks/memory.py local --gib 1 8
    nox -s installed -- python benchmarks/memory.py s3 --gib 1 8
    nox -s installed -- python benchmarks/memory.py local --files 100000

Needs three times the size in disk space. The large file is one random block, repeated, with a number at the
beginning of each copy: so each chunk is new to the store.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from metaflow_artifacts import open_store
from metaflow_artifacts.testing.seaweedfs import seaweedfs


def step(root: str, action: str, path: str, key_file: str) -> None:
    store = open_store(root)
    began = time.perf_counter()
    if action == "save":
        Path(key_file).write_text(store.save_model(path)["key"])
    else:
        store.load(Path(key_file).read_text(), path)
    # Not ru_maxrss, which takes over what the parent had in memory when it started this process.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    peak = int(status["VmHWM"].split()[0]) / 1024
    print(f"{action} {time.perf_counter() - began:8.2f} s   peak {peak:6.1f} MiB", flush=True)


def make_large(directory: Path, gib: int) -> None:
    directory.mkdir()
    block = bytearray(os.urandom(1 << 24))
    with (directory / "weights").open("wb") as file:
        for number in range(gib * 64):
            block[:8] = number.to_bytes(8, "big")
            file.write(block)


def make_many(directory: Path, count: int) -> None:
    for number in range(count):
        if number % 1000 == 0:
            folder = directory / f"{number // 1000:04}"
            folder.mkdir(parents=True)
        (folder / f"{number:07}").write_bytes(os.urandom(300))


def measure(where: str, work: Path, source: Path) -> None:
    with contextlib.ExitStack() as stack:
        root, environment = str(work / "store"), dict(os.environ)
        if where == "s3":
            server = stack.enter_context(seaweedfs(work / "server"))
            root, environment = server.root, environment | server.environment()
        for action, path in (("save", source), ("load", work / "loaded")):
            arguments = ["--step", root, action, str(path), str(work / "key")]
            subprocess.run([sys.executable, __file__, where, *arguments], env=environment, check=True)
            if action == "save":
                shutil.rmtree(source)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("where", choices=["local", "s3"])
    parser.add_argument("--gib", type=int, nargs="*", default=[])
    parser.add_argument("--files", type=int, nargs="*", default=[])
    parser.add_argument("--step", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        step(*options.step)
        return
    sizes: list[tuple[str, Callable[[Path, int], None], int]] = [(f"{gib} GiB", make_large, gib) for gib in options.gib]
    sizes += [(f"{count} files of 300 bytes", make_many, count) for count in options.files]
    for name, make, size in sizes:
        with tempfile.TemporaryDirectory() as work:
            source = Path(work, "source")
            make(source, size)
            print(f"{options.where}, {name}")
            measure(options.where, Path(work), source)


if __name__ == "__main__":
    main()
