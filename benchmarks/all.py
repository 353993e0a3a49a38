"""All measurements of the documentation, one after the other, for a machine that does nothing else.

    .venv/bin/python benchmarks/all.py --out results             some hours; each output goes to a file there
    .venv/bin/python benchmarks/all.py --out results --only s3,memory-s3
    .venv/bin/python benchmarks/all.py --list                    the commands, and where their numbers stand

A file begins with the command and the load of the machine before it. Above 0.2 for each core, something else was
running, and the measurement is to be made again. What is in `results` already is not measured again, so that a run that
was interrupted goes on. `results` has to be on a disk; the servers' data is in memory where a command says so.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
INSTALLED = "nox -s installed -- python benchmarks/"
LINK = ".venv/bin/python benchmarks/link.py"
LINK_PAGE = "performance.md#a-link-that-limits-each-connection"


class Measurement(NamedTuple):
    """A command, run in the root of the repository."""

    name: str
    page: str
    """The page with its numbers, and the section."""
    command: str


MEASUREMENTS = [
    Measurement(name, f"docs/{page}", command)
    for name, page, command in [
        ("local", "performance.md#local-disk", "nox -s benchmark -- local --rounds 5"),
        ("local-1gib", "performance.md#local-disk", "nox -s benchmark -- local --mib 1024 --rounds 3"),
        ("tuning-local", "performance.md#what-was-chosen-and-why", f"{INSTALLED}tuning.py local"),
        ("small-files", "performance.md#many-small-files", f"TMPDIR=/dev/shm {INSTALLED}small_files.py"),
        ("packs", "performance.md#many-small-files", f"TMPDIR=/dev/shm {INSTALLED}packs.py"),
        ("sync", "performance.md#sync", f"{INSTALLED}sync.py"),
        ("s3", "performance.md#s3", "nox -s benchmark -- s3 --data /dev/shm"),
        ("s3-raw-memory", "performance.md#s3", "nox -s benchmark -- s3 --mib 1024 --without-peer --data /dev/shm"),
        ("s3-raw-disk", "performance.md#s3", "nox -s benchmark -- s3 --mib 1024 --without-peer"),
        ("traffic", "performance.md#s3", f"{INSTALLED}traffic.py"),
        (
            "quick",
            "decisions/0018-requests-to-s3-without-boto3.md#measured",
            "TMPDIR=/dev/shm .venv/bin/python benchmarks/quick.py",
        ),
        ("least", "performance.md#s3", "TMPDIR=/dev/shm .venv/bin/python benchmarks/least.py"),
        ("listings", "performance.md#listings", ".venv/bin/python benchmarks/listings.py"),
        ("cards", "performance.md#cards", f"{INSTALLED}cards.py --rounds 7"),
        ("link", LINK_PAGE, LINK),
        ("link-azure", LINK_PAGE, f"{LINK} --service azure --rounds 1"),
        ("link-gcs", LINK_PAGE, f"{LINK} --service gcs --rounds 1"),
        ("link-one-file", LINK_PAGE, f"{LINK} --files 1 --mib 192 --rounds 2"),
        ("link-fast", LINK_PAGE, f"{LINK} --rate 20"),
        ("link-jobs", LINK_PAGE, f"{LINK} --rate 20 --jobs 6 --rounds 1"),
        ("least-load", LINK_PAGE, "TMPDIR=/dev/shm .venv/bin/python benchmarks/least_load.py"),
        ("node", "decisions/0015-once-per-node.md#measured", ".venv/bin/python benchmarks/once_per_node.py"),
        ("memory-local", "performance.md#memory", f"{INSTALLED}memory.py local --gib 1 8 --files 100000"),
        ("memory-s3", "performance.md#memory", f"{INSTALLED}memory.py s3 --gib 1 8"),
        (
            "trivial_flow",
            "performance.md#import",
            ".venv/bin/python benchmarks/trivial_flow.py --rounds 25 --flows 2",
        ),
        ("tuning-s3", "performance.md#what-was-chosen-and-why", f"{INSTALLED}tuning.py s3 --rounds 3"),
        ("background", "saving-often.md", f"{INSTALLED}background.py"),
        ("upkeep", "upkeep.md", f"TMPDIR=/dev/shm {INSTALLED}upkeep.py --chunks 1000000"),
        ("upkeep-s3", "upkeep.md", f"{INSTALLED}upkeep.py --s3 --chunks 10000 --artifacts 3000 --each 100"),
    ]
]


def measure(command: str, out: Path) -> int:
    """Run a command with its output in the file `out`; its exit code."""
    words = shlex.split(command)
    env = dict(os.environ, PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    while "=" in words[0]:
        name, _, value = words.pop(0).partition("=")
        env[name] = value
    part = out.with_suffix(".part")
    with open(part, "w") as file:
        print(f"$ {command}\nload before: {os.getloadavg()[0]:.2f}, {os.cpu_count()} cores\n", file=file, flush=True)
        code = subprocess.run(words, cwd=ROOT, env=env, stdout=file, stderr=subprocess.STDOUT, check=False).returncode
    if code == 0:
        part.replace(out)
    return code


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="directory for the outputs")
    parser.add_argument("--only", help="names, with commas between them")
    parser.add_argument("--list", action="store_true")
    options = parser.parse_args()
    chosen = options.only.split(",") if options.only else [one.name for one in MEASUREMENTS]
    if unknown := set(chosen) - {one.name for one in MEASUREMENTS}:
        parser.error(f"--only: unknown {', '.join(sorted(unknown))}; --list shows the names")
    measurements = [one for one in MEASUREMENTS if one.name in chosen]
    if options.list:
        for one in measurements:
            print(f"{one.name:14} {one.command}\n{'':14} {one.page}")
        return
    if options.out is None:
        parser.error("--out is needed")
    options.out.mkdir(parents=True, exist_ok=True)
    failed = []
    for one in measurements:
        out = options.out / f"{one.name}.txt"
        if out.exists():
            continue
        begin = time.monotonic()
        code = measure(one.command, out.resolve())
        outcome = f"exit code {code}" if code else "done"
        print(f"{one.name}: {outcome}, {time.monotonic() - begin:.0f} s", flush=True)
        if code:
            failed.append(one.name)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}; what they printed is in {options.out}/<name>.part")


if __name__ == "__main__":
    main()
