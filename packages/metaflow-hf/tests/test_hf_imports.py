"""Processes of a flow that run no step with `@huggingface_hub` import no store."""

from __future__ import annotations

from pathlib import Path

from metaflow_artifacts.testing.flows import FlowRunner

STEP_INIT = """
import sys
from types import SimpleNamespace
from metaflow.plugins import STEP_DECORATORS
decorator = next(one for one in STEP_DECORATORS if one.name == "huggingface_hub")
decorator = decorator({"load": ["owner/repo", ({"repo_id": "other", "allow_patterns": ["*.json"]}, "path")]})
decorator.init()
for kind, root in ("local", "store"), ("s3", "s3://bucket/prefix"):
    datastore = SimpleNamespace(TYPE=kind, datastore_root=root)
    decorator.step_init(None, None, "train", [], None, datastore, print)
unused = tuple("metaflow_artifacts." + name for name in ("_format", "_storage", "_store", "_transfer"))
unused += ("huggingface_hub",)
imported = [name for name in sys.modules if name.startswith(unused)]
from metaflow_artifacts.testing.flows import emit
emit("load", len(decorator.attributes["load"]))
emit("imported", imported)
"""


def test_a_process_that_only_knows_of_the_step_imports_no_store(tmp_path: Path) -> None:
    found = FlowRunner(tmp_path).python(STEP_INIT)
    assert found.fact("load") == 2
    assert found.fact("imported") == []
