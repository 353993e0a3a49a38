"""What the settings of the node's cache say, and which are refused."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from metaflow_artifacts import InvalidInput, Store
from metaflow_artifacts._storage import LocalStorage
from metaflow_artifacts._transfer.cache import CACHE, CACHE_GB, cache_from
from metaflow_artifacts._transfer.cache_files import CacheFiles


def test_the_settings(tmp_path: Path) -> None:
    assert cache_from({}) is cache_from({CACHE: "", CACHE_GB: "no number"}) is None
    small = cache_from({CACHE: str(tmp_path), CACHE_GB: "0.5"})
    assert small is not None
    assert small.limit(0) == 500_000_000
    assert small is cache_from({CACHE: str(tmp_path), CACHE_GB: 0.5})
    assert pickle.loads(pickle.dumps(Store(LocalStorage(tmp_path), cache=small))).cache is small


def test_the_default_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = cache_from({CACHE: str(tmp_path)})
    assert cache is not None
    monkeypatch.setattr(CacheFiles, "free", lambda files: (1000 * 10**9, 2000 * 10**9))
    assert cache.limit(0) == 50 * 10**9
    monkeypatch.setattr(CacheFiles, "free", lambda files: (10 * 10**9, 2000 * 10**9))
    assert cache.limit(20 * 10**9) == 15 * 10**9


@pytest.mark.parametrize("text", ["much", "0", "-1", "nan", "inf", "1e300", "5 GB", "1e-10", []])
def test_a_limit_that_is_no_number_is_refused(text: object, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="METAFLOW_ARTIFACTS_CACHE_GB: expected a number"):
        cache_from({CACHE: str(tmp_path), CACHE_GB: text})


@pytest.mark.parametrize("text", ["a\0b", "\ud800", "s3://bucket/cache", "~no-such-user/cache"])
def test_a_directory_that_is_no_path_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="METAFLOW_ARTIFACTS_CACHE: expected the path"):
        cache_from({CACHE: text})


def test_a_relative_directory_needs_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(InvalidInput, match="set an absolute path"):
        cache_from({CACHE: "relative"})
    assert cache_from({CACHE: str(tmp_path)}) is not None


def test_a_store_that_was_pickled_before_there_was_a_cache_has_none(tmp_path: Path) -> None:
    store = Store(LocalStorage(tmp_path))
    del store.__dict__["cache"]
    assert pickle.loads(pickle.dumps(store)).cache is None
