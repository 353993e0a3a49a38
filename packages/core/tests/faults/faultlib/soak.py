"""Savers and copies in a loop beside a gc in a loop: not one load may fail. Run as a program:

    PYTHONPATH=packages/core/tests/faults python -m faultlib.soak ROOT [--seconds 60] [--savers 10]

ROOT is a directory, or a root in S3 that boto3's environment leads to. Artifacts are made of pieces that many of
them share; when the last artifact with a piece is deleted, the piece becomes garbage, and after the grace period gc
removes it while others save it again. On a machine that is so busy that nothing was removed in --seconds, it goes on
until something is, a minute at most. Prints what was done, as JSON; fails where a load or the last check does.
With --without-gc it saves until its standard input is closed: for tests that run a gc themselves.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from metaflow_artifacts import Store
from metaflow_artifacts._storage import LocalStorage, open_storage
from metaflow_artifacts._transfer.progress import Progress
from metaflow_artifacts._upkeep.check import check
from metaflow_artifacts._upkeep.gc import gc

CHUNK = 32 << 10
_LONGER_S = 60.0


def piece(number: int) -> bytes:
    """The content of that number."""
    return random.Random(number).randbytes(CHUNK)


def saver(store: Store, number: int, ended: mmap.mmap, pieces: int) -> Counter[str]:
    """Save, or copy from another store, load at once, load an older one, delete the oldest; until `ended` says so."""
    choose = random.Random(number)
    done: Counter[str] = Counter()
    kept: list[tuple[str, list[int]]] = []
    with tempfile.TemporaryDirectory() as directory:
        source, target = Path(directory, "source"), Path(directory, "target")
        beside = Store(LocalStorage(Path(directory, "beside")), chunk_size=CHUNK)
        while not ended[0]:
            numbers = [choose.randrange(pieces) for _ in range(choose.randint(3, 6))]
            source.write_bytes(b"".join(map(piece, numbers)))
            progress = Progress()
            if choose.random() < 0.5:
                kept.append((store.save_model(source, progress=progress)["key"], numbers))
                done["saves"] += 1
                done["bytes reused"] += progress.total - progress.stored
            else:
                kept.append((beside.save_model(source)["key"], numbers))
                assert beside.copy_to(store, [kept[-1][0]]).copied
                done["copies"] += 1
            for key, expected in (kept[-1], choose.choice(kept)):
                store.load(key, target)
                assert (target / "source").read_bytes() == b"".join(map(piece, expected)), key
                shutil.rmtree(target)
                done["loads"] += 1
            if len(kept) > 5:
                store.delete(kept.pop(0)[0])
                done["deletes"] += 1
    return done


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("root")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--savers", type=int, default=10)
    parser.add_argument("--pieces", type=int, default=3000)
    parser.add_argument("--grace", type=float, default=2, help="of gc; half of it is when savers renew a chunk")
    parser.add_argument("--without-gc", action="store_true")
    options = parser.parse_args()
    end = time.monotonic() + options.seconds
    ended = mmap.mmap(-1, 1)  # Shared with the savers: not 0 when they are to stop.

    def store() -> Store:
        return Store(open_storage(options.root), chunk_size=CHUNK, refresh_after=options.grace / 2)

    children = []
    for number in range(options.savers):
        source, sink = os.pipe()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                done = saver(store(), number, ended, options.pieces)
                os.write(sink, json.dumps(done).encode())
                code = 0
            except BaseException as error:
                print(f"saver {number}: {error!r}", file=sys.stderr, flush=True)
            os._exit(code)
        os.close(sink)
        children.append((pid, source))
    total: Counter[str] = Counter()
    mine = store()
    if options.without_gc:
        sys.stdin.read()
        end = float("-inf")
    while time.monotonic() < end or (not total["chunks removed"] and time.monotonic() < end + _LONGER_S):
        stats = gc(mine, grace=options.grace, dry_run=False)
        total.update({"gc runs": 1, "chunks removed": stats.removed, "chunks spared": stats.spared})
    ended[0] = 1
    failed = 0
    for pid, source in children:
        with os.fdopen(source, "rb") as pipe:
            text = pipe.read()
        _, status = os.waitpid(pid, 0)
        failed += status != 0
        total.update(json.loads(text or "{}"))
    report = check(mine, read=True)
    print(json.dumps({**total, "artifacts left": report.artifacts, "savers failed": failed, "whole": report.ok}))
    sys.exit(1 if failed or not report.ok else 0)


if __name__ == "__main__":
    main()
