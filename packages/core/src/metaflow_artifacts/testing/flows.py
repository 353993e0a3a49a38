"""Real Metaflow runs for tests: flow files, run in subprocesses with this interpreter, in a datastore of
their own."""

from __future__ import annotations

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

_SECONDS = 300
_FACT = "FACT "
_PREFIX = re.compile(r"^\S+ \S+ \[(?P<task>[^\] ]+)(?: \(pid \d+\))?\] ")
_RUN_ID = re.compile(r"\(run-id (\S+)\)")


def emit(name: str, value: Any) -> None:
    """In a flow: print `value`, anything that JSON holds, so that the test finds it in
    `Result.facts(name)`."""
    print(_FACT + json.dumps([name, value]), flush=True)


@dataclass(frozen=True)
class Result:
    """A process that has ended: a run of a flow, or a script."""

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
        """What the tasks of one step have written, in order."""
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


@dataclass
class FlowRunner:
    """Runs flows and scripts with the working directory, the local datastore and the temporary files below
    `directory`, as the user `tester`, whatever the machine's own Metaflow and AWS settings are."""

    directory: Path
    environment: Mapping[str, str | None] = field(default_factory=dict)
    """Variables besides, such as `SeaweedServer.environment()` and METAFLOW_DEFAULT_DATASTORE; None unsets
    one."""

    def __post_init__(self) -> None:
        for folder in (self.work, self.temporary, self.directory / "home"):
            folder.mkdir(parents=True, exist_ok=True)

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

    def variables(self) -> dict[str, str]:
        """The whole environment of a run."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("METAFLOW", "AWS_", "MF_"))}
        # @parallel starts its workers as the `python` that it finds there.
        path = os.pathsep.join([os.path.dirname(sys.executable), kept.get("PATH", "")])
        everything = {
            **kept,
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
        """Run a flow file to its end: `python FLOW <top> run <arguments>`. Its success, or with `fails` its
        failure, is asserted."""
        return self.command(flow, *top, "run", *arguments, fails=fails)

    def command(self, flow: str | os.PathLike[str], *arguments: str, fails: bool = False) -> Result:
        """Run any command of a flow file: `python FLOW <arguments>`."""
        return self._finish([sys.executable, os.fspath(flow), *arguments], fails)

    def python(self, code: str, *arguments: str, fails: bool = False) -> Result:
        """Run a script in a process of its own, as a notebook would."""
        return self._finish([sys.executable, "-c", code, *arguments], fails)

    def start(self, flow: str | os.PathLike[str], *arguments: str) -> subprocess.Popen[str]:
        """Begin a command of a flow file and return at once: to be watched, or killed. It leads a process
        group, so that `os.killpg` ends its tasks too."""
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
                timeout=_SECONDS,
            )
            output.seek(0)
            result = Result(done.returncode, output.read())
        assert (result.returncode != 0) == fails, f"{command} ended with {done.returncode}:\n{result.output}"
        return result

    def leftovers(self, prefix: str = "metaflow_") -> list[str]:
        """Names of temporary files and directories of ours that outlived their task."""
        return sorted(path.name for path in self.temporary.iterdir() if path.name.startswith(prefix))
