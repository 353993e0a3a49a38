"""Manifests of strangers: nothing is written outside of the target, and memory stays bounded."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from faultlib.forge import KEY, Wire, chunk, resign, sign, wire
from faultlib.outcomes import RIGHT, Outcomes, content, loading

from metaflow_artifacts import ArtifactError, Store
from metaflow_artifacts.check import check
from metaflow_artifacts.chunks import chunk_key
from metaflow_artifacts.manifest import MAX_BYTES

MANIFESTS = "manifests of strangers"
BODY = b"0123456789"


def put(store: Store, data: bytes, *chunks: bytes) -> None:
    store.storage.put(KEY, data)
    for one in chunks:
        store.storage.put(chunk_key(hashlib.sha256(one).hexdigest()), one)


def load(store: Store, sandbox: Path, expected: dict[bytes, Any]) -> str:
    before = content(sandbox)
    outcome = loading(store, KEY, sandbox / "target", expected)
    after = {path: value for path, value in content(sandbox).items() if not path.startswith(b"target")}
    assert after == before
    return outcome


PATHS = {
    "an absolute path": "/etc/passwd",
    "`..`": "../precious/file",
    "`..` in the middle": "a/../../precious/file",
    "`..` at the end": "a/..",
    "`.`": "./a",
    "an empty part": "a//b",
    "a slash at the end": "a/",
    "an empty path": "",
    "a NUL": "a\0b",
    "a lone surrogate": "\ud800",
    "UTF-8 spelt as surrogates": "\udcc3\udca9",
    "5000 characters": "a/" * 2499 + "aa",
    "a part of 300 characters": "a" * 300,
}


@pytest.mark.parametrize(("case", "path"), PATHS.items(), ids=PATHS)
@pytest.mark.parametrize("kind", ["files", "dirs"])
def test_paths(local: Store, sandbox: Path, outcomes: Outcomes, case: str, path: str, kind: str) -> None:
    made = wire({path: BODY}) if kind == "files" else wire({"zz": BODY}, [path])
    put(local, sign(made), BODY)
    outcome = load(local, sandbox, {})
    assert outcome != RIGHT
    if case != "a part of 300 characters":
        outcome = outcome.replace(repr(path), "PATH").replace("dirs[0]", "files[0]")
        outcomes.record(MANIFESTS, f"path: {case}", outcome)


def test_a_part_that_is_too_long_for_the_file_system(local: Store, sandbox: Path, outcomes: Outcomes) -> None:
    put(local, sign(wire({"a" * 300: BODY})), BODY)
    outcomes.record(MANIFESTS, "path: a part of 300 characters", load(local, sandbox, {}).replace("a" * 300, "…"))


NAMES = {
    "names of devices": ["CON", "NUL", "aux.txt", "com1", "dev/null", "dev/zero"],
    "a backslash, a colon, quotes": ["C:\\x", "a:b", "a\"b'c", "a|b"],
    "names that differ by case": ["A", "B/x", "a", "b/x"],
    "names that differ by Unicode form": ["e\u0301", "\u00e9"],
    "names that differ by case and form": ["SS", "ss", "\u00df", "\u1e9e"],
    "control characters": ["\x01", "a\nb", "\x1b[31m", "\x7f", "\u202e"],
    "bytes that are not UTF-8": ["\udcff", "a/\udc80"],
    "spaces and dots": [" ", "...", "a ", "a."],
    "names of our own files": [".metaflow_artifacts_x", "mf.models"],
}


@pytest.mark.parametrize(("case", "names"), NAMES.items(), ids=NAMES)
def test_names_that_this_file_system_takes(
    local: Store, sandbox: Path, outcomes: Outcomes, case: str, names: list[str]
) -> None:
    files = {name: name.encode(errors="surrogateescape") + BODY for name in sorted(names, key=os.fsencode)}
    put(local, sign(wire(files)), b"".join(files.values()))
    expected: dict[bytes, Any] = {os.fsencode(name): data for name, data in files.items()}
    expected |= {os.fsencode(os.path.dirname(name)): None for name in names if "/" in name}
    outcome = load(local, sandbox, expected)
    assert outcome == RIGHT
    outcomes.record(MANIFESTS, f"path: {case}", f"{outcome}, on a file system that takes them")


@pytest.mark.parametrize(
    "names", [["A", "a"], ["\u00e9", "e\u0301"], ["SS", "\u00df"]], ids=["case", "form", "case and form"]
)
def test_names_that_a_file_system_takes_for_one(
    local: Store, sandbox: Path, outcomes: Outcomes, monkeypatch: pytest.MonkeyPatch, names: list[str]
) -> None:
    """No such file system is at hand: `lexists` answers as it would."""
    from metaflow_artifacts.target import _folded

    real = os.path.lexists

    def lexists(path: str) -> bool:
        directory, name = os.path.split(path)
        if not os.path.basename(directory).startswith(".metaflow_artifacts_"):
            return real(path)
        return _folded(name) in map(_folded, os.listdir(directory))

    monkeypatch.setattr(os.path, "lexists", lexists)
    files = {name: os.fsencode(name) + BODY for name in sorted(names, key=os.fsencode)}
    put(local, sign(wire(files)), b"".join(files.values()))
    outcome = load(local, sandbox, {})
    for name in names:
        assert repr(name) in outcome
        outcome = outcome.replace(repr(name), "NAME")
    outcomes.record(MANIFESTS, "path: two names, on a file system that takes them for one", outcome)


def changed(change: Callable[[Wire], Any], files: dict[str, bytes] | None = None) -> bytes:
    made = wire(files or {"a": BODY[:4], "b": BODY[4:]})
    change(made)
    return sign(made)


def _set(made: Wire, *where: Any, to: Any) -> None:
    *path, last = where
    target: Any = made
    for step in path:
        target = target[step]
    target[last] = to


BROKEN: dict[str, Callable[[Wire], Any]] = {
    "a file that is also a directory": lambda m: _set(m, "files", 1, 0, to="a/b"),
    "a file that is also an empty directory": lambda m: _set(m, "dirs", to=["a"]),
    "an empty directory that is not empty": lambda m: (_set(m, "files", 1, 0, to="b/c"), _set(m, "dirs", to=["b"])),
    "a file twice": lambda m: _set(m, "files", 1, 0, to="a"),
    "a directory twice": lambda m: _set(m, "dirs", to=["x", "x"]),
    "files out of order": lambda m: _set(m, "files", 0, 0, to="c"),
    "a negative size": lambda m: _set(m, "files", 0, 1, to=-4),
    "a negative offset": lambda m: _set(m, "files", 0, 3, to=-4),
    "an offset that leaves a gap": lambda m: _set(m, "files", 1, 3, to=5),
    "an offset into another file": lambda m: _set(m, "files", 1, 3, to=0),
    "a size of 2^63": lambda m: _set(m, "files", 1, 1, to=1 << 63),
    "an offset of 2^64": lambda m: _set(m, "files", 1, 3, to=1 << 64),
    "a size of 5000 digits": lambda m: _set(m, "files", 1, 1, to=10**4000),
    "a fractional size": lambda m: _set(m, "files", 1, 1, to=6.0),
    "a size that is true": lambda m: _set(m, "files", 1, 1, to=True),
    "a size that is text": lambda m: _set(m, "files", 1, 1, to="6"),
    "sizes of files that do not add up": lambda m: _set(m, "files", 1, 1, to=7),
    "an artifact's size that lies": lambda m: _set(m, "head", "artifact", "size", to=11),
    "a chunk's size that lies": lambda m: _set(m, "chunks", 0, 1, to=11),
    "a chunk of no bytes": lambda m: m["chunks"].append([hashlib.sha256().hexdigest(), 0]),
    "a chunk of negative size": lambda m: m["chunks"].append([hashlib.sha256(b"x").hexdigest(), -1]),
    "a chunk's name with a path": lambda m: _set(m, "chunks", 0, 0, to="../" * 21 + "x"),
    "a chunk's name in capitals": lambda m: _set(m, "chunks", 0, 0, to=m["chunks"][0][0].upper()),
    "a mode with more bits": lambda m: _set(m, "files", 0, 2, to=0o100644),
    "a negative mode": lambda m: _set(m, "files", 0, 2, to=-1),
    "a file's hash that is none": lambda m: m["files"][0].append("x"),
    "a row that is too long": lambda m: m["files"][0].extend(["0" * 64, 1]),
    "a row that is too short": lambda m: m["files"][0].pop(),
    "a row that is no list": lambda m: _set(m, "files", 0, to={"path": "a"}),
    "files that are no list": lambda m: _set(m, "files", to={"a": 1}),
    "no files member": lambda m: m.pop("files"),
    "no chunks member": lambda m: m.pop("chunks"),
    "a path that is a number": lambda m: _set(m, "files", 0, 0, to=7),
    "a directory that is a number": lambda m: _set(m, "dirs", to=[7]),
    "a chunk size of nothing": lambda m: _set(m, "chunk_size", to=0),
    "inline content that is no base64": lambda m: _set(m, "inline", to="***"),
    "inline content of another size": lambda m: _set(m, "inline", to="QQ=="),
    "inline content that is a number": lambda m: _set(m, "inline", to=5),
    "inline content in two chunks": lambda m: (
        _set(m, "inline", to="MDEyMzQ1Njc4OQ=="),
        _set(m, "chunks", to=[chunk(BODY[:4]), chunk(BODY[4:])]),
    ),
    "`latest` that is text": lambda m: _set(m, "head", "latest", to="yes"),
    "no artifact": lambda m: m["head"].pop("artifact"),
    "an artifact without a key": lambda m: m["head"]["artifact"].pop("key"),
    "an artifact of another type": lambda m: _set(m, "head", "artifact", "type", to="virus"),
    "metadata in 900 levels": lambda m: _set(m, "head", "artifact", "metadata", to=_nested(900)),
}


def _nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = {"x": value}
    return value


@pytest.mark.parametrize(("case", "change"), BROKEN.items(), ids=BROKEN)
def test_manifests_that_break_the_format(
    local: Store, sandbox: Path, outcomes: Outcomes, case: str, change: Callable[[Wire], Any]
) -> None:
    put(local, changed(change), BODY)
    outcome = load(local, sandbox, {})
    assert outcome.startswith("`CorruptArtifact`: KEY: the manifest ")
    assert len(outcome) < 400
    assert [problem.key for problem in check(local).problems] == [KEY]
    outcomes.record(
        MANIFESTS,
        case,
        "`CorruptArtifact`: KEY: the manifest breaks the format (where and how); save the "
        "artifact again, or load another one",
    )


RAW: dict[str, bytes] = {
    "NaN in the metadata": sign(wire({"a": BODY})).replace(b'"metadata": {}', b'"metadata": {"x": NaN}'),
    "a number beyond all bounds": sign(wire({"a": BODY})).replace(b'"metadata": {}', b'"metadata": {"x": 1e999}'),
    "a member that occurs twice": sign(wire({"a": BODY})).replace(b'"dirs": []', b'"dirs": [], "dirs": ["x"]'),
    "a hundred thousand brackets": sign(wire({"a": BODY})).replace(b'"dirs": []', b'"dirs": ' + b"[" * 100000),
    "version 0": sign(wire({"a": BODY}), 0),
    "version -1": sign(wire({"a": BODY}), -1),
    "version 1.0": sign(wire({"a": BODY}), 1.0),
    'version "1"': sign(wire({"a": BODY}), "1"),
    "a head that does not come first": sign(wire({"a": BODY})).replace(b'"version":1,', b'"version":1,"x":1,'),
    "UTF-16": sign(wire({"a": BODY})).decode().encode("utf-16"),
    "characters that are not ASCII": sign(wire({"a": BODY})).replace(b'"dirs": []', '"dirs": ["é"]'.encode()),
}


@pytest.mark.parametrize(("case", "data"), RAW.items(), ids=RAW)
def test_json_that_breaks_the_format(local: Store, sandbox: Path, outcomes: Outcomes, case: str, data: bytes) -> None:
    put(local, resign(data[:-78]), BODY)
    outcome = load(local, sandbox, {})
    assert outcome.startswith(("`CorruptArtifact`: KEY: the manifest ", "`UnsupportedFormat`: KEY: what is stored"))
    outcomes.record(MANIFESTS, case, "`CorruptArtifact` or `UnsupportedFormat`, as for a damaged manifest")


LIES: dict[str, Callable[[Wire], Any]] = {
    "a chunk that is said to be larger than it is": lambda m: (
        _set(m, "chunks", 0, 1, to=12),
        _set(m, "files", 1, 1, to=8),
        _set(m, "head", "artifact", "size", to=12),
    ),
    "a chunk that is said to be smaller than it is": lambda m: (
        _set(m, "chunks", 0, 1, to=9),
        _set(m, "files", 1, 1, to=5),
        _set(m, "head", "artifact", "size", to=9),
    ),
    "a file of 2^60 bytes": lambda m: (
        _set(m, "chunks", 0, 1, to=1 << 60),
        _set(m, "files", 1, 1, to=(1 << 60) - 4),
        _set(m, "head", "artifact", "size", to=1 << 60),
    ),
    "a chunk at 2^60 of a file": lambda m: (
        _set(m, "chunks", to=[["0" * 64, 1 << 60], *m["chunks"]]),
        _set(m, "files", to=[["a", (1 << 60) + 10, 0o644, 0]]),
        _set(m, "head", "artifact", "size", to=(1 << 60) + 10),
    ),
    "a chunk that does not exist": lambda m: _set(m, "chunks", 0, 0, to="0" * 64),
}


@pytest.mark.parametrize(("case", "change"), LIES.items(), ids=LIES)
def test_sizes_that_lie(
    local: Store, sandbox: Path, outcomes: Outcomes, case: str, change: Callable[[Wire], Any]
) -> None:
    put(local, changed(change), BODY)
    outcome = load(local, sandbox, {})
    assert outcome.startswith(("`CorruptArtifact`: cannot load KEY", "`TargetError`: cannot load KEY"))
    outcomes.record(MANIFESTS, case, "`CorruptArtifact` that names the artifact and the chunk, or `TargetError`")
    assert not check(local, read=True).ok
    with pytest.raises(ArtifactError):
        local.read_file(KEY, "b" if case != "a chunk at 2^60 of a file" else "a")


def test_permissions_that_are_not_taken_over(local: Store, sandbox: Path, outcomes: Outcomes) -> None:
    made = wire({"a": BODY})
    made["files"][0][2] = 0o6777
    put(local, sign(made), BODY)
    assert load(local, sandbox, {b"a": BODY}) == RIGHT
    umask = os.umask(0)
    os.umask(umask)
    assert (sandbox / "target" / "a").stat().st_mode & 0o7777 == 0o777 & ~umask
    outcomes.record(
        MANIFESTS, "set-user-id and world-writable bits", f"{RIGHT}; of the mode, only execute bits are used"
    )


def test_a_chunk_that_is_named_again_and_again(local: Store, sandbox: Path, outcomes: Outcomes) -> None:
    """One small chunk as the content of much: the target's disk is all that it takes."""
    made = wire({"a": BODY})
    made["files"][0][1] = made["head"]["artifact"]["size"] = len(BODY) * 2000
    made["chunks"] *= 2000
    put(local, sign(made), BODY)
    outcomes.record(MANIFESTS, "one chunk 2000 times", load(local, sandbox, {b"a": BODY * 2000}))


MEASURE = """
import resource, sys
from metaflow_artifacts import ArtifactError, open_store
from metaflow_artifacts.check import check
store = open_store(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    print(len(store.manifest(sys.argv[2]).files))
except ArtifactError as error:
    print(type(error).__name__, error)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def measured(store: Store) -> tuple[str, int]:
    """What reading the manifest comes to, and the memory that it takes, in MiB."""
    done = subprocess.run([sys.executable, "-c", MEASURE, store.root, KEY], capture_output=True, text=True, check=True)
    said, memory = done.stdout.splitlines()
    return said, int(memory) >> 10


def test_a_million_files(local: Store, outcomes: Outcomes) -> None:
    made = wire({})
    made["files"] = [[f"directory/{number:07}", 0, 0o644, 0] for number in range(1_000_000)]
    put(local, sign(made))
    said, memory = measured(local)
    assert said == "1000000"
    assert memory < 1024
    outcomes.record(MANIFESTS, "a million files", "read, in less than 1 GiB")


BOMBS: dict[str, Callable[[], bytes]] = {
    "of 300 MiB": lambda: b" " * (300 << 20),
    "just as large as is read": lambda: b'{"format":"metaflow-artifacts",' + b" " * (MAX_BYTES - 40),
    "with 80 million empty lists": lambda: sign(wire({}))[:-78] + b',"x":[' + b"[]," * 80_000_000 + b"0]",
    "with 5 million texts": lambda: sign(wire({}))[:-78] + b',"x":[' + b'"ab",' * 5_500_000 + b"0]",
    "with 3 million chunks": lambda: sign(wire({"a": BODY})).replace(
        b'"chunks": [', b'"chunks": [' + b'["%b",1],' % (b"0" * 64) * 3_000_000
    )[:-78],
    "with 16 million numbers": lambda: sign(wire({}))[:-78] + b',"x":[' + b"999," * 16_000_000 + b"0]",
}


@pytest.mark.parametrize(("case", "make"), BOMBS.items(), ids=BOMBS)
def test_manifests_that_would_fill_memory(
    local: Store, outcomes: Outcomes, case: str, make: Callable[[], bytes]
) -> None:
    put(local, resign(make()))
    said, memory = measured(local)
    assert said.startswith(("CorruptArtifact " + KEY, "UnsupportedFormat " + KEY)) or said == "0"
    assert memory < 1536
    outcomes.record(MANIFESTS, f"a manifest {case}", "refused or read, in less than 1.5 GiB")
