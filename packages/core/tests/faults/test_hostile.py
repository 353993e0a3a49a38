"""Untrusted manifests: nothing is written outside of the target, and memory stays bounded."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from faultlib.forge import KEY, Wire, assemble, parts, resign, sign, wire
from faultlib.outcomes import RIGHT, Outcomes, content, loading

from metaflow_artifacts import ArtifactError, Store
from metaflow_artifacts._format.manifest import MAX_BYTES
from metaflow_artifacts._transfer.chunks import chunk_key
from metaflow_artifacts._upkeep.check import check
from metaflow_artifacts._upkeep.gc import gc

MANIFESTS = "untrusted manifests"
BODY = b"0123456789"
BREAKS = (
    "`CorruptArtifact`: KEY: the manifest breaks the format (where and how); "
    "save the artifact again, or load another one"
)


def put(store: Store, data: bytes, *chunks: bytes) -> None:
    store.storage.put(KEY, data)
    for one in chunks:
        store.storage.put(chunk_key(sha256(one).hexdigest()), one)


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
    "UTF-8 as surrogates": "\udcc3\udca9",
    "5000 characters": "a/" * 2499 + "aa",
    "a part of 300 characters": "a" * 300,
}


@pytest.mark.parametrize(("case", "path"), PATHS.items(), ids=PATHS)
@pytest.mark.parametrize("kind", ["files", "dirs"])
def test_paths_that_leave_the_target_are_refused(
    local: Store, sandbox: Path, outcomes: Outcomes, case: str, path: str, kind: str
) -> None:
    made = wire({path: BODY}) if kind == "files" else wire({"zz": BODY}, [path])
    put(local, sign(made), BODY)
    outcome = load(local, sandbox, {})
    assert outcome != RIGHT
    if case != "a part of 300 characters":
        outcome = outcome.replace(repr(path), "PATH").replace("dirs[0]", "files[0]")
        outcomes.record(MANIFESTS, f"path: {case}", outcome)


def test_a_name_too_long_for_the_file_system_is_an_error(local: Store, sandbox: Path, outcomes: Outcomes) -> None:
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
    "names that this project uses": [".metaflow_artifacts_x", "mf.models"],
}


@pytest.mark.parametrize(("case", "names"), NAMES.items(), ids=NAMES)
def test_odd_names_are_loaded_unchanged(
    local: Store, sandbox: Path, outcomes: Outcomes, case: str, names: list[str]
) -> None:
    files = {name: name.encode(errors="surrogateescape") + BODY for name in sorted(names, key=os.fsencode)}
    put(local, sign(wire(files)), b"".join(files.values()))
    expected: dict[bytes, Any] = {os.fsencode(name): data for name, data in files.items()}
    expected |= {os.fsencode(os.path.dirname(name)): None for name in names if "/" in name}
    outcome = load(local, sandbox, expected)
    assert outcome == RIGHT
    outcomes.record(MANIFESTS, f"path: {case}", f"{outcome}, on a file system that has such names")


@pytest.mark.parametrize(
    "names", [["A", "a"], ["\u00e9", "e\u0301"], ["SS", "\u00df"]], ids=["case", "form", "case and form"]
)
def test_names_that_are_the_same_for_the_file_system_are_an_error(
    local: Store, sandbox: Path, outcomes: Outcomes, monkeypatch: pytest.MonkeyPatch, names: list[str]
) -> None:
    """There is no such file system here: `lexists` answers as it would there."""
    from metaflow_artifacts._transfer.target import _folded

    real = os.path.lexists

    def lexists(path: str) -> bool:
        directory, name = os.path.split(path)
        if "/.metaflow_artifacts_" not in directory:
            return real(path)
        return _folded(name) in map(_folded, os.listdir(directory))

    monkeypatch.setattr(os.path, "lexists", lexists)
    files = {name: os.fsencode(name) + BODY for name in sorted(names, key=os.fsencode)}
    put(local, sign(wire(files)), b"".join(files.values()))
    outcome = load(local, sandbox, {})
    for name in names:
        assert repr(name) in outcome
        outcome = outcome.replace(repr(name), "NAME")
    outcomes.record(MANIFESTS, "path: two names that are the same for the file system", outcome)


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
    "a wrong size of the artifact": lambda m: _set(m, "head", "artifact", "size", to=11),
    "a wrong size of a chunk": lambda m: _set(m, "chunks", 0, 1, to=11),
    "a chunk of no bytes": lambda m: m["chunks"].append([sha256().hexdigest(), 0]),
    "a chunk of negative size": lambda m: m["chunks"].append([sha256(b"x").hexdigest(), -1]),
    "a chunk's name with a path": lambda m: _set(m, "chunks", 0, 0, to="../" * 21 + "x"),
    "a chunk's name in capitals": lambda m: _set(m, "chunks", 0, 0, to=m["chunks"][0][0].upper()),
    "a mode with more bits": lambda m: _set(m, "files", 0, 2, to=0o100644),
    "a negative mode": lambda m: _set(m, "files", 0, 2, to=-1),
    "a file's digest that is not one": lambda m: m["files"][0].append("x"),
    "a row that is too long": lambda m: m["files"][0].extend(["0" * 64, 1]),
    "a row that is too short": lambda m: m["files"][0].pop(),
    "a row that is not a list": lambda m: _set(m, "files", 0, to={"path": "a"}),
    "files that are not a list": lambda m: _set(m, "files", to={"a": 1}),
    "no files member": lambda m: m.pop("files"),
    "chunks that are not a list": lambda m: _set(m, "chunks", to={"a": 1}),
    "a path that is a number": lambda m: _set(m, "files", 0, 0, to=7),
    "a directory that is a number": lambda m: _set(m, "dirs", to=[7]),
    "a chunk size of nothing": lambda m: _set(m, "chunk_size", to=0),
    "inline content that is not base64": lambda m: _set(m, "inline", to="***"),
    "inline content of another size": lambda m: _set(m, "inline", to="QQ=="),
    "inline content that is a number": lambda m: _set(m, "inline", to=5),
    "inline content and a chunk": lambda m: _set(m, "inline", to="MDEyMzQ1Njc4OQ=="),
    "inline content that is cut": lambda m: (_set(m, "inline", to="MDEyMzQ1Njc4"), _set(m, "chunks", to=[])),
    "content without chunks": lambda m: _set(m, "chunks", to=[]),
    "`floats` that is text": lambda m: _set(m, "head", "floats", to="x"),
    "`floats` with a path that is text": lambda m: _floats(m, "x"),
    "`floats` with an empty path": lambda m: _floats(m, []),
    "`floats` with a path that leads nowhere": lambda m: _floats(m, ["y"]),
    "`floats` with a path through a value": lambda m: _floats(m, ["x", "y"]),
    "`floats` with a path to a number": lambda m: _floats(m, ["l", 0]),
    "`floats` with a path to a list": lambda m: _floats(m, ["l"]),
    "`floats` with a path to other text": lambda m: _floats(m, ["t"]),
    "`floats` with a negative position": lambda m: _floats(m, ["l", -1]),
    "`floats` with a position that is true": lambda m: _floats(m, ["l", True]),
    "`floats` with a position beyond all bounds": lambda m: _floats(m, ["l", 10**30]),
    "`floats` with a list as a step": lambda m: _floats(m, [["l"], 0]),
    "`floats` with a path twice": lambda m: _floats(m, ["x"], ["x"]),
    "`floats` with 100,000 steps": lambda m: _floats(m, ["l"] * 100_000),
    "`latest` that is text": lambda m: _set(m, "head", "latest", to="yes"),
    "no artifact": lambda m: m["head"].pop("artifact"),
    "an artifact without a key": lambda m: m["head"]["artifact"].pop("key"),
    "an artifact of another type": lambda m: _set(m, "head", "artifact", "type", to="virus"),
    "metadata in 900 levels": lambda m: _set(m, "head", "artifact", "metadata", to=_nested(900)),
}


def _floats(made: Wire, *paths: Any) -> None:
    made["head"]["artifact"]["metadata"] = {"x": "NaN", "l": [1, "Infinity"], "t": "nan"}
    made["head"]["floats"] = list(paths)


def _nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = {"x": value}
    return value


@pytest.mark.parametrize(("case", "change"), BROKEN.items(), ids=BROKEN)
def test_manifests_that_break_the_format_are_refused(
    local: Store, sandbox: Path, outcomes: Outcomes, case: str, change: Callable[[Wire], Any]
) -> None:
    put(local, changed(change), BODY)
    outcome = load(local, sandbox, {})
    assert outcome.startswith("`CorruptArtifact`: KEY: the manifest ")
    assert len(outcome) < 400
    assert [problem.key for problem in check(local).problems] == [KEY]
    outcomes.record(MANIFESTS, case, BREAKS)


HEAD, ROWS, REST = parts(wire({"a": BODY}))
WHOLE = len(HEAD) + len(b',"chunks":') + len(ROWS)

FRONT: dict[str, bytes] = {
    "a head whose length is given too small": assemble(HEAD, ROWS, REST, head_bytes=len(HEAD) - 1),
    "a head whose length is given too large": assemble(HEAD, ROWS, REST, head_bytes=len(HEAD) + 1),
    "a head of no bytes": assemble(HEAD, ROWS, REST, head_bytes=0, head_sha256=sha256(b"").hexdigest()),
    "a head up to the end of the manifest": assemble(HEAD, ROWS, REST, head_bytes=WHOLE + 1 + len(REST) + 78),
    "a head that ends beyond the manifest": assemble(HEAD, ROWS, REST, head_bytes=10**6),
    "a head of 999999999 bytes": assemble(HEAD, ROWS, REST, head_bytes=999999999),
    "a head of 10^30 bytes": assemble(HEAD, ROWS, REST, head_bytes=10**30),
    "a head of -1 bytes": assemble(HEAD, ROWS, REST, head_bytes=-1),
    "a length with a zero before it": assemble(HEAD, ROWS, REST, head_bytes=f"0{len(HEAD)}"),
    "a length with a fraction": assemble(HEAD, ROWS, REST, head_bytes=f"{len(HEAD)}.0"),
    "a head of another digest": assemble(HEAD, ROWS, REST, head_sha256="0" * 64),
    "a digest in capitals": assemble(HEAD, ROWS, REST, head_sha256=sha256(HEAD).hexdigest().upper()),
    "chunks whose length is given too small": assemble(HEAD, ROWS, REST, chunks_bytes=len(ROWS) - 1),
    "chunks whose length is given too large": assemble(HEAD, ROWS, REST, chunks_bytes=len(ROWS) + 1),
    "chunks that end beyond the manifest": assemble(HEAD, ROWS, REST, chunks_bytes=10**6),
    "chunks of 999999999 bytes": assemble(HEAD, ROWS, REST, chunks_bytes=999999999),
    "chunks of another digest": assemble(HEAD, ROWS, REST, chunks_sha256="0" * 64),
    "digests that are exchanged": assemble(
        HEAD, ROWS, REST, head_sha256=sha256(ROWS).hexdigest(), chunks_sha256=sha256(HEAD).hexdigest()
    ),
    "a head that overlaps the chunks": assemble(
        HEAD, ROWS, REST, head_bytes=WHOLE, head_sha256=sha256(HEAD + b',"chunks":' + ROWS).hexdigest()
    ),
    "chunks that overlap what follows": assemble(
        HEAD,
        ROWS,
        REST,
        chunks_bytes=len(ROWS) + 1 + len(REST),
        chunks_sha256=sha256(ROWS + b"," + REST).hexdigest(),
    ),
    "another member between head and chunks": assemble(HEAD, ROWS, REST, between=b',"x":1,"chunks":'),
    "another name for the chunks": assemble(HEAD, ROWS, REST, between=b',"pieces":'),
    "a space before the chunks": assemble(HEAD, ROWS, REST, between=b', "chunks":'),
    "no chunks member": assemble(HEAD, b"", REST, between=b""),
    "nothing behind the chunks": assemble(HEAD, ROWS, b""),
    **{
        f"a second `{name}` behind the chunks": assemble(HEAD, ROWS, REST + b',"%b":%b' % (name.encode(), value))
        for name, value in {
            "head": HEAD,
            "chunks": b"[]",
            "version": b"1",
            "format": b'"x"',
            "head_bytes": b"1",
            "chunks_sha256": b'""',
        }.items()
    },
}


@pytest.mark.parametrize(("case", "data"), FRONT.items(), ids=FRONT)
def test_manifests_with_wrong_lengths_and_digests_are_refused(
    local: Store, sandbox: Path, outcomes: Outcomes, case: str, data: bytes
) -> None:
    put(local, data, BODY)
    outcome = load(local, sandbox, {})
    assert outcome.startswith("`CorruptArtifact`: KEY: the manifest ")
    assert len(outcome) < 400
    assert [problem.key for problem in check(local).problems] == [KEY]
    outcomes.record(MANIFESTS, case, BREAKS)
    # What has its length and digest is trusted without the rest, and says what a whole manifest would say.
    with contextlib.suppress(ArtifactError):
        assert local.info(KEY)["size"] == len(BODY)
    with contextlib.suppress(ArtifactError):
        gc(local, grace=0, exclusive=True, dry_run=False)
        assert local.outline_at(KEY).artifact["key"] == KEY


def test_a_manifest_with_floats_loads(local: Store, sandbox: Path) -> None:
    """The cases above differ from this one in the paths alone."""
    made = wire({"a": BODY})
    _floats(made, ["x"], ["l", 1])
    put(local, sign(made), BODY)
    assert load(local, sandbox, {b"a": BODY}) == RIGHT
    assert repr(local.info(KEY)["metadata"]) == "{'x': nan, 'l': [1, inf], 't': 'nan'}"


RAW: dict[str, bytes] = {
    "NaN in the metadata": assemble(HEAD.replace(b'"metadata": {}', b'"metadata": {"x": NaN}'), ROWS, REST),
    "a number beyond all bounds": assemble(HEAD.replace(b'"metadata": {}', b'"metadata": {"x": 1e999}'), ROWS, REST),
    "a member that occurs twice": assemble(HEAD, ROWS, REST.replace(b'"dirs": []', b'"dirs": [], "dirs": ["x"]')),
    "a member of the head that occurs twice": assemble(HEAD[:-1] + b', "latest": true}', ROWS, REST),
    "a hundred thousand brackets": assemble(HEAD, ROWS, REST.replace(b'"dirs": []', b'"dirs": ' + b"[" * 100000)),
    "a hundred thousand brackets in its head": assemble(
        HEAD.replace(b'"metadata": {}', b'"metadata": {"x": ' + b"[" * 100000), ROWS, REST
    ),
    "a hundred thousand brackets in its chunks": assemble(HEAD, b"[" * 100000, REST),
    "version 0": assemble(HEAD, ROWS, REST, b"0"),
    "version -1": assemble(HEAD, ROWS, REST, b"-1"),
    "version 1.0": assemble(HEAD, ROWS, REST, b"1.0"),
    "version 01": assemble(HEAD, ROWS, REST, b"01"),
    'version "1"': assemble(HEAD, ROWS, REST, b'"1"'),
    "a member before the lengths": assemble(HEAD, ROWS, REST, b'1,"x":1'),
    "UTF-16": assemble(HEAD, ROWS, REST).decode().encode("utf-16"),
    "characters that are not ASCII": assemble(HEAD, ROWS, REST.replace(b'"dirs": []', '"dirs": ["é"]'.encode())),
    "characters in its head that are not ASCII": assemble(HEAD.replace(b"{}", '{"x": "é"}'.encode()), ROWS, REST),
}


@pytest.mark.parametrize(("case", "data"), RAW.items(), ids=RAW)
def test_json_that_breaks_the_format_is_refused(
    local: Store, sandbox: Path, outcomes: Outcomes, case: str, data: bytes
) -> None:
    assert data != RIGHT_BYTES
    put(local, resign(data[:-78]), BODY)
    outcome = load(local, sandbox, {})
    assert outcome.startswith(("`CorruptArtifact`: KEY: the manifest ", "`UnsupportedFormat`: KEY: what is stored"))
    outcomes.record(MANIFESTS, case, "`CorruptArtifact` or `UnsupportedFormat`, as for a damaged manifest")


RIGHT_BYTES = assemble(HEAD, ROWS, REST)


def test_what_the_forged_manifests_start_from_loads(local: Store, sandbox: Path) -> None:
    put(local, RIGHT_BYTES, BODY)
    assert load(local, sandbox, {b"a": BODY}) == RIGHT


LIES: dict[str, Callable[[Wire], Any]] = {
    "a chunk whose size is given too large": lambda m: (
        _set(m, "chunks", 0, 1, to=12),
        _set(m, "files", 1, 1, to=8),
        _set(m, "head", "artifact", "size", to=12),
    ),
    "a chunk whose size is given too small": lambda m: (
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
def test_wrong_sizes_are_found_during_the_load(
    local: Store, sandbox: Path, outcomes: Outcomes, case: str, change: Callable[[Wire], Any]
) -> None:
    put(local, changed(change), BODY)
    outcome = load(local, sandbox, {})
    assert outcome.startswith(("`CorruptArtifact`: cannot load KEY", "`TargetError`: cannot load KEY"))
    outcomes.record(MANIFESTS, case, "`CorruptArtifact` that names the artifact and the chunk, or `TargetError`")
    assert not check(local, read=True).ok
    with pytest.raises(ArtifactError):
        local.read_file(KEY, "b" if case != "a chunk at 2^60 of a file" else "a")


def test_of_a_files_mode_only_execute_bits_are_used(local: Store, sandbox: Path, outcomes: Outcomes) -> None:
    made = wire({"a": BODY})
    made["files"][0][2] = 0o6777
    put(local, sign(made), BODY)
    assert load(local, sandbox, {b"a": BODY}) == RIGHT
    umask = os.umask(0)
    os.umask(umask)
    assert (sandbox / "target" / "a").stat().st_mode & 0o7777 == 0o777 & ~umask
    outcomes.record(
        MANIFESTS, "set-user-id and world-writable bits", f"{RIGHT}; only execute bits of the mode are used"
    )


def test_a_chunk_that_is_named_many_times_loads(local: Store, sandbox: Path, outcomes: Outcomes) -> None:
    """One small chunk as the content of much: the target's disk is all that it takes."""
    made = wire({"a": BODY})
    made["files"][0][1] = made["head"]["artifact"]["size"] = len(BODY) * 2000
    made["chunks"] *= 2000
    put(local, sign(made), BODY)
    outcomes.record(MANIFESTS, "one chunk 2000 times", load(local, sandbox, {b"a": BODY * 2000}))


MEASURE = """
import resource, sys
from metaflow_artifacts import ArtifactError, open_store
from metaflow_artifacts._upkeep.gc import plan_gc
store, key = open_store(sys.argv[1]), sys.argv[2]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for call in (lambda: len(store.manifest(key).files), lambda: store.info(key)["size"], lambda: plan_gc(store).artifacts):
    try:
        print(call())
    except ArtifactError as error:
        print(type(error).__name__, error)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def measured(store: Store) -> tuple[list[str], int]:
    """The results of reading the manifest, its head and its chunks, and the memory that this takes, in MiB."""
    done = subprocess.run([sys.executable, "-c", MEASURE, store.root, KEY], capture_output=True, text=True, check=True)
    *said, memory = done.stdout.splitlines()
    return said, int(memory) >> 10


@pytest.mark.long
def test_a_million_files_take_little_memory(local: Store, outcomes: Outcomes) -> None:
    made = wire({})
    made["files"] = [[f"directory/{number:07}", 0, 0o644, 0] for number in range(1_000_000)]
    put(local, sign(made))
    said, memory = measured(local)
    assert said == ["1000000", "0", "1"]
    assert memory < 1024
    outcomes.record(MANIFESTS, "a million files", "read, in less than 1 GiB")


NONE = parts(wire({}))
BOMBS: dict[str, Callable[[], bytes]] = {
    "of 300 MiB": lambda: b" " * (300 << 20),
    "of the largest size that is read": lambda: b'{"format":"metaflow-artifacts",' + b" " * (MAX_BYTES - 40),
    "with 80 million empty lists": lambda: assemble(*NONE[:2], NONE[2] + b',"x":[' + b"[]," * 80_000_000 + b"0]"),
    "with 5 million texts": lambda: assemble(*NONE[:2], NONE[2] + b',"x":[' + b'"ab",' * 5_500_000 + b"0]"),
    "with 16 million numbers": lambda: assemble(*NONE[:2], NONE[2] + b',"x":[' + b"999," * 16_000_000 + b"0]"),
    "with 3 million chunks": lambda: assemble(HEAD, ROWS[:1] + b'["%b",1],' % (b"0" * 64) * 3_000_000 + ROWS[1:], REST),
    "with 80 million empty lists in its head": lambda: assemble(_with_metadata(b"[]," * 80_000_000), *NONE[1:]),
    "with 60 million numbers in its head": lambda: assemble(_with_metadata(b"999," * 60_000_000), *NONE[1:]),
}


def _with_metadata(values: bytes) -> bytes:
    return NONE[0].replace(b'"metadata": {}', b'"metadata": {"x": [%b0]}' % values)


AT_EVERY_CHANGE = ("of 300 MiB", "with 5 million texts")


@pytest.mark.parametrize(
    ("case", "make"),
    [
        pytest.param(case, make, id=case, marks=[] if case in AT_EVERY_CHANGE else pytest.mark.long)
        for case, make in BOMBS.items()
    ],
)
def test_large_manifests_take_bounded_memory(
    local: Store, outcomes: Outcomes, case: str, make: Callable[[], bytes]
) -> None:
    put(local, make())
    said, memory = measured(local)
    assert len(said) == 3
    for one in said:
        assert one.startswith(("CorruptArtifact ", "UnsupportedFormat ")) or one in ("0", "1", "10")
        assert one in ("0", "1", "10") or KEY in one
    assert memory < 1536
    outcomes.record(MANIFESTS, f"a manifest {case}", "refused or read, in less than 1.5 GiB")
