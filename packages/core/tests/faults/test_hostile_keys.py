"""Untrusted keys are refused; links and files in a load's target are refused or replaced, and never followed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from faultlib.forge import KEY, sign, wire
from faultlib.outcomes import RIGHT, Outcomes, content, failing
from faultlib.watched import Watched

from metaflow_artifacts import InvalidReference, Store, lineage
from metaflow_artifacts._cli import main
from metaflow_artifacts._transfer.chunks import chunk_key
from metaflow_artifacts._upkeep.check import check

KEYS = "untrusted keys"
TARGETS = "what is in the target already"
BODY = b"0123456789"


def put(store: Store, data: bytes) -> None:
    store.storage.put(KEY, data)
    store.storage.put(chunk_key(hashlib.sha256(BODY).hexdigest()), BODY)


HEX = "0" * 32
BAD_KEYS = {
    "empty": "",
    "a directory of keys": "mf.models/models/artifacts/",
    "`..`": "mf.models/models/artifacts/../../../etc/passwd",
    "`..` that leads back": f"mf.models/models/artifacts/../artifacts/m_{HEX}",
    "absolute": f"/mf.models/models/artifacts/m_{HEX}",
    "`//`": f"mf.models//models/artifacts/m_{HEX}",
    "an empty part": f"mf.models/models/artifacts//m_{HEX}",
    "a slash at the end": f"mf.models/models/artifacts/m_{HEX}/",
    "a backslash": f"mf.models/models/artifacts/..\\..\\m_{HEX}",
    "a NUL": f"mf.models/models/artifacts/m\0_{HEX}",
    "a newline": f"mf.models/models/artifacts/m_{HEX}\n",
    "control characters": f"mf.models/models/artifacts/\x1b[31m_{HEX}",
    "encoded control characters": f"mf.models/models/artifacts/%1B[31m_{HEX}",
    "an encoded slash in small letters": f"mf.models/models/artifacts/a%2fb_{HEX}",
    "encoded dots": f"mf.models/models/artifacts/%2E%2E_{HEX}",
    "letters that need no encoding": f"mf.models/models/artifacts/%61_{HEX}",
    "not ASCII": f"mf.models/models/artifacts/é_{HEX}",
    "digits of another script": f"mf.models/models/artifacts/m_{HEX[:-1]}\u0660",
    "no label": f"mf.models/models/artifacts/_{HEX}",
    "too few digits": f"mf.models/models/artifacts/m_{HEX[1:]}",
    "capital digits": f"mf.models/models/artifacts/m_{HEX[1:]}A",
    "a chunk": "mf.artifacts/chunks/sha256/00/" + "0" * 62,
    "a gc mark": "mf.artifacts/gc/" + HEX + ".0.open",
    "a tombstone": "mf.checkpoints/checkpoints/not_latest/F/s/" + "0" * 12 + "/" + "1" * 12 + "/00000000.0.n.0",
    "a checkpoint with a number like 007": "mf.checkpoints/checkpoints/artifacts/F/s/"
    + "0" * 12
    + "/"
    + "1" * 12
    + "/00000000.0.n.007",
    "a checkpoint with a part too many": "mf.checkpoints/checkpoints/artifacts/F/s/t/"
    + "0" * 12
    + "/"
    + "1" * 12
    + "/00000000.0.n.0",
    "the key of another program": "TrainFlow/1/train/2/0.data.json",
    "10 MB": "mf.models/models/artifacts/" + "a" * 10_000_000 + "_" + HEX,
    "a URL": "https://example.com/model",
}


@pytest.mark.parametrize(("case", "key"), BAD_KEYS.items(), ids=BAD_KEYS)
def test_invalid_keys_are_refused_before_any_request(
    local: Store, tmp_path: Path, outcomes: Outcomes, case: str, key: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Every call refuses them before it makes a request."""
    asked: list[str] = []
    store = Store(Watched(local.storage, lambda operation, key: asked.append(operation)))
    reference = {**wire({})["head"]["artifact"], "key": key}
    for call in (
        lambda: store.load(key, tmp_path / "out"),
        lambda: store.load(reference, tmp_path / "out"),
        lambda: store.info(key),
        lambda: store.manifest(key),
        lambda: store.read_file(key, "x"),
        lambda: store.delete(key),
        lambda: lineage(key, store),
        lambda: check(store, [key]),
    ):
        with pytest.raises(InvalidReference) as caught:
            call()
        message = str(caught.value)
        assert len(message) < 2000
        assert message.isprintable()
        assert "keys look like" in message
    assert asked == []
    assert not (tmp_path / "out").exists()
    if "\0" not in key and len(key) < 1000:
        os.makedirs(local.root, exist_ok=True)
        assert main(["show", "--root", local.root, key]) in (1, 2)
        assert capfd.readouterr().err[:-1].isprintable()
    outcomes.record(KEYS, case, "`InvalidReference`, with the rule and an example; no request is made")


@pytest.mark.parametrize(
    "reference", [None, 7, [], b"x", {}, {"key": 7}, {"key": KEY}, pytest.param(object(), id="an object")], ids=repr
)
def test_invalid_references_are_refused(local: Store, reference: Any, tmp_path: Path) -> None:
    with pytest.raises(InvalidReference):
        local.load(reference, tmp_path / "out")


def test_an_ancestor_that_is_not_a_key_is_left_out(local: Store, outcomes: Outcomes) -> None:
    made = wire({"a": BODY})
    made["head"]["artifact"]["parents"] = ["../../etc/passwd", KEY, "\x1b[31m"]
    put(local, sign(made))
    assert [artifact["key"] for artifact in lineage(KEY, local)] == [KEY]
    outcomes.record(
        KEYS, "an ancestor in `parents` that is not a key, or is the artifact itself", "left out of the lineage"
    )


Prepare = Callable[[Path, Path], Any]

IN_THE_WAY: dict[str, Prepare] = {
    "a link out of it where the artifact has a directory": lambda target, out: (target / "sub").symlink_to(out),
    "a link within it where the artifact has a directory": lambda target, out: (
        (target / "other").mkdir(),
        (target / "sub").symlink_to("other"),
    ),
    "a dangling link where the artifact has a directory": lambda target, out: (target / "sub").symlink_to(out / "none"),
    "a link to itself where the artifact has a directory": lambda target, out: (target / "sub").symlink_to("sub"),
    "a link deeper down": lambda target, out: (
        (target / "sub").mkdir(),
        (target / "sub" / "deep").symlink_to(out),
    ),
    "a file where the artifact has a directory": lambda target, out: (target / "sub").write_text("mine"),
    "a pipe where the artifact has a directory": lambda target, out: os.mkfifo(target / "sub"),
    "a directory where the artifact has a file": lambda target, out: (target / "top").mkdir(),
}
GIVEN_WAY: dict[str, Prepare] = {
    "a link out of it where the artifact has a file": lambda target, out: (target / "top").symlink_to(out / "file"),
    "a dangling link where the artifact has a file": lambda target, out: (target / "top").symlink_to(out / "none"),
    "a hard link where the artifact has a file": lambda target, out: os.link(out / "file", target / "top"),
    "a pipe where the artifact has a file": lambda target, out: os.mkfifo(target / "top"),
    "a read-only file": lambda target, out: ((target / "top").write_text("x"), (target / "top").chmod(0o444)),
    "nothing, and it is a link itself": lambda target, out: None,
}
FILES = {"sub/deep/a": BODY[:3], "sub/deep/file": BODY[3:6], "top": BODY[6:]}


@pytest.mark.parametrize(("case", "prepare"), [*IN_THE_WAY.items(), *GIVEN_WAY.items()])
def test_what_is_in_the_target_is_replaced_or_refused_and_never_followed(
    local: Store, sandbox: Path, outcomes: Outcomes, case: str, prepare: Prepare
) -> None:
    put(local, sign(wire(FILES)))
    target, outside = sandbox / "target", sandbox / "precious"
    target.mkdir()
    prepare(target, outside)
    before = _shown(sandbox)
    if case in IN_THE_WAY:
        outcomes.record(TARGETS, case, failing(lambda: local.load(KEY, target), local, KEY, str(target)))
        assert _shown(sandbox) == before
        return
    path = target
    if case == "nothing, and it is a link itself":
        path = sandbox / "link"
        path.symlink_to(target)
        before = _shown(sandbox)
    local.load(KEY, path)
    after = _shown(sandbox)
    expected: dict[bytes, Any] = {os.fsencode(name): data for name, data in FILES.items()}
    assert content(target) == {b"sub": None, b"sub/deep": None, **expected}
    assert {p: v for p, v in after.items() if not p.startswith(b"target/")} == {
        p: v for p, v in before.items() if not p.startswith(b"target/")
    }
    outcomes.record(TARGETS, case, f"{RIGHT}; what was there is replaced, and not followed")


def _shown(root: Path) -> dict[bytes, Any]:
    """As `content`, for what cannot be read too."""
    found: dict[bytes, Any] = {}
    base = os.fsencode(root)
    for directory, names, files in os.walk(base):
        for name in [*names, *files]:
            path = os.path.join(directory, name)
            kind = os.lstat(path)
            regular = os.path.isfile(path) and not os.path.islink(path)
            link = os.readlink(path) if os.path.islink(path) else None
            found[os.path.relpath(path, base)] = (
                kind.st_mode,
                link,
                Path(os.fsdecode(path)).read_bytes() if regular else None,
            )
    return found
