"""Running flow files with Metaflow in tests: in subprocesses, with this interpreter and a separate local datastore."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["FlowRunner", "Result", "emit"]

_TIMEOUT_S = 300
_LATE_PYTHON = f"""#!{sys.executable}
import os, random, sys, time
arguments = sys.argv[1:]
if "ubf_task" in arguments:
    node = [arguments[arguments.index(name) + 1] for name in ("--split-index", "--retry-count")]
    chosen = random.Random(os.environ["LATE_WORKERS_SEED"] + str(node))
    time.sleep(chosen.uniform(0, float(os.environ["LATE_WORKERS_S"])))
os.execv({sys.executable!r}, [{sys.executable!r}, *arguments])
"""
_NEEDED: dict[str, list[str]] = {
    "ENVIRONMENT": [],
    "SIDECAR": [],
    "CLI": ["package", "card", "tag", "logs"],
}
_FACT = "FACT "
_PREFIX = re.compile(r"^\S+ \S+ \[(?P<task>[^\] ]+)(?: \(pid \d+\))?\] ")
_RUN_ID = re.compile(r"\(run-id (\S+)\)")


def emit(name: str, value: Any) -> None:
    """In a flow: print `value`, which can be written as JSON, for the test to read with `Result.facts(name)`."""
    # One write, so that the lines of processes with one standard output do not mix, even with PYTHONUNBUFFERED.
    print(f"{_FACT}{json.dumps([name, value])}\n", end="", flush=True)


@dataclass(frozen=True)
class Result:
    """The result of a process: a run of a flow, or a script."""

    returncode: int
    output: str
    """Standard output and standard error, as a terminal would show them."""

    @property
    def run_id(self) -> str:
        """The run's id."""
        found = _RUN_ID.search(self.output)
        assert found is not None, self.output
        return found[1]

    @property
    def lines(self) -> list[str]:
        """The output's lines without the time and task that Metaflow puts before them."""
        return [_PREFIX.sub("", line) for line in self.output.splitlines()]

    def lines_of(self, step: str) -> list[str]:
        """What the tasks of one step have printed, in order."""
        found = []
        for line in self.output.splitlines():
            match = _PREFIX.match(line)
            if match is not None and match["task"].split("/")[1:2] == [step]:
                found.append(line[match.end() :])
        return found

    def facts(self, name: str) -> list[Any]:
        """The values that the flow's `emit` gave under `name`, in order."""
        pairs = [json.loads(line[len(_FACT) :]) for line in self.lines if line.startswith(_FACT)]
        return [value for given, value in pairs if given == name]

    def fact(self, name: str) -> Any:
        """The one value that was given under `name`."""
        values = self.facts(name)
        assert len(values) == 1, f"{len(values)} values under {name!r} in\n{self.output}"
        return values[0]


def _plugins() -> dict[str, list[str]]:
    """The plugins that runs on this machine need, of the kinds that are costly to import."""
    has_spin = _has_spin()
    if has_spin is None:
        return {}
    # Where there is no spin, the name would be an error.
    return {**_NEEDED, "METADATA_PROVIDER": ["local", "spin"] if has_spin else ["local"]}


@functools.cache
def _has_spin() -> bool | None:
    """Whether the installed Metaflow is 2.19 or later; None where none is installed."""
    metaflow = importlib.util.find_spec("metaflow")
    if metaflow is None or metaflow.origin is None:
        return None
    return (Path(metaflow.origin).parent / "plugins" / "metadata_providers" / "spin.py").exists()


@dataclass
class FlowRunner:
    """Runs flows and scripts as the user `tester`, without the machine's Metaflow and AWS settings.

    The working directory, the local datastore and the temporary files are below `directory`. A run there imports all of
    Metaflow's decorators, but not its metadata service, Conda and its commands for other schedulers, which would take a
    sixth of the run's processor time; a test that overwrites `home/config.json` imports them too.
    """

    directory: Path
    environment: Mapping[str, str | None] = field(default_factory=dict)
    """Further variables, such as `SeaweedServer.environment()` and METAFLOW_DEFAULT_DATASTORE; None unsets one."""

    def __post_init__(self) -> None:
        for folder in (self.work, self.temporary, self.directory / "home"):
            folder.mkdir(parents=True, exist_ok=True)
        config = self.directory / "home" / "config.json"
        if not config.exists():
            config.write_text(json.dumps({f"METAFLOW_ENABLED_{kind}": names for kind, names in _plugins().items()}))

    @property
    def work(self) -> Path:
        """The working directory of all runs."""
        return self.directory / "work"

    @property
    def temporary(self) -> Path:
        """Where the runs' temporary files go."""
        return self.directory / "tmp"

    @property
    def local_root(self) -> str:
        """The root of the local datastore."""
        return str(self.directory / ".metaflow")

    def with_environment(self, **variables: str | None) -> FlowRunner:
        """The same with more variables set, or unset where None is given."""
        return FlowRunner(self.directory, {**self.environment, **variables})

    def with_late_workers(self, seconds: float, seed: int = 0) -> FlowRunner:
        """The same, but the workers of a `@parallel` step start up to `seconds` late.

        How late is drawn for each node and attempt, from `seed`.
        """
        # Metaflow starts them as the `python` that it finds in PATH.
        python = self.directory / "late" / "python"
        python.parent.mkdir(exist_ok=True)
        python.write_text(_LATE_PYTHON)
        python.chmod(0o755)
        path = os.pathsep.join([str(python.parent), self.variables()["PATH"]])
        return self.with_environment(PATH=path, LATE_WORKERS_SEED=str(seed), LATE_WORKERS_S=str(seconds))

    def variables(self) -> dict[str, str]:
        """The whole environment of a run."""
        # Without a cache of bytecode, each process compiles Metaflow: half of its time.
        dropped = ("METAFLOW", "AWS_", "MF_", "PYTHONDONTWRITEBYTECODE")
        kept = {k: v for k, v in os.environ.items() if not k.startswith(dropped)}
        # @parallel starts its workers as the `python` that it finds there.
        path = os.pathsep.join([os.path.dirname(sys.executable), kept.get("PATH", "")])
        # Before 2.19, Metaflow writes cards below the working directory, and its client looks below this root.
        old = {"METAFLOW_CARD_LOCALROOT": os.path.join(self.local_root, "mf.cards")} if _has_spin() is False else {}
        everything = {
            **kept,
            **old,
            "PATH": path,
            "HOME": str(self.directory / "home"),
            "TMPDIR": str(self.temporary),
            "USERNAME": "tester",
            "METAFLOW_USER": "tester",
            "METAFLOW_HOME": str(self.directory / "home"),
            "METAFLOW_DATASTORE_SYSROOT_LOCAL": str(self.directory),
            "PYTHONUNBUFFERED": "1",
            **self.environment,
        }
        return {name: value for name, value in everything.items() if value is not None}

    def run(
        self, flow: str | os.PathLike[str], *arguments: str, fails: bool = False, top: tuple[str, ...] = ()
    ) -> Result:
        """Run a flow file to its end: `python FLOW <top> run <arguments>`.

        Asserts that it succeeds, or with `fails` that it fails.
        """
        return self.command(flow, *top, "run", *arguments, fails=fails)

    def command(self, flow: str | os.PathLike[str], *arguments: str, fails: bool = False) -> Result:
        """Run any command of a flow file: `python FLOW <arguments>`."""
        return self._finish([sys.executable, os.fspath(flow), *arguments], fails)

    def python(self, code: str, *arguments: str, fails: bool = False) -> Result:
        """Run a script in a separate process, as a notebook would."""
        return self._finish([sys.executable, "-c", code, *arguments], fails)

    def start(self, flow: str | os.PathLike[str], *arguments: str) -> subprocess.Popen[str]:
        """Start a command of a flow file and return at once, so that the test can watch or kill it.

        It leads a process group, so `os.killpg` kills its tasks too.
        """
        return subprocess.Popen(
            [sys.executable, os.fspath(flow), *arguments],
            cwd=self.work,
            env=self.variables(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def _finish(self, command: list[str], fails: bool) -> Result:
        with tempfile.TemporaryFile("w+", errors="replace") as output:
            done = subprocess.run(
                command,
                cwd=self.work,
                env=self.variables(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=_TIMEOUT_S,
            )
            output.seek(0)
            result = Result(done.returncode, output.read())
        assert (result.returncode != 0) == fails, f"{command} ended with {done.returncode}:\n{result.output}"
        return result

    def leftovers(self, prefix: str = "metaflow_") -> list[str]:
        """Names of temporary files and directories with this prefix that still exist."""
        return sorted(path.name for path in self.temporary.iterdir() if path.name.startswith(prefix))
