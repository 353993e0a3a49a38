"""The headers of tars: what Python's tarfile writes is understood, and what a hostile writer writes is refused."""

from __future__ import annotations

import io
import os
import re
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metaflow_artifacts._format import tar as module
from metaflow_artifacts._format.tar import BadTar, TarTree, is_tar, read_tar

Add = Callable[..., None]


def tree_of(data: bytes) -> TarTree:
    return read_tar(lambda start, length: data[start : start + length], len(data))


def packed(*members: tuple[str, bytes | str, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar of members: the name, the content or the link's target, and the type."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        for name, content, kind in members:
            info = tarfile.TarInfo(name)
            info.type = kind
            if isinstance(content, str):
                info.linkname = content
            else:
                info.size = len(content)
            tar.addfile(info, io.BytesIO(content) if isinstance(content, bytes) else None)
    return out.getvalue()


def file(name: str, content: bytes = b"x") -> tuple[str, bytes, bytes]:
    return name, content, tarfile.REGTYPE


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tuple[str, str, bytes]:
    return name, target, kind


def contents(data: bytes) -> dict[str, bytes]:
    return {one.path: data[one.start : one.start + one.size] for one in tree_of(data).files}


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_the_files_of_a_directory(tmp_path: Path, form: int) -> None:
    for name, size in (("a", 0), ("b.bin", 511), ("sub/c", 513), ("sub/" + "d" * 90, 1024)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(os.urandom(size))
    (tmp_path / "empty" / "below").mkdir(parents=True)
    (tmp_path / "b.bin").chmod(0o755)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        tar.add(tmp_path, arcname="")
    data = out.getvalue()
    assert is_tar(data)
    assert contents(data) == {
        path.relative_to(tmp_path).as_posix(): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()
    }
    assert tree_of(data).dirs == ["empty/below"]
    assert [one.path for one in tree_of(data).files if one.mode & 0o111] == ["b.bin"]


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
@given(name=st.text(st.characters(exclude_characters="/\0", codec="utf-8"), min_size=1, max_size=300))
def test_any_name(form: int, name: str) -> None:
    if name in (".", ".."):
        return
    assert [one.path for one in tree_of(packed(file(f"d/{name}"), form=form)).files] == [f"d/{name}"]


def test_a_name_that_is_not_utf8() -> None:
    assert [one.path for one in tree_of(packed(file("d/\udcff"))).files] == ["d/\udcff"]


def test_links_within_the_archive_are_files() -> None:
    data = packed(
        file("blobs/a", b"aa"),
        link("snapshot/a", "../blobs/a"),
        link("again", "snapshot/a"),
        link("hard", "blobs/a", tarfile.LNKTYPE),
        file("snapshot/own", b"own"),
        link("latest", "./snapshot"),
    )
    assert tree_of(data).refused == {}
    assert contents(data) == {
        "again": b"aa",
        "blobs/a": b"aa",
        "hard": b"aa",
        "latest/a": b"aa",
        "latest/own": b"own",
        "snapshot/a": b"aa",
        "snapshot/own": b"own",
    }


@pytest.mark.parametrize(
    ("member", "says"),
    [
        (link("l", "/etc/passwd"), "it is a link to '/etc/passwd', which is not in the archive"),
        (link("l", "../outside"), "which is not in the archive"),
        (link("sub/l", "../../outside"), "which is not in the archive"),
        (link("l", "nothing"), "which is not in the archive"),
        (link("l", "l"), "which is not in the archive"),
        (link("hard", "/etc/passwd", tarfile.LNKTYPE), "which is not in the archive"),
        (link("hard", "../kept", tarfile.LNKTYPE), "which is not in the archive"),
        (link("sub/up", ".."), "a directory with such a link in it"),
        (("p", b"", tarfile.FIFOTYPE), "it is a pipe"),
        (("c", b"", tarfile.CHRTYPE), "it is a device"),
        (("b", b"", tarfile.BLKTYPE), "it is a device"),
        (("s", b"", tarfile.GNUTYPE_SPARSE), "it is a sparse file"),
        (("u", b"xx", b"Z"), "of the unknown type b'Z'"),
    ],
)
def test_members_that_cannot_be_loaded(member: tuple[str, bytes | str, bytes], says: str) -> None:
    tree = tree_of(packed(file("kept"), file("sub/kept"), member))
    assert [one.path for one in tree.files] == ["kept", "sub/kept"]
    ((path, why),) = tree.refused.items()
    assert path == member[0]
    assert says in why


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ([file("/etc/passwd")], "'/etc/passwd' is not a relative, normalised path"),
        ([file("../up")], "'../up' is not a relative"),
        ([file("a/../../up")], "is not a relative"),
        ([file("a//b")], "is not a relative"),
        ([file("./a")], "is not a relative"),
        ([link("../l", "a")], "'../l' is not a relative"),
        ([("../d", b"", tarfile.DIRTYPE)], "'../d' is not a relative"),
        ([file("a/" + "b/" * 2100 + "c")], "a path of"),
        ([file("a"), file("a", b"other")], "it has 'a' twice"),
        ([file("a"), link("a", "a")], "it has 'a' twice"),
        ([file("a"), file("a/b")], "'a' is a file or an empty directory, and other paths lie in it"),
        ([file("a"), ("a", b"", tarfile.DIRTYPE)], "one that is a file too"),
        ([link("out", "/etc"), file("out/passwd"), file("out")], "it has 'out' twice"),
        ([file("d/x"), link("l", "d"), file("l/x", b"other")], "it has 'l/x' twice"),
        ([file("b", bytes(64 << 10)), *(link(f"l{n}", "b") for n in range(400))], "its links make"),
        ([("l", "t", tarfile.DIRTYPE), ("n", b"x", b"2")], "'n' is no file, and has 1 bytes"),
    ],
)
def test_archives_that_are_refused(members: list[tuple[str, bytes | str, bytes]], says: str) -> None:
    with pytest.raises(BadTar, match=re.escape(says)):
        tree_of(packed(*members))


def test_links_lead_where_a_file_system_finds_it(tmp_path: Path) -> None:
    """`..` after a link to a directory is above that directory."""
    for name in ("x", "d1/x", "d1/d2/x", "d1/d2/y"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    for name, to in {
        "s": "d1/d2",
        "above": "s/../x",
        "through": "s/y",
        "twice": "above",
        "d1/up": "../s/../../x",
        "nowhere": "missing/../x",
        "file": "x/../d1/x",
        "out": "s/../../../x",
        "round": "s/../../round",
    }.items():
        (tmp_path / name).symlink_to(to)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        tar.add(tmp_path, arcname="")
    found = contents(out.getvalue())
    assert found == {
        **{path.relative_to(tmp_path).as_posix(): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()},
        "s/x": b"d1/d2/x",
        "s/y": b"d1/d2/y",
    }
    assert found["above"] == b"d1/x"
    assert sorted(tree_of(out.getvalue()).refused) == ["file", "nowhere", "out", "round"]


def test_a_link_to_a_directory_that_holds_a_link_out() -> None:
    tree = tree_of(packed(file("d/a"), link("d/out", "/etc"), link("l", "d")))
    assert sorted(tree.refused) == ["d/out", "l"]


def test_directories_of_links_do_not_multiply() -> None:
    """Each level would double the files."""
    members: list[tuple[str, bytes | str, bytes]] = [file("d0/a")]
    for n in range(40):
        members += [link(f"d{n + 1}/{side}", f"../d{n}") for side in "xy"]
    tree = tree_of(packed(*members))
    assert len(tree.files) == 3
    assert len(tree.refused) == 78


def test_directories_of_links_do_not_fill_the_memory() -> None:
    """Each of the empty files costs a long name for each link."""
    members = [file(f"d/{n}", b"") for n in range(100)] + [link(f"{n}" + "n" * 3000, "d") for n in range(100)]
    with pytest.raises(BadTar, match=r"its links make names of \d+ characters"):
        tree_of(packed(*members))


def test_deep_directories_do_not_fill_the_memory() -> None:
    """Each of these paths has 1,000 directories above it, whose names have a million characters."""
    with pytest.raises(BadTar, match=r"its directories have names of \d+ characters"):
        tree_of(packed(*(file(f"{n}/" + "a/" * 1000 + "f", b"") for n in range(20))))


def test_extended_headers_do_not_fill_the_memory() -> None:
    """What they say is kept until the next member, which may be far away."""
    data = b""
    for n in range(100):
        record = b"100000 key%05d=" % n
        record += b"v" * (99999 - len(record)) + b"\n"
        header = with_header(kind=b"x", size=b"%011o\0" % len(record))[:512]
        data += header + record.ljust(-(-len(record) // 512) * 512, b"\0")
    data += with_header()
    tracemalloc.start()
    try:
        assert [one.path for one in tree_of(data).files] == ["a"]
        assert tracemalloc.get_traced_memory()[1] < 2 << 20
    finally:
        tracemalloc.stop()


def test_many_links_to_directories() -> None:
    """Each of them looks at its own directory alone: else this would take minutes."""
    members = [one for n in range(5000) for one in (file(f"d{n}/a", b""), link(f"l{n}", f"d{n}"))]
    assert len(tree_of(packed(*members)).files) == 10000


def with_header(**fields: bytes) -> bytes:
    """A tar of one file whose header has other bytes in some fields."""
    data = bytearray(packed(file("a", b"content"), form=tarfile.USTAR_FORMAT))
    places = {"name": 0, "size": 124, "kind": 156, "checksum": 148}
    for name, value in fields.items():
        data[places[name] : places[name] + len(value)] = value
    if "checksum" not in fields:
        data[148:156] = b"%06o\0 " % (sum(data[:148]) + 8 * 32 + sum(data[156:512]))
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (with_header(checksum=b"000000\0 "), "there is no header at byte 0"),
        (with_header(size=b"77777777777\0"), "'a' has 8589934591 bytes, of which not all are there"),
        (with_header(size=b"\x80" + bytes(3) + b"\xff" * 8), "of which not all are there"),
        (with_header(size=b"\xff" * 12), "the header at byte 0 is damaged"),
        (with_header(size=b"-0000000001\0"), "the header at byte 0 is damaged"),
        (with_header(kind=b"x", size=b"77777777777\0"), "at most 1048576 are read"),
        (with_header(kind=b"x"), "the header at byte 0 is damaged"),
        (with_header(kind=b"L", size=b"00000040000\0"), "it ends within the header at byte 0"),
        (with_header()[:512], "'a' has 7 bytes, of which not all are there"),
        (with_header()[:1024], "without its end mark: it is truncated"),
        (with_header()[:700] + bytes(100), "without its end mark"),
        (b"", "without its end mark"),
        (os.urandom(600), "there is no header at byte 0"),
    ],
)
def test_damage(data: bytes, says: str) -> None:
    with pytest.raises(BadTar, match=re.escape(says)):
        tree_of(data)


def zeroed(start: int, count: int) -> bytes:
    """A tar of three files, with zeros in place of some bytes."""
    data = packed(file("a"), file("b"), file("c"))
    return data[:start] + bytes(count) + data[start + count :]


@pytest.mark.parametrize(
    ("data", "end"),
    [
        (zeroed(1024, 512), 1024),
        (zeroed(1024, 2048) + bytes(2048), 1024),
        (packed(file("a")) + packed(file("b")), 1024),
        (packed(file("a"))[:1536] + b"more", 1024),
        (packed(file("a")) + bytes(10240), 1024),
    ],
    ids=["a header", "all to the end", "two archives", "garbage", "too many zeros"],
)
def test_what_follows_an_end_mark_is_damage(data: bytes, end: int) -> None:
    """Else a header that was lost would leave out all files after it in silence."""
    tree = tree_of(data)
    assert [one.path for one in tree.files] == ["a"]
    assert tree.damage == (
        f"its end mark is at byte {end} of {len(data)}, and should be the last: what follows cannot be read"
    )


@pytest.mark.parametrize("sizes", [(), (1,), (10240 - 2048,), (10240 - 1024, 1), (512, 20000, 7)])
def test_no_damage_in_what_tarfile_writes(sizes: tuple[int, ...]) -> None:
    assert tree_of(packed(*(file(str(n), b"x" * size) for n, size in enumerate(sizes)))).damage is None


def extended(record: bytes, kind: bytes = b"x") -> bytes:
    """A tar of one file, with an extended header before it."""
    header = with_header(kind=kind, size=b"%011o\0" % len(record))[:512]
    return header + record.ljust(512, b"\0") + with_header()


@pytest.mark.parametrize(
    ("record", "says"),
    [
        (b"19 size=9999999999\n", "of which not all are there"),
        (b"12 size=-10\n", "no number of bytes"),
        (b"99 path=a\n", "the header at byte 0 is damaged"),
        (b"0 path=a\n", "the header at byte 0 is damaged"),
        (b"10 path=a\nrest", "the header at byte 0 is damaged"),
        (b"13 path=../x\n", "is not a relative"),
    ],
)
def test_extended_headers(record: bytes, says: str) -> None:
    with pytest.raises(BadTar, match=re.escape(says)):
        tree_of(extended(record))


def test_a_sparse_file_in_the_form_of_posix() -> None:
    assert tree_of(extended(b"22 GNU.sparse.major=1\n")).refused == {"a": "it is a sparse file"}


def test_a_global_header_that_renames_all() -> None:
    with pytest.raises(BadTar, match="gives all members one name"):
        tree_of(extended(b"10 path=a\n", b"g"))


def test_most_members(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_MEMBERS", 3)
    assert len(tree_of(packed(*(file(str(n)) for n in range(3)))).files) == 3
    with pytest.raises(BadTar, match="more than 3 members"):
        tree_of(packed(*(file(str(n)) for n in range(4))))
    with pytest.raises(BadTar, match="its links make more than 3 members"):
        tree_of(packed(file("d/a"), file("d/b"), link("l", "d")))


@given(data=st.binary(max_size=4096), where=st.integers(0, 3000))
def test_any_bytes_are_refused_or_read(data: bytes, where: int) -> None:
    whole = packed(file("a", b"content"), link("l", "a"), file("d/" + "n" * 120))
    changed = whole[:where] + data + whole[where + len(data) :]
    try:
        tree = tree_of(changed)
    except BadTar:
        return
    assert all(one.start + one.size <= len(changed) for one in tree.files)
