"""A reference is parsed where it enters the store, and only there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from metaflow_artifacts import (
    CheckpointPlace,
    CheckpointWriter,
    InvalidReference,
    ParsedReference,
    Store,
    lineage,
    open_store,
)
from metaflow_artifacts._format.keys import ModelKey
from metaflow_artifacts._store import references
from metaflow_artifacts._store.references import key_of, root_of

OPERATIONS: dict[str, Callable[[Store, Any, Path], Any]] = {
    "load": lambda store, reference, path: store.load(reference, path / "out"),
    "info": lambda store, reference, path: store.info(reference),
    "manifest": lambda store, reference, path: store.manifest(reference),
    "read_file": lambda store, reference, path: store.read_file(reference, "file"),
    "lineage": lambda store, reference, path: lineage(reference, store),
    "delete": lambda store, reference, path: store.delete(reference),
}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "root")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    return path


@pytest.mark.parametrize("form", ["key", "url", "dict", "parsed"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_each_operation_parses_a_reference_once(
    store: Store, file: Path, tmp_path: Path, operation: str, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = store.save_model(file)
    reference: Any = {"key": saved["key"], "url": saved["url"], "dict": saved, "parsed": ParsedReference.of(saved)}[
        form
    ]
    calls = []

    def counting(parse: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def call(value: Any) -> Any:
            calls.append(parse.__name__)
            return parse(value)

        return call

    for name in ("parse_any_key", "parse_reference"):
        monkeypatch.setattr(references, name, counting(getattr(references, name)))
    OPERATIONS[operation](store, reference, tmp_path)
    expected = {
        "key": ["parse_any_key"],
        "url": ["parse_any_key"],
        "dict": ["parse_any_key", "parse_reference"],
        "parsed": [],
    }
    assert sorted(calls) == expected[form]


def test_what_a_parsed_reference_says(store: Store, file: Path) -> None:
    saved = store.save_model(file, "label")
    whole, bare = ParsedReference.of(saved), ParsedReference.of(saved["key"])
    assert whole.key == bare.key == key_of(saved) == saved["key"]
    assert isinstance(whole.parts, ModelKey)
    assert whole.parts.label == "label"
    assert (whole.artifact, bare.artifact) == (saved, None)
    assert (whole.root, bare.root, root_of(saved)) == (store.root, None, store.root)
    assert ParsedReference.of(whole) is whole
    url = ParsedReference.of(saved["url"])
    assert (url.key, url.parts, url.artifact, url.root) == (saved["key"], whole.parts, None, store.root)


KEY = "mf.models/models/artifacts/label_" + "0" * 32


@pytest.mark.parametrize(
    ("url", "root"),
    [
        (f"s3://bucket/{KEY}", "s3://bucket"),
        (f"s3://bucket/a/prefix/{KEY}", "s3://bucket/a/prefix"),
        (f"/data/.metaflow/{KEY}", "/data/.metaflow"),
        # A root may look like a key itself.
        (f"/data/{KEY}/{KEY}", f"/data/{KEY}"),
        (f"gs://bucket/{KEY}", "gs://bucket"),
    ],
)
def test_a_url_is_a_root_and_a_key(url: str, root: str) -> None:
    parsed = ParsedReference.of(url)
    assert (parsed.root, parsed.key) == (root, KEY)


@pytest.mark.parametrize(
    "text", [f"/{KEY}", f"relative/{KEY}", f"./{KEY}", f"s3:/{KEY}", f"/data/{KEY}/", f"/data/{KEY[:-1]}"]
)
def test_what_is_no_url_is_refused(text: str) -> None:
    with pytest.raises(InvalidReference, match="not the key of a stored artifact"):
        ParsedReference.of(text)


CHECKPOINT = f"mf.checkpoints/checkpoints/artifacts/F/train/{'0' * 12}/{'1' * 12}/{'2' * 8}.0.best%20one.12"


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        (f" {KEY}", KEY),
        (f"{KEY}\r\n", KEY),
        (f"'{KEY}'", KEY),
        (f"[key] {CHECKPOINT},", CHECKPOINT),
        (f'"s3://bucket/prefix/{CHECKPOINT}"', CHECKPOINT),
        (quote(KEY, safe=""), KEY),
        (KEY.rpartition("/")[2], KEY),
        (json.dumps({"key": KEY, "parents": []}), "json.loads"),
    ],
)
def test_a_key_in_other_text_is_refused_and_named(text: str, meant: str) -> None:
    with pytest.raises(InvalidReference) as caught:
        ParsedReference.of(text)
    assert meant in str(caught.value).rpartition("; ")[2]


@pytest.mark.parametrize("text", [f"{KEY}0", KEY[:-1], f"{KEY}\n{CHECKPOINT}", "F/1/train/2", ""])
def test_where_no_one_key_is_meant_none_is_named(text: str) -> None:
    with pytest.raises(InvalidReference, match=r"<n>$"):
        ParsedReference.of(text)


def test_a_url_that_does_not_end_in_the_key_names_no_root(store: Store, file: Path) -> None:
    assert root_of({**store.save_model(file), "url": "elsewhere"}) is None


def test_the_gang_that_a_save_names_is_in_the_reference(store: Store, file: Path) -> None:
    place = CheckpointPlace("F", "train", "0" * 12, "1" * 12)
    model = store.save_model(file, pathspec="F/1/train/3", gang="F/1/train/2")
    checkpoint = CheckpointWriter(store, place, "0" * 8, 0, "F/1/train/3", gang="F/1/train/2").save(file, label="l")
    for saved in (model, checkpoint):
        assert saved["gang"] == store.info(saved["key"])["gang"] == "F/1/train/2"
    assert "gang" not in store.save_model(file)


def test_a_store_shows_its_root(store: Store) -> None:
    assert repr(store) == f"Store({store.root!r})"
