"""References outlive a move of their datastore, in steps and outside of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from metaflow_artifacts import open_store
from metaflow_artifacts.testing.flows import FlowRunner
from metaflow_artifacts.testing.seaweedfs import SeaweedServer

FLOWS = Path(__file__).parent / "flows"

DELETE = """
import json, os
from metaflow import delete_model, load_model
from metaflow_artifacts import ArtifactNotFound
from metaflow_artifacts.testing.flows import emit
reference = json.loads(os.environ["REFERENCE"])
emit("deleted", delete_model(reference))
try:
    load_model(reference, "nowhere")
except ArtifactNotFound as error:
    emit("error", str(error))
"""


@pytest.mark.parametrize("kind", ["local", pytest.param("s3", marks=pytest.mark.long)])
def test_a_reference_is_loaded_from_where_its_store_was_moved_to(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    runner = FlowRunner(tmp_path)
    root = runner.local_root
    store = open_store(root)
    if kind == "s3":
        server: SeaweedServer = request.getfixturevalue("s3_server")
        root = f"{server.root}/{tmp_path.name}"
        runner = runner.with_environment(
            **{**server.environment(), "METAFLOW_DEFAULT_DATASTORE": "s3", "METAFLOW_DATASTORE_SYSROOT_S3": root}
        )
        store = open_store(root, client=server.client)
    (tmp_path / "file").write_text("content")
    saved = store.save_model(tmp_path / "file")
    reference = {**saved, "url": saved["url"].replace(root, f"{root}-before")}
    runner = runner.with_environment(REFERENCE=json.dumps(reference))

    result = runner.run(FLOWS / "moved_flow.py")
    for call in ("loaded", "load", "load_model"):
        assert result.fact(call) == "content"

    result = runner.python(DELETE)
    assert result.fact("deleted") is True
    assert list(store.list()) == []
    assert f"{root}-before" in result.fact("error")
    assert f"{root}/" in result.fact("error")


LOAD = """
import json, os
from metaflow import load_model
from metaflow_artifacts.testing.flows import emit
emit("loaded", open(os.path.join(load_model(json.loads(os.environ["REFERENCE"]), "here"), "file")).read())
"""


def test_a_model_is_loaded_from_the_store_that_it_was_copied_to(tmp_path: Path) -> None:
    """By its key, its url there, and the reference that its save returned."""
    runner = FlowRunner(tmp_path)
    source = open_store(tmp_path / "source")
    (tmp_path / "file").write_text("content")
    saved = source.save_model(tmp_path / "file")
    source.copy_to(open_store(runner.local_root), [saved])
    (tmp_path / "source").rename(tmp_path / "gone")
    for reference in (saved["key"], f"{runner.local_root}/{saved['key']}", saved):
        result = runner.with_environment(REFERENCE=json.dumps(reference)).python(LOAD)
        assert result.fact("loaded") == "content"
