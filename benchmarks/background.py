"""What saves in the background cost a training: how long a call takes, and how many steps go on beside it.

    nox -s installed -- python benchmarks/background.py                      everything
    nox -s installed -- python benchmarks/background.py --only calls         how long calls take
    nox -s installed -- python benchmarks/background.py --only steps         steps a second, with and without a save
    nox -s installed -- python benchmarks/background.py --only epochs        200 steps with a save every 10th
    nox -s installed -- python benchmarks/background.py --by thread,process  stored by this or that, in turns

It needs numpy. SeaweedFS runs on one core and the training on the others, if there are several. `link` is the same
server through a link that passes --rate MB/s (50) in all, with --latency seconds (0.01). Each line is a ratio of two
numbers of one run, and the bound that it is to keep. --mib (1024) is the size of the checkpoint. Saves are stored by a
process of low priority, or, with `--by thread`, by the training's own process, as where no other can be started.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

from link import Link

from metaflow_artifacts.testing.seaweedfs import seaweedfs

EPOCH_STEP_S = 0.1
PASSED = ("mib", "rounds", "epoch-mib", "by")


def seconds(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def python_step() -> Callable[[], object]:
    """A step that holds the interpreter's lock."""
    return lambda: sum(number * number for number in range(80_000))


def numpy_step() -> Callable[[], object]:
    """A step that gives it up."""
    import numpy

    matrix = numpy.random.default_rng(0).random((160, 160), dtype="float32")
    return lambda: [matrix @ matrix for _ in range(40)]


LOOPS = {"python": python_step, "numpy": numpy_step}


def queued() -> float:
    """Seconds that this thread has waited for a processor, which others had."""
    thread = threading.get_native_id()
    return int(Path(f"/proc/self/task/{thread}/schedstat").read_text().split()[1]) / 1e9


def after(time_s: float) -> Callable[[], bool]:
    """Whether so much time has passed since this call."""
    end = time.perf_counter() + time_s
    return lambda: time.perf_counter() > end


def rate(step: Callable[[], object], until: Callable[[], bool]) -> tuple[int, float, float]:
    """How many steps were made until then, in how many seconds, and in how many of them a processor was missing."""
    begin, before, count = time.perf_counter(), queued(), 0
    while not until():
        step()
        count += 1
    return count, time.perf_counter() - begin, queued() - before


def calls(root: str, work: Path, mib: int, rounds: int) -> dict[str, float]:
    """How long calls take, each the median of some rounds."""
    from metaflow_artifacts import SaveOptions, open_store
    from metaflow_artifacts._store.background import background_saves

    store, saves = open_store(root), background_saves()
    times: dict[str, list[float]] = {}

    def take(name: str, call: Callable[[], object]) -> None:
        # Else the disk may still be busy with what the call before has written, for one of two that are compared.
        os.sync()
        times.setdefault(name, []).append(seconds(call))

    path = work / "state.bin"
    for number in range(rounds):
        # New content in each round; for each is saved by `save` once and in the background once.
        for name in ("save", "save_async") if number % 2 else ("save_async", "save"):
            write(path, mib)
            if name == "save":
                take("save", lambda: store.save_model(path))
                take("cp", lambda: subprocess.run(["cp", "--reflink=auto", path, work / "copy"], check=True))
            else:
                take("save_async", lambda: store.save_model_async(path))
                times.setdefault("stored", []).append(seconds(saves.settle))
        take("consume", lambda: store.save_model_async(path, options=SaveOptions(consume=True)))
        saves.settle()
        data = os.urandom(64 << 20)
        take("bytes", lambda data=data: store.save_model_async({"weights": data}))  # type: ignore[misc]
        saves.settle()
        (work / "copy").unlink()
    return {name: statistics.median(each) for name, each in times.items()}


def write(path: Path, mib: int) -> None:
    with open(path, "wb") as file:
        for _ in range(mib // 16):
            file.write(os.urandom(16 << 20))
        # Else the disk is busy with it while the next is timed.
        file.flush()
        os.fsync(file.fileno())


def store_by(how: str) -> None:
    """Have saves stored by a process of their own, or by a thread of this one."""
    from metaflow_artifacts._transfer import worker_process

    worker_process.LEAST_BYTES = 1 << 60 if how == "thread" else 4 << 20


def steps(root: str, work: Path, mib: int, rounds: int, loop: str, ways: list[str]) -> dict[str, dict[str, float]]:
    """For each way to store: steps a second while a save is pending, and without one, in turns."""
    from metaflow_artifacts import open_store

    store, step, path = open_store(root), LOOPS[loop](), work / "state.bin"
    alone = {how: [0.0] * 3 for how in ways}
    beside = {how: [0.0] * 3 for how in ways}
    for how in ways:
        store_by(how)
        write(path, 16)
        store.save_model_async(path).result()
    for number in range(rounds):
        for how in ways if number % 2 else ways[::-1]:
            store_by(how)
            write(path, mib)
            for total in (alone[how], beside[how], alone[how]):
                is_over = store.save_model_async(path).done if total is beside[how] else after(1)
                for index, value in enumerate(rate(step, is_over)):
                    total[index] += value
    return {
        how: {
            "alone": alone[how][0] / alone[how][1],
            "beside": beside[how][0] / beside[how][1],
            "seconds": beside[how][1] / rounds,
            "alone on a free core": alone[how][0] / (alone[how][1] - alone[how][2]),
            "beside on a free core": beside[how][0] / (beside[how][1] - beside[how][2]),
        }
        for how in ways
    }


def epochs(root: str, work: Path, mib: int, loop: str, ways: list[str], rounds: int) -> dict[str, dict[str, float]]:
    """Seconds of 200 steps without a save, and with one every 10th, all stored at the end. A step takes 0.1 s."""
    from metaflow_artifacts import open_store
    from metaflow_artifacts._store.background import background_saves

    store, step, saves = open_store(root), LOOPS[loop](), background_saves()
    path = work / "state.bin"
    for how in ways:
        store_by(how)
        write(path, 16)
        store.save_model_async(path).result()
    # A step takes a tenth of a second, whatever the loop.
    each = max(1, round(EPOCH_STEP_S / min(seconds(step) for _ in range(20))))
    total: dict[str, list[float]] = {name: [0.0] * 4 for name in ("without", *ways)}
    for turn in range(rounds):
        order = ["without", *ways]
        for name in order if turn % 2 else order[::-1]:
            store_by(name)
            contents = [os.urandom(mib << 20) for _ in range(20)]
            begin, before, waited = time.perf_counter(), queued(), saves.seconds_waited
            busy = time.process_time() - time.thread_time()
            for number in range(200):
                for _ in range(each):
                    step()
                if name != "without" and number % 10 == 9:
                    store.save_model_async({"weights": contents[number // 10]})
            saves.settle()
            took = time.perf_counter() - begin
            busy = time.process_time() - time.thread_time() - busy
            for index, value in enumerate((took, took - (queued() - before), saves.seconds_waited - waited, busy)):
                total[name][index] += value
    return {
        how: {
            "without": total["without"][0] / rounds,
            "with": total[how][0] / rounds,
            "ratio": total[how][0] / total["without"][0],
            "ratio on a free core": total[how][1] / total["without"][1],
            "waited": total[how][2] / rounds,
            "busy": total[how][3] / rounds / 20,
        }
        for how in ways
    }


def run(name: str, root: str, env: dict[str, str], options: argparse.Namespace, cores: set[int], *rest: str) -> Any:
    with tempfile.TemporaryDirectory(dir=options.work) as work:
        command = [sys.executable, __file__, "--step", name, root.replace("{work}", work), work, *rest]
        done = subprocess.run(
            [*command, *(f"--{name}={vars(options)[name.replace('-', '_')]}" for name in PASSED)],
            env={**os.environ, **env, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )
        shutil.rmtree(Path(work, "store"), ignore_errors=True)
    return json.loads(done.stdout.splitlines()[-1])


def line(what: str, value: float, bound: str, note: str = "") -> None:
    print(f"| {what} | {value:.3f} | {bound} | {note} |", flush=True)


def print_calls(where: str, got: dict[str, float]) -> None:
    told = ", ".join(f"{name} {value * 1e3:.0f} ms" for name, value in got.items())
    line(f"{where}: save_async / cp", got["save_async"] / got["cp"], "at most 1.3", told)
    if where != "local":
        bound = "0.1" if where == "link" else "0.333"
        line(f"{where}: save_async / save", got["save_async"] / got["save"], f"at most {bound}")
    for name in ("consume", "bytes"):
        line(f"{where}: {name}, ms", got[name] * 1e3, "at most 30")


def print_steps(what: str, found: dict[str, dict[str, float]]) -> None:
    for how, got in found.items():
        note = f"{got['alone']:.0f} and {got['beside']:.0f} steps/s, stored in {got['seconds']:.1f} s"
        line(f"{what}, {how}: steps beside a save", got["beside"] / got["alone"], "at least 0.95", note)
        free = got["beside on a free core"] / got["alone on a free core"]
        line(f"{what}, {how}: the same, while it had a core", free, "at least 0.95")


def print_epochs(what: str, found: dict[str, dict[str, float]]) -> None:
    for how, got in found.items():
        note = f"{got['without']:.1f} and {got['with']:.1f} s, of which {got['waited']:.2f} s waited; "
        note += f"{got['busy'] * 1e3:.0f} ms of a core for each save in other threads of the training's process"
        line(f"{what}, {how}: 200 steps, 20 saves", got["ratio"], "at most 1.05", note)
        line(f"{what}, {how}: the same, while it had a core", got["ratio on a free core"], "at most 1.05")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["calls", "steps", "epochs"])
    parser.add_argument("--by", default="process", help="process, thread, or both with a comma")
    parser.add_argument("--where", default="local,s3,link")
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rate", type=float, default=50)
    parser.add_argument("--latency", type=float, default=0.01)
    parser.add_argument("--epoch-mib", type=int, default=16)
    parser.add_argument("--work", help="where the files lie")
    parser.add_argument("--step", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        name, root, work, *rest = options.step
        ways = options.by.split(",")
        got: Any
        if name == "calls":
            got = calls(root, Path(work), options.mib, options.rounds)
        elif name == "steps":
            got = steps(root, Path(work), options.mib, options.rounds, rest[0], ways)
        else:
            got = epochs(root, Path(work), options.epoch_mib, rest[0], ways, options.rounds)
        print(json.dumps(got))
        return
    cores = os.sched_getaffinity(0)
    with contextlib.ExitStack() as stack:
        if len(cores) > 1:
            os.sched_setaffinity(0, {min(cores)})
        server = stack.enter_context(seaweedfs(stack.enter_context(tempfile.TemporaryDirectory(dir=options.work))))
        link = stack.enter_context(Link(server.endpoint, options.rate * 1e6, options.latency, shared=True))
        places = {
            "local": ("{work}/store", {}),
            "s3": (f"{server.root}/{uuid4().hex}", server.environment()),
            "link": (
                f"{server.root}/{uuid4().hex}",
                {**server.environment(), "METAFLOW_S3_ENDPOINT_URL": link.endpoint, "AWS_ENDPOINT_URL": link.endpoint},
            ),
        }
        print(f"{len(cores)} cores, load {os.getloadavg()[0]:.1f}, {options.mib} MiB")
        print("| | ratio | to be | |\n| --- | --- | --- | --- |")
        for where in options.where.split(","):
            root, env = places[where]
            if options.only in (None, "calls"):
                print_calls(where, run("calls", root, env, options, cores))
            for loop in LOOPS:
                if options.only in (None, "steps"):
                    print_steps(f"{where}, {loop}", run("steps", root, env, options, cores, loop))
                if options.only in (None, "epochs") and where == "link":
                    print_epochs(f"{where}, {loop}", run("epochs", root, env, options, cores, loop))
        print(f"load at the end {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
