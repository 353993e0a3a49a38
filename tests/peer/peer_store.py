"""A store that metaflow-checkpoint 0.2.14 has written: recorded, or made now.

`python tests/peer/peer_store.py PYTHON` records one anew, where PYTHON is an interpreter that has that package.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Expected", "PeerStore", "digests", "make_store", "peer_store", "recorded_store", "shape", "told", "upload"]

HERE = Path(__file__).parent
RECORDED = HERE / "metaflow-checkpoint-0.2.14-store.tar.gz"
EXPECTED = "expected.json"
_VARYING = re.compile(r"(?<=_)[0-9a-f]{32}|\b[0-9a-f]{8}\b|\b[0-9]{10,}\b")
_KEPT = tuple(f".metaflow/mf.{name}/" for name in ("models", "checkpoints", "huggingface_hub"))
_NEVER = "/srv/flows"
"""Where the recorded store was: a path that leads nowhere when it is read."""


@dataclass(frozen=True)
class Expected:
    """An artifact of the store."""

    kind: str
    reference: dict[str, Any]
    """What metaflow-checkpoint has returned."""
    files: dict[str, str]
    """The SHA-256 of each file that a load gives, by its path."""

    @property
    def key(self) -> str:
        return str(self.reference["key"])


@dataclass(frozen=True)
class PeerStore:
    """A root with the artifacts, and Metaflow's metadata about the tasks that have saved them."""

    root: str
    saved: list[Expected]
    task: str
    """The pathspec of a task that has saved checkpoints in two attempts."""
    listed: list[str]
    """The keys that metaflow-checkpoint lists for it: those of its latest attempt."""


def digests(directory: str | os.PathLike[str]) -> dict[str, str]:
    """The SHA-256 of each file below a directory, by its path."""
    files = [path for path in Path(directory).rglob("*") if path.is_file()]
    return {path.relative_to(directory).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def shape(root: str | os.PathLike[str]) -> list[str]:
    """The keys of all objects in a local store, without what differs from run to run."""
    found = []
    for path in sorted(Path(root).glob("mf.*/**/*")):
        if path.is_file() and path.relative_to(root).parts[0] != "mf.cards":
            found.append(_VARYING.sub("#", path.relative_to(root).as_posix()))
    return sorted(found)


def make_store(python: str, directory: Path, environment: Mapping[str, str]) -> Any:
    """Run store_flow.py with an interpreter that has metaflow-checkpoint; what it has written down."""
    directory.mkdir(parents=True, exist_ok=True)
    expected = directory / EXPECTED
    done = subprocess.run(
        [python, HERE / "store_flow.py", "run"],
        cwd=directory,
        env={**environment, "EXPECTED": str(expected)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    return json.loads(expected.read_text())


def peer_store(root: str, told: Any) -> PeerStore:
    """The store at a root, of which store_flow.py has told."""
    return PeerStore(root, [Expected(**one) for one in told["saved"]], told["listed"]["task"], told["listed"]["keys"])


def recorded_store(directory: Path) -> PeerStore:
    """Unpack the recorded store: the root is `<directory>/.metaflow`."""
    with tarfile.open(RECORDED) as tar:
        tar.extractall(directory, filter="data")
    return peer_store(str(directory / ".metaflow"), json.loads((directory / EXPECTED).read_text()))


def told(store: PeerStore) -> str:
    """What load_flow.py is told of a store, as JSON."""
    saved = {one.kind: {"reference": one.reference, "files": one.files} for one in store.saved}
    return json.dumps({**saved, "task": store.task})


def upload(store: PeerStore, put: Callable[[str, bytes], None]) -> None:
    """Put the objects of a local store into another storage."""
    for path in Path(store.root).glob("mf.*/**/*"):
        if path.is_file():
            put(path.relative_to(store.root).as_posix(), path.read_bytes())


def _record(python: str) -> None:
    root = Path(_NEVER)
    root.mkdir(parents=True)
    environment = {
        "PATH": f"{Path(python).parent}:{os.environ['PATH']}",
        "METAFLOW_USER": "tester",
        "METAFLOW_DATASTORE_SYSROOT_LOCAL": str(root),
    }
    with tempfile.TemporaryDirectory() as home:
        told = make_store(python, Path(home, "work"), {**environment, "HOME": home})
    members = {EXPECTED: (json.dumps(told, indent=1) + "\n").encode()}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        # Of Metaflow's own, what its client needs to know a task.
        if path.is_file() and (name.startswith(_KEPT) or "/_meta/" in name):
            members[name] = path.read_bytes()
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    RECORDED.write_bytes(gzip.compress(packed.getvalue(), mtime=0))


if __name__ == "__main__":
    _record(sys.argv[1])
