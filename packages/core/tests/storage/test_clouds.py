"""Azure and GCS without a server: what is said where the SDK is missing, and what is sent where."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest

from metaflow_artifacts._storage import open_storage
from metaflow_artifacts.errors import StorageError

ROOTS = {
    "azure": "https://account.blob.core.windows.net/container/prefix",
    "gs": "gs://bucket/prefix",
}
SDKS = {
    "azure": ("azure", "azure.core", "azure.core.exceptions", "azure.identity", "azure.storage.blob"),
    "gs": ("google.auth", "google.auth.exceptions", "google.api_core", "google.api_core.exceptions", "google.cloud"),
}
SAID = {
    "azure": "pip install azure-storage-blob azure-identity",
    "gs": "pip install google-cloud-storage",
}


@pytest.mark.parametrize("kind", ROOTS)
def test_a_missing_sdk_is_named_and_not_asked_for_again_and_again(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith(SDKS[kind])]:
        monkeypatch.delitem(sys.modules, name)
    for name in SDKS[kind]:
        monkeypatch.setitem(sys.modules, name, None)
    storage = open_storage(ROOTS[kind])
    calls: list[Callable[[], object]] = [
        lambda: storage.get("a"),
        lambda: storage.put("a", b""),
        lambda: storage.stat("a"),
        lambda: storage.touch("a"),
        lambda: storage.delete(["a"]),
        lambda: list(storage.list("")),
        storage.keeps_versions,
    ]
    for call in calls:
        with pytest.raises(StorageError) as caught:
            call()
        assert str(caught.value).startswith("cannot ")
        assert ROOTS[kind] in str(caught.value)
        assert str(caught.value).endswith(SAID[kind])
    with pytest.raises(StorageError, match=SAID[kind]), storage.open("a"):
        pass


@pytest.mark.parametrize("kind", ROOTS)
def test_nothing_of_an_sdk_is_imported_before_the_first_request(kind: str) -> None:

    code = (
        "import sys; from metaflow_artifacts import open_store; open_store(sys.argv[1]);"
        "print([name for name in sys.modules if name.split('.')[0] in ('azure', 'google', 'requests', 'botocore')])"
    )
    done = subprocess.run([sys.executable, "-c", code, ROOTS[kind]], capture_output=True, text=True, check=True)
    # google-cloud-storage has a namespace package that Python makes at its start.
    loaded = [name for name in ("azure.core", "google.cloud.storage", "requests") if f"'{name}'" in done.stdout]
    assert loaded == [], done.stdout
