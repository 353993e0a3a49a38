"""The commands that read a store: ls, show, tree, cat, get, lineage."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from metaflow_artifacts import Store

Run = Callable[..., Any]
CHUNK = 64 << 10


def test_ls(run: Run, keys: dict[str, str]) -> None:
    result = run("ls")
    assert result.code == 0
    rows = result.table()
    assert [row["key"] for row in rows] == [keys[name] for name in ("stranger", "second", "first", "base")]
    assert rows[3]["type"] == "model"
    assert rows[3]["label"] == "base"
    assert rows[3]["pathspec"] == "TrainFlow/1/train/2"
    assert rows[3]["size"] == "320 KiB"
    listed = run("ls", "--json").json
    assert [artifact["key"] for artifact in listed] == [row["key"] for row in rows]
    assert listed[3]["metadata"] == {"accuracy": 0.9}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--type", "model"], ["base", "stranger"]),
        (["--type", "checkpoint"], ["first", "second"]),
        (["--flow", "TrainFlow"], ["base", "first", "second"]),
        (["--flow", "Train*", "--type", "model"], ["base"]),
        (["--step", "train"], ["base", "first", "second"]),
        (["--step", "none"], []),
        (["--label", "[bs]*"], ["base", "stranger"]),
        (["--limit", "1"], ["stranger"]),
    ],
    ids=" ".join,
)
def test_ls_filters(run: Run, keys: dict[str, str], options: list[str], expected: list[str]) -> None:
    found = {artifact["key"] for artifact in run("ls", *options, "--json").json}
    assert found == {keys[name] for name in expected}


def test_ls_says_what_is_damaged_and_lists_the_rest(run: Run, store: Store, keys: dict[str, str]) -> None:
    store.storage.put(keys["base"], b"{")
    result = run("ls")
    assert result.code == 1
    assert len(result.table()) == 3
    assert keys["base"] in result.err


def test_show(run: Run, store: Store, keys: dict[str, str]) -> None:
    out = run("show", keys["first"]).out
    for line in (
        f"key: {keys['first']}",
        f"url: {store.root}/{keys['first']}",
        "label: TrainFlow_train",
        "metadata:",
        "  loss: 0.5",
        "parents:",
        f"  {keys['base']}",
        f"size: {5 * CHUNK + 19} (320 KiB)",
        "latest: true",
        "files: 3",
        "chunks: 6",
    ):
        assert line in out.splitlines()
    shown = run("show", "--json", keys["first"]).json
    assert shown["artifact"] == store.info(keys["first"])
    assert (shown["files"], shown["chunks"], shown["inline"], shown["latest"]) == (3, 6, False, True)


def test_a_url_names_its_store_too(run: Run, store: Store, keys: dict[str, str]) -> None:
    for command in ("show", "tree", "lineage"):
        assert run(command, f"{store.root}/{keys['base']}", root=None).code == 0
    other = run("check", f"{store.root}/{keys['base']}", f"/elsewhere/{keys['base']}", root=None)
    assert other.code == 2
    assert "different stores" in other.err


def test_tree(run: Run, keys: dict[str, str]) -> None:
    result = run("tree", keys["base"])
    assert [line.strip() for line in result.out.splitlines()] == [
        "9 B  config.json",
        "10 B  run.sh*",
        "sub/",
        "empty/",
        "320 KiB      weights.bin",
        "320 KiB  in 3 files",
    ]
    listed = run("tree", "--json", keys["base"]).json
    assert listed["dirs"] == ["sub/empty"]
    assert listed["files"][2] == {"path": "sub/weights.bin", "size": 5 * CHUNK, "mode": 0o644, "sha256": None}


def test_cat(store: Store, keys: dict[str, str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "metaflow_artifacts", "cat", "--root", store.root, keys["base"]]
    for name in ("config.json", "sub/weights.bin"):
        done = subprocess.run([*command, name], capture_output=True, check=True)
        assert done.stdout == store.read_file(keys["base"], name)
    done = subprocess.run([*command, "none"], capture_output=True)
    assert done.returncode == 1
    assert b"has no file 'none'" in done.stderr


def test_get(run: Run, keys: dict[str, str], tmp_path: Path) -> None:
    result = run("get", keys["base"], str(tmp_path / "out"))
    assert result.code == 0
    assert result.out == f"320 KiB in {tmp_path / 'out'}\n"
    assert (tmp_path / "out" / "sub" / "weights.bin").stat().st_size == 5 * CHUNK
    assert result.err == ""
    again = run("get", keys["base"], str(tmp_path / "out"))
    assert again.out == f"320 KiB in {tmp_path / 'out'}, 320 KiB of it had been there already\n"
    only = run("get", keys["base"], str(tmp_path / "only"), "--only", "*.json", "--json")
    assert only.json == {"path": str(tmp_path / "only"), "size": 9, "found": 0, "cached": 0}
    assert os.listdir(tmp_path / "only") == ["config.json"]
    both = run("get", keys["base"], str(tmp_path / "both"), "--only", "*.json", "--only", "sub/*", "--json")
    assert both.json["size"] == 5 * CHUNK + 9
    none = run("get", keys["base"], str(tmp_path / "none"), "--only", "*.json", "--only", "*.pt")
    assert (none.code, os.path.exists(tmp_path / "none")) == (1, False)
    assert "has no file that matches '*.pt'; it has 'config.json'" in none.err
    (tmp_path / "file").touch()
    target = run("get", keys["base"], str(tmp_path / "file"))
    assert target.code == 2
    assert "is not a directory" in target.err


def test_lineage(run: Run, keys: dict[str, str]) -> None:
    chain = [keys["second"], keys["first"], keys["base"]]
    assert [row["key"] for row in run("lineage", keys["second"]).table()] == chain
    assert [one["key"] for one in run("lineage", "--json", keys["second"]).json] == chain
