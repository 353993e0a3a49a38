"""Time the packages here, metaflow-checkpoint 0.2.14 and a plain loop in turn; print medians and ratios.

    nox -s benchmark -- local                  the local datastore
    nox -s benchmark -- s3                     S3: starts SeaweedFS with its data on disk
    nox -s benchmark -- s3 --data /dev/shm     the same with its data in memory, not on disk

Options: --mib 256 (size of the large payloads), --rounds 3, --work DIR (default: a temporary directory),
--without-peer (on S3 it takes minutes a round).
Compare ratios of one run: seconds differ from machine to machine.
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
from pathlib import Path

from metaflow_artifacts.testing.seaweedfs import SeaweedServer, seaweedfs

HERE = Path(__file__).parent


def make_payload(directory: Path, mib: int) -> None:
    """One large file, the same in eight shards, and 2,000 files of 16 kB in 20 folders; random bytes."""
    numbers = random.Random(1)

    def write(path: Path, size: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            for start in range(0, size, 1 << 22):
                file.write(numbers.randbytes(min(1 << 22, size - start)))

    write(directory / "big" / "model.safetensors", mib << 20)
    for number in range(8):
        write(directory / "shards" / f"model-{number + 1:05}-of-00008.safetensors", (mib << 20) // 8)
    for number in range(2000):
        write(directory / "many" / f"part{number % 20:02}" / f"{number:05}.bin", 16 << 10)


def run(command: list[str], cwd: Path, environment: dict[str, str]) -> None:
    done = subprocess.run(
        command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout[-3000:]}")


def measure(
    who: str, python: str, where: str, work: Path, payload: Path, server: SeaweedServer | None
) -> dict[str, float]:
    store = Path(tempfile.mkdtemp(prefix=f"{who}_", dir=work))
    out = store / "result.json"
    environment = {
        **os.environ,
        **(server.environment() if server else {}),
        "PATH": f"{Path(python).parent}{os.pathsep}{os.environ['PATH']}",
        "METAFLOW_USER": "benchmark",
        "METAFLOW_DEFAULT_DATASTORE": where,
        "METAFLOW_DATASTORE_SYSROOT_LOCAL": str(store),
    }
    root = f"{server.root}/{store.name}" if server else str(store)
    environment["METAFLOW_DATASTORE_SYSROOT_S3"] = root
    script = [python, str(HERE / ("raw.py" if who == "raw" else "workload.py")), "--datastore", where, "run"]
    options = [f"--payload={payload}", f"--out={out}", *([f"--target={root}/raw"] if who == "raw" else [])]
    run(script + options, store, environment)
    result: dict[str, float] = json.loads(out.read_text())
    shutil.rmtree(store)
    return result


def report(results: dict[str, list[dict[str, float]]]) -> None:
    def median(who: str, metric: str) -> float | None:
        values = [result[metric] for result in results.get(who, ()) if metric in result]
        return statistics.median(values) if values else None

    def ratio(value: float | None, ours: float) -> str:
        return f"{value / ours:8.2f}" if value is not None else " " * 8

    print(f"{'metric':24} {'ours':>9} {'peer':>9} {'raw':>9} {'peer/ours':>9} {'ours/raw':>9}")
    for metric in results["ours"][0]:
        ours, peer, raw = (median(who, metric) for who in ("ours", "peer", "raw"))
        assert ours is not None
        cells = [f"{value:9.4f}" if value is not None else " " * 9 for value in (ours, peer, raw)]
        to_raw = f"{ours / raw:8.2f}" if raw else ""
        print(f"{metric:24} {' '.join(cells)} {ratio(peer, ours):>9} {to_raw:>9}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("where", choices=["local", "s3"])
    parser.add_argument("--peer", required=True, help="the Python of an environment with metaflow-checkpoint 0.2.14")
    parser.add_argument("--without-peer", action="store_true")
    parser.add_argument("--data", help="where the S3 server keeps its data")
    parser.add_argument("--mib", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work")
    options = parser.parse_args()
    pythons = {"ours": sys.executable, "peer": options.peer, "raw": sys.executable}
    if options.without_peer:
        del pythons["peer"]
    with contextlib.ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="benchmark_", dir=options.work)))
        payload = work / "payload"
        make_payload(payload, options.mib)
        results: dict[str, list[dict[str, float]]] = {who: [] for who in pythons}
        for _ in range(options.rounds):
            for who, python in pythons.items():
                # A server for each: what one run has deleted stays on the server's disk.
                with contextlib.ExitStack() as turn:
                    server = None
                    if options.where == "s3":
                        data = turn.enter_context(tempfile.TemporaryDirectory(prefix="benchmark_s3_", dir=options.data))
                        server = turn.enter_context(seaweedfs(data))
                    results[who].append(measure(who, python, options.where, work, payload, server))
    print(f"{options.where}, {options.mib} MiB, {options.rounds} rounds, medians; seconds, but for the peaks (MiB)")
    report(results)


if __name__ == "__main__":
    main()
