"""What a save leaves out, and what it does not."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from metaflow_artifacts import Store
from metaflow_artifacts.errors import ArtifactWarning, SourceError


def test_pipes_and_other_non_files_are_left_out_with_one_warning(store: Store, tmp_path: Path) -> None:
    root = tmp_path / "source"
    root.mkdir()
    (root / "weights").write_bytes(b"w")
    os.mkfifo(root / "pipe")
    (root / "last.ckpt").symlink_to("gone")
    (root / "itself").symlink_to("itself")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(root / "socket"))
        with pytest.warns(ArtifactWarning) as caught:
            saved = store.save_model(root)
    assert len(caught) == 1
    text = str(caught[0].message)
    assert "last.ckpt' is a link to 'gone', which leads nowhere" in text
    assert "pipe' is a pipe" in text
    assert "socket' is a socket" in text
    assert "itself' is a link to 'itself', which leads nowhere" in text
    assert [file.path for file in store.manifest(saved).files] == ["weights"]


def test_what_a_killed_load_left_is_not_saved(store: Store, tmp_path: Path) -> None:
    root = tmp_path / "source"
    (root / "sub" / ".metaflow_artifacts_abc").mkdir(parents=True)
    (root / ".metaflow_artifacts_x").mkdir()
    (root / ".metaflow_artifacts_x" / "half").write_bytes(b"half")
    (root / "sub" / ".metaflow_artifacts_abc" / "half").write_bytes(b"half")
    (root / "weights").write_bytes(b"w")
    manifest = store.manifest(store.save_model(root))
    assert [file.path for file in manifest.files] == ["weights"]
    assert list(manifest.dirs) == ["sub"]


def test_a_file_whose_name_begins_like_ours_is_saved(store: Store, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / ".metaflow_artifacts_config.json").write_text("{}")
    manifest = store.manifest(store.save_model(tmp_path / "source"))
    assert [file.path for file in manifest.files] == [".metaflow_artifacts_config.json"]


def test_a_directory_of_which_nothing_is_kept_is_saved_as_empty(store: Store, tmp_path: Path) -> None:
    for name in ("pipes", "links", "stages"):
        (tmp_path / "source" / name).mkdir(parents=True)
    os.mkfifo(tmp_path / "source" / "pipes" / "pipe")
    (tmp_path / "source" / "links" / "link").symlink_to("gone")
    (tmp_path / "source" / "stages" / ".metaflow_artifacts_x").mkdir()
    with pytest.warns(ArtifactWarning):
        saved = store.save_model(tmp_path / "source")
    assert list(store.manifest(saved).dirs) == ["links", "pipes", "stages"]


def test_warnings_that_are_errors_cost_no_save(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "source").mkdir()
    os.mkfifo(tmp_path / "source" / "pipe")
    # In these tests, every warning is an error.
    saved = store.save_model(tmp_path / "source", metadata={"when": object})
    assert store.info(saved)["key"] == saved["key"]
    assert "ArtifactWarning: saved" in capsys.readouterr().err


def test_links_that_lead_up_are_an_error_and_a_file_may_have_many_names(store: Store, tmp_path: Path) -> None:
    root = tmp_path / "source"
    root.mkdir()
    (root / "a").write_bytes(b"x" * 1000)
    os.link(root / "a", root / "b")
    store.load(store.save_model(root), tmp_path / "out")
    assert (tmp_path / "out" / "a").read_bytes() == (tmp_path / "out" / "b").read_bytes() == b"x" * 1000


@pytest.mark.parametrize("place", ["a file", "in a directory", "in a mapping"])
def test_a_file_that_only_seems_to_be_empty_is_an_error(store: Store, tmp_path: Path, place: str) -> None:
    source: object = "/proc/self/status"
    if place == "in a directory":
        (tmp_path / "link").symlink_to("/proc/self/status")
        source = tmp_path
    elif place == "in a mapping":
        source = {"weights": b"w", "status": Path("/proc/self/status")}
    with pytest.raises(SourceError, match=r"says that it is empty, but it has content.*; save a copy of it"):
        store.save_model(source)  # type: ignore[arg-type]
    assert list(store.list()) == []


def test_a_file_that_grows_after_it_was_found_is_no_error(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    log.touch()
    real = os.open

    def append_and_open(path: object, *options: object) -> int:
        if path == str(log) and not log.stat().st_size:
            log.write_bytes(b"begin")
        return real(path, *options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", append_and_open)
    assert [file.size for file in store.manifest(store.save_model(tmp_path)).files] == [5]
