"""What metaflow-checkpoint 0.2.14 gives, and what these packages give, as probe_flow.py finds it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from metaflow_artifacts.testing.flows import FlowRunner

# pytest's importlib mode adds no directory to the path; tests share the module comparison.
sys.path.insert(0, str(Path(__file__).parent))

HERE = Path(__file__).parent
STORED = HERE / "metaflow-checkpoint-0.2.14.json"
HUB = HERE.parents[1] / "packages" / "metaflow-hf" / "tests" / "hub.py"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--peer", help="a Python that has metaflow-checkpoint 0.2.14: run the probe there too")
    parser.addoption("--write", action="store_true", help="write the page's tables, and what --peer gives")


@pytest.fixture(scope="session")
def writes(request: pytest.FixtureRequest) -> bool:
    """Whether the page is to be written, and not compared."""
    return bool(request.config.getoption("--write", default=False))


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a Hub on loopback with one small repo."""
    directory = tmp_path_factory.mktemp("hub")
    repo = directory / "models" / "org" / "tiny"
    repo.mkdir(parents=True)
    (repo / "config.json").write_text("{}")
    (repo / "weights.bin").write_text("1")
    server = subprocess.Popen([sys.executable, HUB, directory], stdout=subprocess.PIPE, text=True)
    with server:
        assert server.stdout is not None
        yield server.stdout.readline().split()[-1]
        server.kill()


def probe(python: str, directory: Path, hub: str) -> Any:
    """What probe_flow.py finds in the environment of an interpreter."""
    output = directory / "facts.json"
    variables = {"HF_ENDPOINT": hub, "HF_HOME": str(directory / "hf"), "PROBE_OUTPUT": str(output)}
    runner = FlowRunner(directory, variables)
    command = [python, str(HERE / "probe_flow.py"), "run"]
    done = subprocess.run(
        command,
        cwd=runner.work,
        env={**runner.variables(), "PATH": f"{os.path.dirname(python)}{os.pathsep}{os.environ['PATH']}"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    return json.loads(output.read_text())


@pytest.fixture(scope="session")
def here(tmp_path_factory: pytest.TempPathFactory, hub: str) -> Any:
    """What these packages give."""
    return probe(sys.executable, tmp_path_factory.mktemp("here"), hub)


@pytest.fixture(scope="session")
def theirs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, hub: str, writes: bool) -> Any:
    """What metaflow-checkpoint gives: as it is stored here, which `--peer` compares with a run."""
    stored = json.loads(STORED.read_text()) if STORED.exists() else None
    python = request.config.getoption("--peer", default=None)
    if python is None:
        return stored
    found = probe(python, tmp_path_factory.mktemp("peer"), hub)
    if writes:
        STORED.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
        return found
    assert found == stored, f"{STORED.name} is not what metaflow-checkpoint gives; see pytest --write"
    return stored
