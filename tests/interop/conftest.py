"""Environments made of the wheels under test, each built once. Run by `nox -s interop`, which builds the wheels."""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

import pytest

ROOT = Path(__file__).parents[2]
HUB = ROOT / "packages" / "metaflow-hf" / "tests" / "hub.py"
UV = os.environ["UV"]
FOLDER = Path(os.environ["WHEELS"])
WHEELS: dict[object, Path] = {path.name.split("-")[0].replace("_", "-"): path for path in FOLDER.glob("*.whl")}
UNRELATED = {
    "pyproject.toml": """
        [build-system]
        requires = ["setuptools>=77"]
        build-backend = "setuptools.build_meta"
        [project]
        name = "acme-extension"
        version = "1.0"
        [tool.setuptools.packages.find]
        where = ["src"]
        namespaces = true
    """,
    # As an extension is told to do it. Metaflow takes this list in place of its own.
    "src/metaflow_extensions/acme/config/mfextinit_acme.py": """
        SPIN_ALLOWED_DECORATORS = ["acme", "card"]
    """,
    "src/metaflow_extensions/acme/plugins/mfextinit_acme.py": """
        STEP_DECORATORS_DESC = [("acme", ".acme_deco.AcmeDecorator")]
    """,
    "src/metaflow_extensions/acme/plugins/acme_deco.py": """
        from metaflow.decorators import StepDecorator
        class AcmeDecorator(StepDecorator):
            name = "acme"
            def task_pre_step(self, *args, **kwargs):
                print("acme was here")
    """,
    "src/metaflow_extensions/acme/toplevel/mfextinit_acme.py": 'toplevel = "acme_toplevel"',
    "src/metaflow_extensions/acme/toplevel/acme_toplevel.py": """
        __mf_extensions__ = "acme-extension"
        __version__ = "1.0"
        acme_answer = 42
    """,
}


def uv(*arguments: object) -> None:
    # Run at the root, where uv finds the pinned versions.
    subprocess.run([UV, *map(str, arguments)], cwd=ROOT, check=True)


@dataclass(frozen=True)
class Environment:
    """A virtual environment, and a home directory and local datastore of its own."""

    venv: Path
    directory: Path

    @property
    def home(self) -> Path:
        return self.directory / "home"

    @property
    def variables(self) -> dict[str, str]:
        return {
            "PATH": f"{self.venv / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "HOME": str(self.home),
            "METAFLOW_USER": "tester",
            "METAFLOW_DATASTORE_SYSROOT_LOCAL": str(self.home),
        }

    def python(self, *arguments: object, cwd: Path | None = None, **variables: str) -> str:
        """Run this environment's Python, with none of the outer environment's variables; what it printed."""
        command = [self.venv / "bin" / "python", *arguments]
        done = subprocess.run(
            [str(part) for part in command],
            cwd=cwd or self.home,
            env={**self.variables, **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    def flow(self, source: str) -> Path:
        """Write a flow into the home directory; the path of its file."""
        path = self.home / "flow.py"
        path.write_text(source)
        return path


@dataclass(frozen=True)
class HubServer:
    """A Hub that prints its address, and then a line for each request."""

    process: subprocess.Popen[str]
    address: str

    def fetched(self) -> list[tuple[str, str]]:
        """End the Hub: the repo and name of each file that was asked for, sorted."""
        self.process.kill()
        assert self.process.stdout is not None
        return sorted(re.findall(r"GET /(\S+)/resolve/\w+/(\S+)", self.process.stdout.read()))


def write_files(directory: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(text))


@pytest.fixture
def served(tmp_path: Path) -> Path:
    """The directory of the repos that `hub` serves: a test that writes some puts this fixture first."""
    return tmp_path / "hub"


@pytest.fixture
def hub(served: Path) -> Iterator[HubServer]:
    """A Hub on loopback that serves what is below `served`."""
    server = subprocess.Popen([sys.executable, HUB, served], stdout=subprocess.PIPE, text=True)
    with server:
        assert server.stdout is not None
        yield HubServer(server, server.stdout.readline().split()[-1])
        server.kill()


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], None]], Path]:
    """`once(name, make)` is a directory that `make` has filled, in one of the processes of pytest-xdist for all."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent

    def filled(name: str, make: Callable[[Path], None]) -> Path:
        directory, done = shared / name, shared / f"{name}.done"
        with (shared / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                make(directory)
                done.touch()
        return directory

    return filled


@pytest.fixture(scope="session")
def unrelated_wheel(once: Callable[..., Path]) -> Path:
    """The wheel of an extension that has nothing to do with ours, built by setuptools as most are."""

    def make(project: Path) -> None:
        write_files(project, UNRELATED)
        uv("build", "-q", "--wheel", "--out-dir", project / "dist", project)

    return next((once("acme", make) / "dist").glob("*.whl"))


@pytest.fixture(scope="session")
def environment(once: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Environment]:
    """Makes an environment of requirements: our wheels by their names, others by theirs or by path."""
    made: dict[tuple[object, ...], Environment] = {}

    def make(*requirements: object, held: bool = True) -> Environment:
        """With `held`, at the versions that are held for development; else at the newest that fit."""
        key = (held, *requirements)
        if key not in made:
            name = "venv-" + hashlib.sha256(repr(key).encode()).hexdigest()[:16]
            venv = once(name, functools.partial(install, requirements, held))
            made[key] = Environment(venv, tmp_path_factory.mktemp("environment"))
            made[key].home.mkdir()
        return made[key]

    return make


def install(requirements: tuple[object, ...], held: bool, venv: Path) -> None:
    uv("venv", "-q", "--clear", "--python", sys.executable, venv)
    found = [WHEELS.get(requirement, requirement) for requirement in requirements]
    # Core is never asked for: what depends on it brings it, this build of it and not one in uv's cache.
    options = ["--find-links", FOLDER, "--refresh-package", "metaflow-artifacts", *([] if held else ["--no-config"])]
    uv("pip", "install", "-q", "--python", venv, *options, *found)
