"""What the tests of the command line share: a store with artifacts, and the commands."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from metaflow_artifacts import Store
from metaflow_artifacts._cli import main
from metaflow_artifacts._format.keys import CheckpointPlace
from metaflow_artifacts._storage import open_storage
from metaflow_artifacts._store.checkpoint_writer import CheckpointWriter

CHUNK = 64 << 10


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(open_storage(tmp_path / "store"), chunk_size=CHUNK)


@pytest.fixture
def keys(store: Store, tmp_path: Path) -> dict[str, str]:
    """A model, a checkpoint made from it, a model with names and texts of a stranger; by name."""
    tree = tmp_path / "tree"
    (tree / "sub" / "empty").mkdir(parents=True)
    (tree / "config.json").write_text('{"a": 1}\n')
    (tree / "run.sh").write_text("#!/bin/sh\n")
    (tree / "run.sh").chmod(0o755)
    (tree / "sub" / "weights.bin").write_bytes(bytes(range(256)) * (5 * CHUNK // 256))
    base = store.save_model(tree, "base", {"accuracy": 0.9}, pathspec="TrainFlow/1/train/2")
    (tree / "config.json").write_text('{"a": 2}\n')
    place = CheckpointPlace("TrainFlow", "train", "0" * 12, "1" * 12)
    series = CheckpointWriter(store, place, "0" * 8, 0, "TrainFlow/1/train/2")
    first = series.save(tree, metadata={"loss": 0.5}, label="TrainFlow_train", parents=[base["key"]])
    second = series.save(tree, metadata={"loss": 0.7}, label="TrainFlow_train", parents=[first["key"]])
    hostile = tmp_path / "hostile"
    hostile.mkdir()
    (hostile / "\x1b[31mred\rover\N{RIGHT-TO-LEFT OVERRIDE}").write_text("plain\n\x1b]0;title\x07\tend\n")
    stranger = store.save_model(hostile, "stranger", {"\x1b[2J": "\x1b[H\x9b1m"}, pathspec="Other\x1b[0mFlow/1/s/2")
    return {
        "base": base["key"],
        "first": first["key"],
        "second": second["key"],
        "stranger": stranger["key"],
    }


class Result:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code = code
        self.out = out
        self.err = err

    @property
    def json(self) -> Any:
        assert self.out.isascii()
        return json.loads(self.out)

    def table(self) -> list[dict[str, str]]:
        """The rows of the table that the output begins with, by the titles of the columns."""
        titles, *rows = self.out.split("\n\n")[0].splitlines()
        columns = [re.split(r"  +", line.strip()) for line in rows]
        return [dict(zip(re.split(r"  +", titles.strip()), row, strict=True)) for row in columns]


@pytest.fixture
def run(store: Store, capfd: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    def call(*arguments: str, root: str | None = store.root) -> Result:
        options = [] if root is None else ["--root", root]
        try:
            code = main([arguments[0], *options, *arguments[1:]])
        except SystemExit as error:
            code = int(error.code or 0)
        out, err = capfd.readouterr()
        return Result(code, out, err)

    return call
