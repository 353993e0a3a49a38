"""Flows load what metaflow-checkpoint has stored, in every way that they have."""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4

import pytest
from peer_store import recorded_store, told, upload

from metaflow_artifacts import open_store
from metaflow_artifacts.testing.flows import FlowRunner
from metaflow_artifacts.testing.seaweedfs import SeaweedServer

FLOW = Path(__file__).with_name("load_flow.py")


@pytest.mark.parametrize("on_s3", [False, pytest.param(True, marks=pytest.mark.long)], ids=["local", "s3"])
def test_a_flow_loads_them(on_s3: bool, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    recorded = recorded_store(tmp_path)
    variables = {"TOLD": str(tmp_path / "told.json")}
    if on_s3:
        server: SeaweedServer = request.getfixturevalue("s3_server")
        root = f"{server.root}/{uuid4().hex}"
        upload(recorded, open_store(root, client=server.client).storage.put)
        variables |= {**server.environment(), "METAFLOW_DEFAULT_DATASTORE": "s3", "METAFLOW_DATASTORE_SYSROOT_S3": root}
    (tmp_path / "told.json").write_text(told(recorded))
    # The run and the tasks of the recorded store are known there. Its references name a root that is gone.
    result = FlowRunner(tmp_path, variables).run(FLOW)
    for what in (
        "@model by key",
        "@model by reference",
        "@model a part",
        "@model a snapshot",
        "current.model.load",
        "current.checkpoint.load",
    ):
        assert result.fact(what) is True, what
    assert result.facts("load_model") == [True] * 3
    assert result.fact("list") == sorted(recorded.listed)
    assert result.fact("list and load") > 0
    assert recorded.saved[0].key in result.fact("parents")
    assert result.facts("deleted") == ["ArtifactNotFound"] * 2
