"""Many processes that save at the same time, also beside a gc."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from uuid import uuid4

import pytest
from faultlib.outcomes import RIGHT, Outcomes, content, loading, told

from metaflow_artifacts import StorageError, Store
from metaflow_artifacts._format.keys import CheckpointPlace
from metaflow_artifacts._storage import open_storage
from metaflow_artifacts._upkeep.check import check
from metaflow_artifacts.testing.seaweedfs import SeaweedServer
from metaflow_artifacts.testing.servers import S3Server

CHUNK = 64 << 10
SECTION = "several processes at once"
HERE = Path(__file__).parent

SAVER = """
import sys
from metaflow_artifacts import ArtifactError, Store
from metaflow_artifacts._store.checkpoint_writer import CheckpointWriter
from metaflow_artifacts._format.keys import CheckpointPlace
from metaflow_artifacts._storage import open_storage
root, tree, kind = sys.argv[1:]
store = Store(open_storage(root), chunk_size=64 << 10)
print("ready", flush=True)
sys.stdin.readline()
writer = CheckpointWriter(store, CheckpointPlace("F", "s", "0" * 12, "1" * 12), "0" * 8, 0, "F/1/s/2")
try:
    if kind == "model":
        print(store.save_model(tree)["key"])
    for _ in range(3 if kind == "checkpoint" else kind == "one checkpoint"):
        print(writer.save(tree, label="l")["key"])
except ArtifactError as error:
    print(f"{type(error).__name__}: {error}")
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    root.mkdir()
    (root / "weights.bin").write_bytes(os.urandom(8 * CHUNK + 5))
    for number in range(30):
        (root / f"{number}.txt").write_bytes(os.urandom(100 * number))
    return root


def save_at_once(root: str, trees: list[Path], kinds: list[str], environment: dict[str, str]) -> list[str]:
    """A process for each tree and kind, all of which begin to save at the same time: what each of them has printed."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SAVER, root, str(tree), kind],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )
        for tree, kind in zip(trees, kinds, strict=True)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(kinds)
    return outputs


@pytest.mark.parametrize(("savers", "where"), [(20, "local"), pytest.param(8, "direct", marks=pytest.mark.long)])
def test_savers_of_the_same_content_store_it_once(
    request: pytest.FixtureRequest, tree: Path, tmp_path: Path, outcomes: Outcomes, savers: int, where: str
) -> None:
    store: Store = request.getfixturevalue(where)
    server: SeaweedServer | None = request.getfixturevalue("s3_server") if where == "direct" else None
    kinds = ["model", "checkpoint"] * (savers // 2)
    outputs = save_at_once(store.root, [tree] * savers, kinds, server.environment() if server else {})
    keys = [key for output in outputs for key in output.split()]
    assert len(set(keys)) == len(keys) == 2 * savers
    place = CheckpointPlace("F", "s", "0" * 12, "1" * 12)
    numbers = sorted(int(key.rpartition(".")[2]) for key in keys if key.startswith(place.prefix()))
    assert numbers == list(range(3 * savers // 2))
    for number, key in enumerate(keys[:: savers // 2]):
        assert loading(store, key, tmp_path / str(number), content(tree)) == RIGHT
    report = check(store, read=True)
    assert report.ok
    assert report.artifacts == len(keys)
    assert sum(1 for _ in store.storage.list("mf.artifacts/chunks/")) == len(set(store.manifest(keys[0]).chunks))
    several = {8: "eight", 20: "twenty"}[savers]
    outcome = "every artifact loads the right bytes; each checkpoint has a number of its own; content is stored once"
    outcomes.record(SECTION, f"{several} savers of the same content, models and checkpoints", outcome)


def store_at(request: pytest.FixtureRequest, where: str) -> tuple[Store, dict[str, str]]:
    """A store on that storage, and the variables that lead a process to it."""
    if where == "local":
        return request.getfixturevalue("local"), {}
    server: S3Server = request.getfixturevalue(where)
    storage = open_storage(f"{server.root}/{uuid4().hex}", client=server.client)
    return Store(storage, chunk_size=CHUNK), server.environment()


@pytest.fixture
def trees(tmp_path: Path) -> list[Path]:
    """Four that differ: two are so small that they are stored in their manifests."""
    found = [tmp_path / f"tree {number}" for number in range(4)]
    for number, root in enumerate(found):
        root.mkdir()
        (root / "state").write_bytes(os.urandom(1000 if number % 2 else 3 * CHUNK))
    return found


@pytest.mark.parametrize("where", ["local", "s3_server", pytest.param("moto", marks=pytest.mark.long)])
def test_savers_of_one_task_never_overwrite_each_other(
    request: pytest.FixtureRequest, trees: list[Path], tmp_path: Path, outcomes: Outcomes, where: str
) -> None:
    store, environment = store_at(request, where)
    keys = [output.strip() for output in save_at_once(store.root, trees, ["one checkpoint"] * 4, environment)]
    assert sorted(key.rpartition(".")[2] for key in keys) == ["0", "1", "2", "3"]
    for number, (key, tree) in enumerate(zip(keys, trees, strict=True)):
        assert loading(store, key, tmp_path / str(number), content(tree)) == RIGHT
    case = "four savers of different checkpoints of one task: on a disk, SeaweedFS, moto"
    outcomes.record(SECTION, case, "four keys; each reference loads what its saver saved")


def test_checkpoints_are_refused_on_a_server_without_conditional_writes(
    request: pytest.FixtureRequest, trees: list[Path], tmp_path: Path, outcomes: Outcomes
) -> None:
    store, environment = store_at(request, "rclone")
    outputs = save_at_once(store.root, trees, ["one checkpoint"] * 4, environment)
    for output in outputs:
        assert output.startswith(f"StorageError: cannot save to {store.root}: ")
        assert len(output.splitlines()) == 1
        shown = told(StorageError(output.strip().removeprefix("StorageError: ")), store)
        outcomes.record(SECTION, "four savers of different checkpoints of one task: on rclone", shown)
    assert [info.key for info in store.storage.list("mf.")] == ["mf.artifacts/probe"]
    models = [output.strip() for output in save_at_once(store.root, trees, ["model"] * 4, environment)]
    for number, (key, tree) in enumerate(zip(models, trees, strict=True)):
        assert loading(store, key, tmp_path / str(number), content(tree)) == RIGHT
    outcomes.record(SECTION, "four savers of different models: on rclone", "each reference loads what its saver saved")


@pytest.mark.parametrize("where", ["local", pytest.param("s3", marks=pytest.mark.long)])
def test_a_gc_beside_savers_removes_nothing_that_is_needed(
    request: pytest.FixtureRequest, tmp_path: Path, outcomes: Outcomes, where: str
) -> None:
    """`python -m faultlib.soak` does the same for a minute."""
    environment = {**os.environ, "PYTHONPATH": str(HERE)}
    root, options = str(tmp_path / "store"), ["--seconds", "5"]
    if where == "s3":
        # S3 tells times to the second: a shorter grace period would need savers that are surely faster.
        server: SeaweedServer = request.getfixturevalue("s3_server")
        environment.update(server.environment())
        root = request.getfixturevalue("root")
        options = ["--seconds", "8", "--savers", "4", "--grace", "6", "--pieces", "300"]
    command = [sys.executable, "-m", "faultlib.soak", root, *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["savers failed"] == 0
    assert result["chunks removed"] > 0
    assert result["bytes reused"] > 0
    assert result["copies"] > 0
    outcomes.record(
        SECTION,
        "savers, copies from other stores and a gc in loops, the grace period a few seconds",
        "every load gives the right bytes",
    )
