"""The command line, and gc beside savers, on stores in Azure and GCS."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from cloudlib import Cloud

from metaflow_artifacts.testing.flows import FlowRunner

COMMANDS = """
import contextlib, io, json, sys
from metaflow_artifacts._cli import main

def run(command):
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        code = main(command)
    return code, output.getvalue()

print(json.dumps([run(command) for command in json.loads(sys.argv[1])]))
"""
"""Commands in one process: each would spend seconds on the import of a cloud's SDK."""
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


def run(runner: FlowRunner, *commands: list[str]) -> list[str]:
    """What these commands print; all must succeed, but for those that list what is not there."""
    output = runner.python(COMMANDS, json.dumps(commands)).output
    results = json.loads(output.splitlines()[-1])
    for command, (code, printed) in zip(commands, results, strict=True):
        assert bool(code) == command[-1].endswith("/nothing"), (command, printed)
    return [printed for _, printed in results]


def test_commands(cloud: Cloud, runner: FlowRunner, tmp_path: Path) -> None:
    (tmp_path / "small.txt").write_bytes(b"small")
    (tmp_path / "large.bin").write_bytes(os.urandom(3 << 20))
    small, large = runner.python(SAVE, str(tmp_path / "small.txt"), str(tmp_path / "large.bin")).output.split()
    key, copy = large.removeprefix(f"{cloud.root}/"), f"{cloud.root}-copy"
    plain, with_root, with_slash, _, copied, _, _, after, removed, left, _, nothing = run(
        runner,
        ["ls"],
        ["ls", "--root", cloud.root],
        ["ls", "--root", f"{cloud.root}/"],
        ["get", large, "out"],
        ["copy", key, "--to", copy, "--json"],
        ["check", "--read", "--root", copy],
        ["delete", large],
        ["ls"],
        ["gc", "--execute", "--grace", "0s", "--exclusive", "--json"],
        ["ls"],
        ["check", "--read"],
        ["ls", "--root", f"{cloud.root}/nothing"],
    )
    assert key in plain
    assert key in with_root
    assert with_slash.count("mf.models/") == 2
    assert (runner.work / "out" / "large.bin").read_bytes() == (tmp_path / "large.bin").read_bytes()
    result = json.loads(copied)
    assert (result["to"], result["copied"], result["by_service"]) == (copy, [key], 3 << 20)
    assert key not in after
    assert json.loads(removed)["removed"] >= 1
    assert small.removeprefix(f"{cloud.root}/") in left
    assert f"nothing is stored at {cloud.root}/nothing" in nothing
    assert f"pass --root {cloud.root}" in nothing


@pytest.mark.long
def test_gc_beside_savers(cloud: Cloud, runner: FlowRunner) -> None:
    # Azure tells times to the second: a shorter grace period would need savers that are surely faster.
    options = ["--seconds", "8", "--savers", "3", "--grace", "6", "--pieces", "200"]
    result = json.loads(runner.python(SOAK, str(FAULTS), cloud.root, *options).output.splitlines()[-1])
    assert result["savers failed"] == 0
    assert result["whole"] is True
    assert result["chunks removed"] > 0
    assert result["bytes reused"] > 0
    assert result["copies"] > 0
