"""Time the commands that list or delete in a store of many artifacts on S3, here and at an earlier commit.

    python benchmarks/listings.py                       5,000 artifacts on SeaweedFS, which this starts
    python benchmarks/listings.py --commit 0a8d418      the commit to compare with (this one by default)

Options: --artifacts 5000, --rounds 3, --only ls,du (some of the commands), --data DIR (where the server keeps its
data).

The commit is taken from this repository into a temporary directory. Each version has a store of its own in one bucket,
with equal content, since the format was different. Each command is a process of its own, the versions take turns, and
the best of the rounds counts: other work on the machine makes a round slower, never faster. `retain --execute` deletes
what is listed before, so it comes last and once. Modules are compiled before anything is timed, as pip does when it
installs a package.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import site
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from metaflow_artifacts.testing.seaweedfs import seaweedfs

REPOSITORY = Path(__file__).parent.parent
COMMANDS = {
    "ls --limit 5": ["ls", "--limit", "5"],
    "ls": ["ls"],
    "du": ["du"],
    "check": ["check"],
    "retain --execute": ["retain", "--last", "0", "--flow", "Retained", "--execute"],
}

FILL = """
import sys
from concurrent.futures import ThreadPoolExecutor
try:
    from metaflow_artifacts._format.keys import CheckpointPlace
    from metaflow_artifacts._store.checkpoint_writer import CheckpointWriter
    from metaflow_artifacts._store.store import open_store
except ImportError:
    from metaflow_artifacts.checkpoints import Series as CheckpointWriter
    from metaflow_artifacts.keys import CheckpointPlace
    from metaflow_artifacts.store import open_store

root, directory, artifacts, retained = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
store = open_store(root)

def save(number):
    flow, count = ("Retained", retained) if number < 20 else ("Kept", artifacts - retained)
    pathspec = f"{flow}/{number}/train/1"
    place = CheckpointPlace(flow, "train", "0" * 12, "0" * 12)
    series = CheckpointWriter(store, place, f"{number:08x}", 0, pathspec, start=0)
    for index in range(count // 20):
        path = f"{directory}/{index % 20}"
        if number % 2 and flow == "Kept":
            store.save_model(path, f"label{number}", {"epoch": index}, pathspec=pathspec)
        else:
            series.save(path, metadata={"epoch": index, "loss": 1 / (1 + index)}, label=f"{flow}_train")

with ThreadPoolExecutor(8) as pool:
    list(pool.map(save, range(40)))
"""


@dataclass
class Version:
    """A version of the packages, its store, and what its commands took."""

    name: str
    path: str
    root: str
    seconds: dict[str, list[float]] = field(default_factory=dict)
    core: dict[str, list[float]] = field(default_factory=dict)

    def run(self, command: list[str], environment: dict[str, str]) -> None:
        """Run a command. Its code is 0, or this ends with what it says."""
        # Without `site`, so that only one version is found, and not also the one that this environment has installed.
        path = os.pathsep.join((self.path, *site.getsitepackages()))
        done = subprocess.run(
            [sys.executable, "-S", *command],
            env={**environment, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            cwd="/",
        )
        if done.returncode:
            sys.exit(f"{self.name}: {' '.join(command)} failed:\n{done.stdout[-1000:]}{done.stderr[-3000:]}")

    def time(self, what: str, environment: dict[str, str]) -> None:
        """Run one of COMMANDS and note its seconds, and those of the processor in it."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        begin = time.perf_counter()
        name, *options = COMMANDS[what]
        self.run(["-m", "metaflow_artifacts", name, "--root", self.root, *options], environment)
        self.seconds.setdefault(what, []).append(time.perf_counter() - begin)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        self.core.setdefault(what, []).append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def earlier_path(commit: str, directory: Path) -> str:
    """Take a commit into the directory; what PYTHONPATH has to be for it."""
    archive = subprocess.run(["git", "archive", commit], cwd=REPOSITORY, stdout=subprocess.PIPE, check=True)
    subprocess.run(["tar", "-x", "-C", str(directory)], input=archive.stdout, check=True)
    return path_of(directory)


def path_of(directory: Path) -> str:
    """The PYTHONPATH for the packages in a working tree."""
    return os.pathsep.join(map(str, sorted(directory.glob("packages/*/src"))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commit", default="0a8d418")
    parser.add_argument("--artifacts", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", help="names of commands, separated by commas")
    parser.add_argument("--data", help="where the S3 server keeps its data")
    options = parser.parse_args()
    wanted = [name for name in COMMANDS if not options.only or name in options.only.split(",")]
    with contextlib.ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="listings_", dir=options.data)))
        server = stack.enter_context(seaweedfs(work / "server"))
        environment = {**os.environ, **server.environment(), "PYTHONPYCACHEPREFIX": str(work / "compiled")}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        content = work / "content"
        for index in range(20):
            (content / str(index)).mkdir(parents=True)
            (content / str(index) / "weights").write_bytes(os.urandom(100_000))
        (work / "earlier").mkdir()
        versions = [
            Version("here", path_of(REPOSITORY), f"{server.root}/here"),
            Version(options.commit, earlier_path(options.commit, work / "earlier"), f"{server.root}/earlier"),
        ]
        retained = options.artifacts * 2 // 5
        for version in versions:
            arguments = [version.root, str(content), str(options.artifacts), str(retained)]
            version.run(["-c", FILL, *arguments], environment)
            # The modules of the commands are compiled here.
            version.run(["-m", "metaflow_artifacts", "check", "--root", version.root], environment)
        for name in wanted:
            for _ in range(1 if "--execute" in name else options.rounds):
                for version in versions:
                    version.time(name, environment)
    here, earlier = versions
    print(f"{options.artifacts} artifacts, the best of {options.rounds} rounds; seconds, and those of the processor")
    print(f"{'command':18} {'here':>8} {options.commit:>8} {'ratio':>6} {'core':>8} {options.commit:>8} {'ratio':>6}")
    for name in wanted:
        row = [min(times[name]) for times in (here.seconds, earlier.seconds, here.core, earlier.core)]
        middle = [statistics.median(times[name]) for times in (here.seconds, earlier.seconds)]
        print(
            f"{name:18} {row[0]:8.2f} {row[1]:8.2f} {row[1] / row[0]:6.1f} {row[2]:8.2f} {row[3]:8.2f} "
            f"{row[3] / row[2]:6.1f}   (medians {middle[0]:.2f} and {middle[1]:.2f})"
        )


if __name__ == "__main__":
    main()
