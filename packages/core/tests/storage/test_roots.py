"""Which texts name a root, and which are refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from metaflow_artifacts._storage import open_storage
from metaflow_artifacts.errors import InvalidInput

NO_ROOTS = [
    "s3:",
    "s3:/",
    "s3:/bucket/x",
    "S3:/bucket/x",
    "s3://",
    "s3:///",
    "s3:///x",
    "s3://b/../a",
    "s3://b/a/./c",
    "s3://b/a\nc",
    "gs://b/a",
    "gs:/b/a",
    "https://b",
    "",
    "a\0b",
]


@pytest.mark.parametrize("root", NO_ROOTS, ids=ascii)
def test_roots_that_are_refused(root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidInput, match="datastore root") as caught:
        open_storage(root)
    assert len(str(caught.value).splitlines()) == 1


def test_a_url_that_pathlib_has_changed_is_refused() -> None:
    with pytest.raises(InvalidInput, match="it has the form s3://bucket/prefix"):
        open_storage(Path("s3://bucket/x"))


@pytest.mark.parametrize(
    ("root", "taken"),
    [
        ("s3://bucket", "s3://bucket"),
        ("s3://bucket/", "s3://bucket"),
        ("s3://bucket/a", "s3://bucket/a"),
        ("s3://bucket/a b/c/", "s3://bucket/a b/c"),
        ("s3://bucket/a//c", "s3://bucket/a//c"),
        ("s3://bucket/a//c//", "s3://bucket/a//c"),
        ("s3://bucket//a", "s3://bucket/a"),
    ],
)
def test_s3_roots_have_the_prefix_that_metaflow_uses(root: str, taken: str) -> None:
    """metaflow.S3 drops slashes at both ends of a prefix, and keeps those within."""
    storage = open_storage(root)
    assert storage.root == taken
    assert storage.url("k") == f"{taken}/k"


@pytest.mark.parametrize("root", ["relative/x", "~/x", "/a/../b/", ".", "./s3:/x", "a:b"])
def test_local_roots_are_absolute(root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    storage = open_storage(root)
    assert os.path.isabs(storage.root)
    assert storage.root == os.path.abspath(os.path.expanduser(root))
    # The working directory may change later; the location of the store may not.
    assert open_storage(Path(storage.root)).root == storage.root
