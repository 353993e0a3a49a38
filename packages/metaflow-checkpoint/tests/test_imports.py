"""Processes that run no task with `@checkpoint` pay little for it: the scheduler, other steps, and those of cards."""

from __future__ import annotations

import tarfile
from pathlib import Path

from metaflow_artifacts.testing.flows import FlowRunner

STEP_INIT = """
import sys
from types import SimpleNamespace
from metaflow.plugins import STEP_DECORATORS
from metaflow_artifacts.testing.flows import emit
decorator = next(one for one in STEP_DECORATORS if one.name == "checkpoint")()
datastore = SimpleNamespace(TYPE="local", datastore_root="store")
decorator.step_init(None, None, "start", [], None, datastore, print)
emit("imported", [name for name in sys.modules if name.startswith("metaflow_artifacts._store")])
"""


def test_the_code_package_carries_the_callbacks(runner: FlowRunner, flows: Path, tmp_path: Path) -> None:
    archive = tmp_path / "package.tar"
    runner.command(flows / "resume_flow.py", "package", "save", str(archive))
    with tarfile.open(archive) as tar:
        assert ".mf_code/metaflow_artifacts_checkpoint/_keras.py" in tar.getnames()


def test_a_process_that_only_knows_of_the_step_imports_no_store(tmp_path: Path) -> None:
    assert FlowRunner(tmp_path).python(STEP_INIT).fact("imported") == []
