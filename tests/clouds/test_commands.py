"""The command line, and gc beside savers, on stores in Azure and GCS."""

from __future__ import annotations

import json
import os
from pathlib import Path

from cloudlib import Cloud

from metaflow_artifacts.testing.flows import FlowRunner

COMMAND = "import sys; from metaflow_artifacts._cli import main; sys.exit(main(sys.argv[1:]))"
SAVE = """
import sys
from metaflow_artifacts._mf.stores import default_store
store = default_store()
for path in sys.argv[1:]:
    print(store.save_model(path)["url"], flush=True)
"""
SOAK = """
import sys
sys.path.insert(0, sys.argv.pop(1))
from faultlib import soak
from metaflow_artifacts._mf.datastore import storage_at
soak.open_storage = storage_at
soak.main()
"""
"""`faultlib.soak` with Metaflow's credentials."""
FAULTS = Path(__file__).parents[2] / "packages" / "core" / "tests" / "faults"


def test_commands(cloud: Cloud, runner: FlowRunner, tmp_path: Path) -> None:
    (tmp_path / "small.txt").write_bytes(b"small")
    (tmp_path / "large.bin").write_bytes(os.urandom(3 << 20))
    small, large = runner.python(SAVE, str(tmp_path / "small.txt"), str(tmp_path / "large.bin")).output.split()
    key = large.removeprefix(f"{cloud.root}/")
    for options in ([], ["--root", cloud.root]):
        assert key in runner.python(COMMAND, "ls", *options).output
    assert runner.python(COMMAND, "ls", "--root", cloud.root + "/").output.count("mf.models/") == 2
    runner.python(COMMAND, "get", large, "out")
    assert (runner.work / "out" / "large.bin").read_bytes() == (tmp_path / "large.bin").read_bytes()
    copy = f"{cloud.root}-copy"
    result = json.loads(runner.python(COMMAND, "copy", key, "--to", copy, "--json").output)
    assert (result["to"], result["copied"], result["by_service"]) == (copy, [key], 3 << 20)
    runner.python(COMMAND, "check", "--read", "--root", copy)
    runner.python(COMMAND, "delete", large)
    assert key not in runner.python(COMMAND, "ls").output
    removed = json.loads(runner.python(COMMAND, "gc", "--execute", "--grace", "1s", "--exclusive", "--json").output)
    assert removed["removed"] >= 1
    assert small.removeprefix(f"{cloud.root}/") in runner.python(COMMAND, "ls").output
    runner.python(COMMAND, "check", "--read")

    nothing = runner.python(COMMAND, "ls", "--root", f"{cloud.root}/nothing", fails=True).output
    assert f"nothing is stored at {cloud.root}/nothing" in nothing
    assert f"pass --root {cloud.root}" in nothing


def test_gc_beside_savers(cloud: Cloud, runner: FlowRunner) -> None:
    # Azure tells times to the second: a shorter grace period would need savers that are surely faster.
    options = ["--seconds", "15", "--savers", "3", "--grace", "6", "--pieces", "200"]
    result = json.loads(runner.python(SOAK, str(FAULTS), cloud.root, *options).output.splitlines()[-1])
    assert result["savers failed"] == 0
    assert result["whole"] is True
    assert result["chunks removed"] > 0
    assert result["bytes reused"] > 0
    assert result["copies"] > 0
