"""The store of a flow, of a reference and of the configuration, and the S3 client that Metaflow configures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from metaflow_artifacts import ArtifactWarning, StorageError, open_store
from metaflow_artifacts._mf import roots
from metaflow_artifacts._mf.datastore import require_usable, store_at, store_of_flow
from metaflow_artifacts._mf.stores import store_for
from metaflow_artifacts.testing.seaweedfs import SeaweedServer

KEY = "mf.models/models/artifacts/x_" + "0" * 32


def reference(root: str) -> dict[str, Any]:
    return {
        "key": KEY,
        "uuid": "x_" + "0" * 32,
        "type": "model",
        "pathspec": "",
        "attempt": 0,
        "created_on": "2026-01-01T00:00:00+00:00",
        "size": 0,
        "url": f"{root}/{KEY}",
        "metadata": {},
        "label": "x",
    }


def test_a_datastore_that_is_not_supported_is_named() -> None:
    for call in (
        lambda: store_at("hdfs", "there"),
        lambda: require_usable(SimpleNamespace(TYPE="hdfs", datastore_root="there"), "model", "train"),
    ):
        with pytest.raises(StorageError, match=r"the datastore hdfs \(there\) .* --datastore s3") as raised:
            call()
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("kind", "missing", "said"),
    [
        ("azure", ["azure.storage.blob"], "pip install azure-storage-blob (or metaflow-artifacts[azure])"),
        ("azure", ["azure.storage.blob", "azure.identity"], "pip install azure-storage-blob azure-identity "),
        ("gs", ["google.cloud.storage"], "pip install google-cloud-storage (or metaflow-artifacts[gcs])"),
    ],
)
def test_a_missing_sdk_is_said_in_one_sentence(
    kind: str, missing: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found(name: str) -> object | None:
        return None if name in missing else object()

    monkeypatch.setattr(roots, "find_spec", found)
    root = "gs://there" if kind == "gs" else "https://there.blob.core.windows.net/container"
    flow_datastore = SimpleNamespace(TYPE=kind, datastore_root=root)
    with pytest.raises(StorageError, match=f"the datastore {kind} needs .*") as raised:
        require_usable(flow_datastore, "model", "train")
    assert said in str(raised.value)
    missing.clear()
    require_usable(flow_datastore, "model", "train")


@pytest.mark.parametrize(
    ("kind", "root", "words"),
    [
        ("hdfs", "there", r"the datastore hdfs \(there\) .* run the flow with --datastore s3, azure, gs or local"),
        ("azure", "container/x", "the datastore azure has no endpoint; set METAFLOW_AZURE_STORAGE_BLOB_SERVICE_"),
        ("azure", "/x", "names no container; set METAFLOW_DATASTORE_SYSROOT_AZURE to CONTAINER/PREFIX"),
        ("gs", "bucket/x", "names no bucket; set METAFLOW_DATASTORE_SYSROOT_GS to gs://BUCKET/PREFIX"),
        ("s3", "bucket/x", "names no bucket; set METAFLOW_DATASTORE_SYSROOT_S3"),
        ("s3", None, "has no root; set METAFLOW_DATASTORE_SYSROOT_S3"),
    ],
)
def test_a_datastore_that_cannot_work_is_refused_for_a_step(kind: str, root: str | None, words: str) -> None:
    with pytest.raises(StorageError, match=f"^step train has @model, but .*{words}"):
        require_usable(SimpleNamespace(TYPE=kind, datastore_root=root), "model", "train")


@pytest.mark.parametrize(
    ("kind", "root"),
    [
        ("s3", "https://me:SECRET@host/x"),
        ("gs", "s3://b/x?Signature=SECRET"),
        ("hdfs", "x://SECRET@b"),
        ("s3", "s3:///me:SECRET@b"),
    ],
)
def test_a_secret_in_a_root_is_not_shown(kind: str, root: str) -> None:
    with pytest.raises(StorageError, match=r"//.*…") as caught:
        store_at(kind, root)
    assert "SECRET" not in str(caught.value)


def test_a_usable_datastore_is_not_touched_before_a_run(tmp_path: Path) -> None:
    for kind, root in (("local", str(tmp_path / "new")), ("spin", str(tmp_path / "new")), ("s3", "s3://bucket/x")):
        require_usable(SimpleNamespace(TYPE=kind, datastore_root=root), "model", "train")
    assert not (tmp_path / "new").exists()


def test_a_root_that_is_not_configured_is_named() -> None:
    with pytest.raises(StorageError, match="METAFLOW_DATASTORE_SYSROOT_S3"):
        store_at("s3", None)


@pytest.mark.parametrize("root", ["s3://", "s3:", "s3:/", "s3:///prefix", "bucket/prefix", "/data"])
def test_a_root_without_a_bucket_is_never_a_local_directory(root: str) -> None:
    with pytest.raises(StorageError, match="names no bucket; set METAFLOW_DATASTORE_SYSROOT_S3"):
        store_at("s3", root)


def test_the_store_of_a_flow_is_absolute_and_one_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    flow_datastore = SimpleNamespace(TYPE="local", datastore_root="here/.metaflow")
    store = store_of_flow(flow_datastore)
    assert store.root == str(tmp_path / "here" / ".metaflow")
    assert store_at("local", store.root) is store
    assert store_at("s3", "s3://bucket/prefix/").root == "s3://bucket/prefix"


def test_a_reference_is_loaded_from_where_its_url_says(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    default = store_at("local", str(here))
    assert store_for(KEY, default) is default
    assert store_for(reference(str(here)), default) is default
    (tmp_path / "file").write_text("x")
    elsewhere = open_store(there).save_model(tmp_path / "file", "x")
    assert store_for(elsewhere, default).root == str(there)
    (tmp_path / "link").symlink_to(here)
    assert store_for(reference(str(tmp_path / "link")), default) is default
    assert store_for({**reference(str(there)), "url": "https://example.org/x"}, default) is default
    # No request: there is no such server.
    remote = SimpleNamespace(root="s3://bucket/prefix")
    assert store_for(reference("s3://bucket/prefix/"), remote) is remote  # type: ignore[arg-type,comparison-overlap]


def test_our_warnings_pass_the_filter_by_which_metaflow_hides_all(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.resetwarnings()
        warnings.filterwarnings("ignore")
        store_at("local", str(tmp_path / "one"))
        warnings.simplefilter("error")
        store_at("local", str(tmp_path / "two"))
        with pytest.raises(UserWarning):
            warnings.warn("ours", ArtifactWarning, stacklevel=1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.resetwarnings()
        warnings.filterwarnings("ignore")
        store_at("local", str(tmp_path / "three"))
        warnings.warn("ours", ArtifactWarning, stacklevel=1)
        warnings.warn("another's", UserWarning, stacklevel=1)
    assert [str(one.message) for one in caught] == ["ours"]


CLIENT = """
import json
from metaflow.metaflow_config import DATATOOLS_CLIENT_PARAMS
from metaflow_artifacts._mf.datastore import s3_client, store_at
before = repr(DATATOOLS_CLIENT_PARAMS)
client = s3_client()
config = client.meta.config
print(json.dumps({
    "endpoint": client.meta.endpoint_url,
    "retries": config.retries,
    "connections": config.max_pool_connections,
    "connect": config.connect_timeout,
    "untouched": repr(DATATOOLS_CLIENT_PARAMS) == before,
    "written": store_at("s3", "s3://bucket").storage._written,
}))
"""


def client_of(**variables: str) -> dict[str, Any]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("METAFLOW", "AWS"))}
    environment = {**kept, "METAFLOW_HOME": os.devnull, "AWS_DEFAULT_REGION": "us-east-1", **variables}
    done = subprocess.run([sys.executable, "-c", CLIENT], env=environment, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_the_s3_client_is_set_up_as_metaflow_is_configured() -> None:
    plain = client_of()
    assert plain["endpoint"].endswith("amazonaws.com")
    # Requests are repeated by the storage, not by botocore as well.
    assert plain["retries"]["total_max_attempts"] == 1
    assert plain["connections"] > 10
    assert plain["untouched"] is True
    assert plain["written"] == {}

    chosen = client_of(
        METAFLOW_S3_ENDPOINT_URL="http://127.0.0.1:1",
        METAFLOW_S3_SERVER_SIDE_ENCRYPTION="aws:kms",
        METAFLOW_S3_CLIENT_RETRY_CONFIG='{"max_attempts": 3, "mode": "adaptive"}',
        METAFLOW_DATATOOLS_CLIENT_PARAMS='{"config": {"connect_timeout": 7}}',
    )
    assert chosen["endpoint"] == "http://127.0.0.1:1"
    assert chosen["retries"]["mode"] == "adaptive"
    assert chosen["connect"] == 7
    assert chosen["connections"] == plain["connections"]
    assert chosen["untouched"] is True
    assert chosen["written"] == {"ServerSideEncryption": "aws:kms"}


def test_a_default_store_on_s3_is_reached(s3_server: SeaweedServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("content")
    saved = open_store(f"{s3_server.root}/metaflow", client=s3_server.client).save_model(tmp_path / "file", "x")
    variables = {**s3_server.environment(), "METAFLOW_DEFAULT_DATASTORE": "s3", "METAFLOW_HOME": os.devnull}
    del variables["AWS_ENDPOINT_URL_S3"]
    code = (
        "import sys\n"
        "from metaflow_artifacts._mf.stores import default_store\n"
        "print(default_store().read_file(sys.argv[1], 'file').decode())"
    )
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("METAFLOW", "AWS"))}
    done = subprocess.run(
        [sys.executable, "-c", code, saved["key"]],
        env={**kept, **variables},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "content\n"


def test_core_alone_does_not_import_metaflow() -> None:
    code = "import sys, metaflow_artifacts._store.store as _; "
    code += "print([name for name in sys.modules if name.startswith('metaflow.')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
