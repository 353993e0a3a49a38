"""What the packages cost processes that do not use them: the import of Metaflow, and a flow of 50 trivial tasks.

    python benchmarks/trivial_flow.py                     three environments, 15 rounds
    python benchmarks/trivial_flow.py --commit 0a8d418    the commit to compare with (this one by default)

Options: --rounds 15, --flows 3 (rounds that also run the flow), --tasks 50.

`uv` makes the environments in a temporary directory: one with the packages of this working tree, one with those of the
commit, and one without, all with the same dependencies, and with compiled modules. They take turns. Printed are seconds
of the processor, with child processes: other work on the machine changes these least. The lowest of the rounds counts.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
PACKAGES = ("core", "metaflow-model", "metaflow-checkpoint", "metaflow-hf")
DEPENDENCIES = ("boto3", "huggingface_hub", "metaflow", "requests")
FLOW = """
from metaflow import FlowSpec, step

class TrivialFlow(FlowSpec):
    @step
    def start(self):
        self.numbers = list(range({tasks}))
        self.next(self.work, foreach="numbers")

    @step
    def work(self):
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    TrivialFlow()
"""


@dataclass
class Environment:
    """A virtual environment, and the seconds of the processor that its processes took."""

    name: str
    directory: Path
    core: dict[str, list[float]] = field(default_factory=dict)

    @property
    def python(self) -> str:
        return str(self.directory / "bin" / "python")

    def run(self, what: str, arguments: list[str], work: Path) -> None:
        """Run Python, and note what that took."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("METAFLOW_", "PYTHON"))}
        home = {"METAFLOW_HOME": str(work / "home"), "METAFLOW_USER": "benchmark", "METAFLOW_DEFAULT_METADATA": "local"}
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [self.python, *arguments], cwd=work, env={**clean, **home}, capture_output=True, text=True
        )
        if done.returncode:
            sys.exit(f"{self.name}: {what} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        self.core.setdefault(what, []).append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def uv(*arguments: str | Path) -> None:
    program = shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv")
    if program is None:
        sys.exit("uv is not installed: pip install uv")
    subprocess.run([program, *arguments], check=True, stdout=sys.stderr)


def make(directory: Path, sources: Path | None) -> None:
    """An environment with the dependencies, as they are installed here, and with the packages in `sources`."""
    from importlib.metadata import version

    uv("venv", "--quiet", "--python", sys.executable, directory)
    install = ("pip", "install", "--quiet", "--compile-bytecode", "--python", directory / "bin" / "python")
    uv(*install, *(f"{name}=={version(name)}" for name in DEPENDENCIES))
    if sources is not None:
        uv(*install, "--no-deps", *(sources / "packages" / name for name in PACKAGES))


def take(commit: str | None, directory: Path) -> Path:
    """The files of a commit; without one, those of the working tree that git knows."""
    directory.mkdir()
    tree = (
        commit
        or subprocess.run(
            ["git", "stash", "create"], cwd=REPOSITORY, capture_output=True, text=True, check=True
        ).stdout.strip()
    )
    archive = subprocess.run(["git", "archive", tree or "HEAD"], cwd=REPOSITORY, stdout=subprocess.PIPE, check=True)
    subprocess.run(["tar", "-x", "-C", str(directory)], input=archive.stdout, check=True)
    return directory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commit", default="0a8d418")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--flows", type=int, default=3)
    parser.add_argument("--tasks", type=int, default=50)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="trivial_flow_") as temporary:
        work = Path(temporary)
        environments = [
            Environment("here", work / "here"),
            Environment(options.commit, work / "earlier"),
            Environment("without", work / "without"),
        ]
        sources = (take(None, work / "tree"), take(options.commit, work / "commit"), None)
        for environment, source in zip(environments, sources, strict=True):
            make(environment.directory, source)
        (work / "flow.py").write_text(FLOW.format(tasks=options.tasks))
        for number in range(-1, options.rounds):
            for environment in environments:
                environment.run("import metaflow", ["-c", "import metaflow"], work)
                if 0 <= number < options.flows:
                    flow = ["flow.py", "--quiet", "run", "--max-workers", "2"]
                    environment.run(f"{options.tasks} tasks", flow, work)
    show("processor", [environment.name for environment in environments])
    for what in environments[0].core:
        times = [environment.core[what] for environment in environments]
        show(what, [f"{min(one):.3f}" for one in times])
        show("  median", [f"{statistics.median(one):.3f}" for one in times])


def show(title: str, values: list[str]) -> None:
    print(f"{title:18}" + "".join(f"{value:>10}" for value in values))


if __name__ == "__main__":
    main()
