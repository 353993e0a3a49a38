"""Processes that run no task with `@checkpoint` pay little for it: the scheduler, other steps, and those of cards."""

from __future__ import annotations

from pathlib import Path

from metaflow_artifacts.testing.flows import FlowRunner

UNUSED = ("_format", "_storage", "_store", "_transfer", "_upkeep", "_mf.artifact_store", "_mf.stores", "_mf.task")
IMPORT = f"""
import metaflow, sys
unused = tuple("metaflow_artifacts." + name for name in {UNUSED!r})
imported = [name for name in sys.modules if name.startswith(unused)]
from metaflow_artifacts.testing.flows import emit
emit("ours", "metaflow_artifacts" in sys.modules)
emit("imported", imported)
"""
ALIASES = """
import sys
sys.argv[1:] = ARGUMENTS
import metaflow
from metaflow_artifacts.testing.flows import emit
emit("stubs", [name for one in sys.meta_path for name in getattr(one, "_handled", ()) if "checkpoint_stubs" in name])
"""
STEP_INIT = f"""
import sys
unused = tuple("metaflow_artifacts." + name for name in {UNUSED[1:5]!r})
from types import SimpleNamespace
from metaflow.plugins import STEP_DECORATORS
decorator = next(one for one in STEP_DECORATORS if one.name == "checkpoint")()
for kind, root in ("local", "store"), ("s3", "s3://bucket/prefix"):
    datastore = SimpleNamespace(TYPE=kind, datastore_root=root)
    decorator.step_init(None, None, "start", [], None, datastore, print)
imported = [name for name in sys.modules if name.startswith(unused)]
from metaflow_artifacts.testing.flows import emit
emit("imported", imported)
"""


def test_the_code_package_carries_the_callbacks(runner: FlowRunner, flows: Path) -> None:
    # Its command `save` ends with a TypeError in Metaflow 2.16.8.
    result = runner.command(flows / "resume_flow.py", "package", "list", "--archive")
    assert any(line.endswith(".mf_code/metaflow_artifacts_checkpoint/_keras.py") for line in result.lines)


def test_the_import_of_metaflow_imports_little(tmp_path: Path) -> None:
    found = FlowRunner(tmp_path).python(IMPORT)
    assert found.fact("ours")
    assert found.fact("imported") == []


def test_only_the_command_that_writes_stubs_has_their_alias(tmp_path: Path) -> None:
    """Metaflow's finder for an alias is asked at every import."""
    runner = FlowRunner(tmp_path)
    assert runner.python(ALIASES.replace("ARGUMENTS", "[]")).fact("stubs") == []
    found = runner.python(ALIASES.replace("ARGUMENTS", "['develop', 'stubs', 'install']"))
    assert found.fact("stubs") == ["metaflow.plugins.checkpoint_stubs"]


def test_a_process_that_only_knows_of_the_step_imports_no_store(tmp_path: Path) -> None:
    assert FlowRunner(tmp_path).python(STEP_INIT).fact("imported") == []
