"""The commands that keep a store whole and small: du, check, gc, delete, retain."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from metaflow_artifacts import Store
from metaflow_artifacts._transfer.chunks import chunk_key

Run = Callable[..., Any]
CHUNK = 64 << 10
MISSING = "mf.models/models/artifacts/m_" + "0" * 32


def test_du(run: Run, store: Store, keys: dict[str, str]) -> None:
    logical = 3 * (5 * CHUNK + 19) + 21
    # Two configurations, each in a pack with run.sh, and five chunks of weights that are all the same.
    stored = CHUNK + 2 * 19 + 21
    shown = run("du", "--json").json
    assert (shown["artifacts"], shown["logical"], shown["stored"], shown["unneeded"]) == (4, logical, stored, 0)
    assert run("du", "--flow", "", "--json").json["unneeded"] is None
    assert shown["groups"][0] == {
        "type": "checkpoint",
        "flow": "TrainFlow",
        "artifacts": 2,
        "logical": 2 * (5 * CHUNK + 19),
        "stored": CHUNK + 19,
    }
    store.delete(keys["base"])
    assert run("du", "--json").json["unneeded"] == 19
    out = run("du").out
    assert "640.1 KiB in 3 artifacts, stored in 64.1 KiB, of which no artifact needs 19 B" in out


def test_check(run: Run, store: Store, keys: dict[str, str]) -> None:
    for options in ((), ("--read",), (keys["base"],)):
        result = run("check", *options)
        assert result.code == 0
        assert result.out.rstrip().endswith(": whole")
    assert "4 artifacts, 10 files" in run("check").out
    chunk = chunk_key(store.manifest(keys["base"]).chunks[0].sha256)
    store.storage.put(chunk, bytes(19))
    assert run("check").code == 0
    found = run("check", "--read")
    assert found.code == 1
    assert found.out.startswith(f"content: {keys['base']}: ")
    assert chunk in found.out
    assert found.out.rstrip().endswith("1 problem")
    report = run("check", "--read", "--json")
    assert report.code == 1
    assert report.json["ok"] is False
    assert [problem["chunk"] for problem in report.json["problems"]] == [chunk]
    assert run("check", MISSING).code == 1


def test_gc(run: Run, store: Store, keys: dict[str, str]) -> None:
    store.delete(keys["base"])
    before = run("du", "--json").json
    dry = run("gc", "--exclusive", "--grace", "0s")
    assert dry.code == 0
    assert "would remove 1 chunk of 19 B; --execute does it" in dry.out
    assert run("du", "--json").json == before
    assert run("gc", "--json").json["removed"] == 0
    stats = run("gc", "--exclusive", "--grace", "0s", "--execute", "--json").json
    assert (stats["dry_run"], stats["removed"], stats["freed"]) == (False, 1, 19)
    assert "would remove nothing\n" in run("gc").out
    assert "removed nothing" in run("gc", "--execute").out
    short = run("gc", "--grace", "1h")
    assert short.code == 2
    assert "--exclusive" in short.err
    assert run("check", "--read").code == 0


def test_delete(run: Run, store: Store, keys: dict[str, str]) -> None:
    result = run("delete", keys["base"], MISSING, f"{store.root}/{keys['first']}")
    assert result.code == 1
    assert result.out == f"deleted {keys['base']}\ndeleted {keys['first']}\n"
    assert MISSING in result.err
    assert run("delete", "--json", keys["second"]).json == {"deleted": [keys["second"]], "missing": []}
    assert {artifact["key"] for artifact in run("ls", "--json").json} == {keys["stranger"]}


def test_retain(run: Run, keys: dict[str, str]) -> None:
    options = ("--best", "1", "--metric", "loss", "--lowest", "--flow", "TrainFlow", "--step", "train")
    rule: tuple[str, ...] = ("retain", *options)
    resume = {row["key"]: row["decision"] for row in run(*rule).table()}
    assert resume == {keys["second"]: "keep: resume", keys["first"]: "keep: best"}
    rule = (*rule, "--last", "0")
    dry = run(*rule)
    assert dry.code == 0
    assert {row["key"]: row["decision"] for row in dry.table()} == {
        keys["second"]: "delete",
        keys["first"]: "keep: best",
    }
    assert "would delete 1 checkpoint of 320 KiB; --execute does it" in dry.out
    assert len(run("ls", "--json").json) == 4
    (group,) = run(*rule, "--execute", "--json").json["groups"]
    assert group["delete"] == [keys["second"]]
    assert group["keep"] == [{"key": keys["first"], "rules": ["best"]}]
    assert len(run("ls", "--json").json) == 3
    assert "no checkpoint matches --flow and --step" in run("retain", "--last", "1", "--flow", "Trian*").out
    assert run("retain", "--last", "1", "--flow", "Train*", "--json").json["groups"]
    assert "no checkpoint to delete" in run("retain", "--younger", "7d", "--execute").out
    assert run("retain", "--last", "0", "--hub", "--json").json["groups"] == []
