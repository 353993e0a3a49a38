"""What metaflow-checkpoint has stored in Azure and GCS: the same objects, loaded and copied there."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from cloudlib import Cloud

from metaflow_artifacts.testing.flows import FlowRunner

PEER = Path(__file__).parents[1] / "peer"
sys.path.insert(0, str(PEER))
from peer_store import digests, recorded_store, told  # noqa: E402

COMMAND = "import sys; from metaflow_artifacts._cli import main; sys.exit(main(sys.argv[1:]))"
UPLOAD = """
import sys
from pathlib import Path
from metaflow_artifacts._mf.stores import default_store
storage = default_store().storage
for path in Path(sys.argv[1]).glob("mf.*/**/*"):
    if path.is_file():
        storage.put(path.relative_to(sys.argv[1]).as_posix(), path.read_bytes())
"""


@pytest.mark.long
def test_a_flow_loads_them_and_the_command_copies_them(cloud: Cloud, runner: FlowRunner, tmp_path: Path) -> None:
    recorded = recorded_store(tmp_path)
    runner.python(UPLOAD, recorded.root)
    for path in Path(recorded.root).glob("mf.*"):
        shutil.rmtree(path)
    copy = f"{cloud.root}-copy"
    copied = json.loads(runner.python(COMMAND, "copy", "*", "--to", copy, "--json").output)
    assert (len(copied["copied"]), copied["failed"]) == (len(recorded.saved), {})
    runner.python(COMMAND, "gc", "--execute", "--grace", "1s", "--exclusive", "--root", copy)
    runner.python(COMMAND, "check", "--read", "--root", copy)
    for one in recorded.saved:
        if one.kind in ("model: slash in the label", "model: odd names, tar", "snapshot: global"):
            for number, root in enumerate((cloud.root, copy)):
                runner.python(COMMAND, "get", f"{root}/{one.key}", str(tmp_path / one.kind / str(number)))
                assert digests(tmp_path / one.kind / str(number)) == one.files
    (tmp_path / "told.json").write_text(told(recorded))
    result = runner.with_environment(TOLD=str(tmp_path / "told.json")).run(PEER / "load_flow.py")
    assert result.facts("load_model") == [True] * 3
    assert result.fact("@model by key") is result.fact("current.checkpoint.load") is True
    assert result.fact("list") == sorted(recorded.listed)
    assert result.facts("deleted") == ["ArtifactNotFound"] * 2
