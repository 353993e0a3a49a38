"""Manifests that Hypothesis changes or makes up, with right and wrong digests: read, checked, loaded and shown.

Whatever comes: nothing outside of the target changes, memory stays bounded, every failure is an ArtifactError, and
what loads is what the manifest says.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from faultlib.forge import KEY, assemble, chunk, parts, resign, sign, wire
from faultlib.outcomes import Outcomes, content
from hypothesis import HealthCheck, event, example, given, settings
from hypothesis import strategies as st

from metaflow_artifacts import ArtifactError, InvalidReference, Store
from metaflow_artifacts._cli import main
from metaflow_artifacts._format.keys import parse_key
from metaflow_artifacts._format.manifest import FRONT_BYTES, Manifest, decode, decode_front, decode_head, decode_outline
from metaflow_artifacts._storage import open_storage
from metaflow_artifacts._transfer.chunks import chunk_key
from metaflow_artifacts._upkeep.check import check
from metaflow_artifacts._upkeep.gc import plan_gc

SECTION = "untrusted manifests"
PIECES = [b"a", b"0123456789", b"x" * 100, bytes(range(256)) * 20]
MEMORY = 32 << 20

run_many = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])


class Sandbox:
    """A store with a few chunks, and a directory to load into, with links in it and precious things beside it."""

    def __init__(self, root: Path, outcomes: Outcomes) -> None:
        self.root = root
        self.store = Store(open_storage(root / "store"))
        for piece in PIECES:
            self.store.storage.put(chunk_key(hashlib.sha256(piece).hexdigest()), piece)
        self.store.storage.put(KEY, b"")
        (root / "outside" / "deep").mkdir(parents=True)
        (root / "outside" / "file").write_text("precious")
        self.target = root / "target"
        self.target.mkdir()
        (self.target / "link").symlink_to(root / "outside")
        (self.target / "file-link").symlink_to(root / "outside" / "file")
        (self.target / "dir").mkdir()
        (self.target / "dir" / "link").symlink_to("../../outside")
        self.outcomes = outcomes
        self.others = self._others()
        self.before = content(self.target)

    def _others(self) -> dict[bytes, Any]:
        return {
            path: value
            for path, value in content(self.root).items()
            if not path.startswith(b"target/") and not path.endswith(os.path.basename(KEY).encode())
        }

    def try_all(self, data: bytes) -> None:
        """All that reads a manifest, on these bytes."""
        self.store.storage.put(KEY, data)
        tracemalloc.start()
        try:
            manifest, message = None, KEY
            try:
                manifest = decode(data, KEY)
            except ArtifactError as error:
                message = str(error)
            assert KEY in message
            assert len(message) < 1000
            with contextlib.suppress(ArtifactError):
                self.store.load(KEY, self.target)
                assert manifest is not None
                self._is_what_it_says(manifest)
                event("loaded")
            with contextlib.suppress(ArtifactError):
                self.store.info(KEY)
            _parts_agree(data, manifest)
            report = check(self.store, read=True)
            assert manifest is not None or not report.ok
            with contextlib.suppress(ArtifactError):
                plan_gc(self.store, grace=0, exclusive=True)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < MEMORY
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            for command in ("show", "tree", "ls"):
                assert main([command, "--root", self.store.root, *([] if command == "ls" else [KEY])]) in (0, 1, 2)
        assert out.getvalue().replace("\n", "").isprintable()
        assert self._others() == self.others
        self._clear()
        self.outcomes.record(
            SECTION,
            "manifests of a fuzzer, with right and wrong digests",
            "the bytes that the manifest says, or an `ArtifactError`; nothing outside of the target changes",
        )

    def _is_what_it_says(self, manifest: Manifest) -> None:
        content_of = {hashlib.sha256(piece).hexdigest(): piece for piece in PIECES}
        stream = manifest.inline
        if stream is None:
            stream = b"".join(content_of[one.sha256] for one in manifest.chunks)
        found = content(self.target)
        for file in manifest.files:
            assert found[os.fsencode(file.path)] == stream[file.offset : file.offset + file.size]

    def _clear(self) -> None:
        now = content(self.target)
        for path in sorted(now, reverse=True):
            if path not in self.before:
                location = os.path.join(os.fsencode(self.target), path)
                if now[path] is None:
                    os.rmdir(location)
                else:
                    os.unlink(location)
        for name, to in (("link", self.root / "outside"), ("file-link", self.root / "outside" / "file")):
            if not (self.target / name).is_symlink():
                (self.target / name).unlink(missing_ok=True)
                (self.target / name).symlink_to(to)
        if not (self.target / "dir" / "link").is_symlink():
            (self.target / "dir" / "link").unlink(missing_ok=True)
            (self.target / "dir" / "link").symlink_to("../../outside")
        assert content(self.target) == self.before


def _parts_agree(data: bytes, manifest: Manifest | None) -> None:
    """What is read without the rest is what the whole manifest says, where that is whole."""
    front = decode_front(data[:FRONT_BYTES])
    if front is None:
        assert manifest is None
        return
    head, outline = decode_head(data, front), decode_outline(data, front)
    if manifest is not None:
        assert head is not None
        assert outline is not None
        assert (head.artifact, head.latest) == (manifest.artifact, manifest.latest)
        assert (outline.artifact, outline.chunks) == (manifest.artifact, manifest.chunks)


@pytest.fixture
def sandbox(tmp_path: Path, outcomes: Outcomes) -> Iterator[Sandbox]:
    umask = os.umask(0o022)
    yield Sandbox(tmp_path, outcomes)
    os.umask(umask)


RIGHT_ONE = wire({"dir/a": PIECES[1], "file-link": PIECES[2], "z": b""}, ["empty"])
RIGHT_ONE["chunks"] = [chunk(PIECES[1]), chunk(PIECES[2])]
RIGHT_BYTES = sign(RIGHT_ONE)

changes = st.lists(
    st.one_of(
        st.tuples(st.just("flip"), st.integers(0, len(RIGHT_BYTES) - 1), st.integers(1, 255)),
        st.tuples(st.just("cut"), st.integers(0, len(RIGHT_BYTES)), st.integers(0, 200)),
        st.tuples(st.just("insert"), st.integers(0, len(RIGHT_BYTES)), st.binary(max_size=30)),
        st.tuples(
            st.just("insert"),
            st.integers(0, len(RIGHT_BYTES)),
            st.sampled_from(
                [b"[", b"]", b"{", b"}", b'"', b",", b"-", b"0", b"9" * 30, b"null", b"\\u0000", b"../", b"/"]
            ),
        ),
    ),
    min_size=1,
    max_size=4,
)


@given(changes=changes, signed=st.booleans())
@example(changes=[("cut", 0, 0)], signed=True)
@run_many
def test_manifests_with_changed_bytes_are_safe(sandbox: Sandbox, changes: list[Any], signed: bool) -> None:
    data = _changed(RIGHT_BYTES, changes)
    sandbox.try_all(resign(data[:-78]) if signed else data)


fronts = st.dictionaries(
    st.sampled_from(["head_bytes", "chunks_bytes"]),
    st.one_of(st.integers(0, len(RIGHT_BYTES)), st.sampled_from([10**6, 10**8, 999_999_999, 10**20, -1])),
    max_size=2,
)


@given(part=st.integers(0, 2), changes=changes, front=st.one_of(st.just({}), st.just({}), fronts))
@run_many
def test_manifests_with_one_changed_part_are_safe(
    sandbox: Sandbox, part: int, changes: list[Any], front: dict[str, Any]
) -> None:
    """Of the head, the chunks, or what follows, under digests and lengths that fit, or lengths that do not."""
    pieces = list(parts(RIGHT_ONE))
    inside = [(kind, at % (len(pieces[part]) + 1), what) for kind, at, what in changes]
    pieces[part] = _changed(pieces[part], inside)
    sandbox.try_all(assemble(*pieces, **front))


def _changed(before: bytes, changes: list[Any]) -> bytes:
    data = bytearray(before)
    for kind, at, what in changes:
        at = min(at, len(data))
        if kind == "flip" and at < len(data):
            data[at] ^= what
        elif kind == "cut":
            del data[at : at + what]
        elif kind == "insert":
            data[at:at] = what
    return bytes(data)


@given(data=st.binary(max_size=300), start=st.booleans())
@run_many
def test_random_bytes_are_safe(sandbox: Sandbox, data: bytes, start: bool) -> None:
    sandbox.try_all(RIGHT_BYTES[: RIGHT_BYTES.index(b'"head":')] + data if start else data)


good = st.sampled_from(["a", "b", "c", "d", "dir", "link", "file", "deep", "A", "outside", "e\u0301", "\u00e9"])
names = st.one_of(
    *[good] * 12,
    st.sampled_from(["..", ".", "", "x" * 300, "file-link"]),
    st.text(max_size=5),
    st.text(st.characters(min_codepoint=0xDC80, max_codepoint=0xDCFF), max_size=2),
)
often = st.sampled_from([True] * 7 + [False])
paths = st.one_of(*[st.lists(names, min_size=1, max_size=4).map("/".join)] * 12, st.just("/etc/passwd"))
numbers = st.one_of(
    st.integers(0, 300),
    st.sampled_from([-1, 1 << 31, 1 << 32, 1 << 61, 1 << 62, 1 << 63, 1 << 64, 10**30]),
    st.floats(allow_nan=False, allow_infinity=False),
    st.booleans(),
    st.none(),
)
anything = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, st.text(max_size=8), paths),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=8,
)
# Mostly names and sizes that fit, so that much gets as far as the file system.
LEAVES = [
    "a",
    "b/c",
    "b/d",
    "dir/x",
    "dir/link/file",
    "dir/link/new",
    "link/file",
    "link/new",
    "link/deep/x",
    "outside/y",
]
LEAVES += ["file-link", "e\u0301", "\u00e9", "A", "deep/er/z", "target", "\udcff"]
rows = st.lists(
    st.tuples(st.one_of(*[st.sampled_from(LEAVES)] * 15, paths), st.integers(0, 200)), min_size=1, max_size=5
)


forged = st.lists(
    st.tuples(
        st.sampled_from(
            [
                "files",
                "dirs",
                "chunks",
                "chunk_size",
                "inline",
                "artifact",
                "latest",
                "size",
                "row",
                "floats",
                "metadata",
            ]
        ),
        anything,
    ),
    min_size=1,
    max_size=2,
)


@given(
    rows=rows,
    dirs=st.lists(st.one_of(*[st.sampled_from(["empty", "b/empty", "link/empty"])] * 15, paths), max_size=1),
    order=often,
    fit=often,
    pieces=st.lists(st.sampled_from(PIECES), max_size=4),
    inline=st.booleans(),
    extra=often.flatmap(lambda none: st.just([]) if none else forged),
)
@run_many
def test_made_up_manifests_are_safe(
    sandbox: Sandbox,
    rows: list[tuple[str, int]],
    dirs: list[str],
    order: bool,
    fit: bool,
    pieces: list[bytes],
    inline: bool,
    extra: list[tuple[str, Any]],
) -> None:
    if order:
        rows = sorted(dict(rows).items(), key=lambda row: row[0].encode("utf-8", "surrogatepass"))
    stream = b"".join(pieces)
    made = wire({})
    files, offset = [], 0
    for number, (path, size) in enumerate(rows):
        if fit:
            size = len(stream) - offset if number == len(rows) - 1 else min(size, len(stream) - offset)
        files.append([path, size, 0o644, offset])
        offset += size
    made["files"], made["dirs"] = files, dirs
    made["head"]["artifact"]["size"] = offset
    made["chunks"] = [chunk(piece) for piece in pieces]
    if inline:
        import base64

        made["inline"] = base64.b64encode(stream).decode()
        made["chunks"] = []
    for name, value in extra:
        if name in ("artifact", "latest", "floats"):
            made["head"][name] = value
        elif name == "metadata" and isinstance(made["head"]["artifact"], dict):
            made["head"]["artifact"]["metadata"] = value
        elif name == "size" and isinstance(made["head"]["artifact"], dict):
            made["head"]["artifact"]["size"] = value
        elif name == "row":
            made["files"].append(value) if isinstance(made["files"], list) else None
        else:
            made[name] = value
    sandbox.try_all(sign(made))


@given(
    st.one_of(
        st.text(max_size=60),
        st.lists(
            st.one_of(st.sampled_from(["mf.models", "models", "artifacts", "..", ".", ""]), st.text(max_size=5))
        ).map("/".join),
        st.text(max_size=20).map(lambda label: f"mf.models/models/artifacts/{label}_{'0' * 32}"),
        st.text("%2eE/._-aA0~é\n\x1b", max_size=12).map(lambda label: f"mf.models/models/artifacts/{label}_{'0' * 32}"),
        st.text("0123456789abcdef._%F/-", max_size=20).map(
            lambda name: f"mf.checkpoints/checkpoints/artifacts/F/s/{'0' * 12}/{'1' * 12}/{name}"
        ),
    )
)
@settings(max_examples=10 * settings().max_examples, deadline=None)
def test_keys_are_refused_or_safe_as_paths(key: str) -> None:
    """A key is refused, or it is exactly what its parts are written as, and safe as a path."""
    parsed, message = None, ""
    try:
        parsed = parse_key(key)
    except InvalidReference as error:
        message = str(error)
    assert message.isprintable()
    if parsed is None:
        assert message
        return
    assert str(parsed) == key
    assert key.isascii()
    assert key.isprintable()
    assert not {"", ".", ".."} & set(key.split("/"))
    assert key.startswith("mf.")
