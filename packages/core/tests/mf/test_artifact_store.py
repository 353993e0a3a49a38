"""What users write into `config=`, which store holds where, and where the credentials are."""

from __future__ import annotations

import json
import os
import pickle
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from metaflow.plugins.aws import aws_client
from metaflow.plugins.datastores.local_storage import LocalStorage

from metaflow_artifacts import ArtifactError, ArtifactNotFound, ArtifactWarning, StorageError, UsageError, open_store
from metaflow_artifacts._mf import datastore, roots, stores
from metaflow_artifacts._mf.artifact_store import ENVIRONMENT_VARIABLE, FlowStore, config_of, set_flow_store
from metaflow_artifacts._mf.datastore import open_with, require_client, s3_client, store_of_flow
from metaflow_artifacts._mf.store_config import StoreConfig
from metaflow_artifacts._mf.stores import default_store, store_for
from metaflow_artifacts._storage.handover import NotPortable, hand_over
from metaflow_artifacts.testing.seaweedfs import SeaweedServer
from metaflow_extensions.artifacts_core.plugins.store_deco.api import artifact_store_from

SECRET = "marker-81b5e0"


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # Set first, so that what a test sets is removed again.
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "")
    monkeypatch.delenv(ENVIRONMENT_VARIABLE)
    monkeypatch.setattr("metaflow.metaflow_config.USER", "tester")
    yield
    for cached in (datastore.open_with, stores._storage):
        cached.cache_clear()


@pytest.fixture
def configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The root of Metaflow's configured datastore."""
    root = str(tmp_path / "configured")
    monkeypatch.setattr(LocalStorage, "get_datastore_root_from_config", classmethod(lambda *_, **__: root))
    return root


def run_with(kind: str, root: object) -> Any:
    tags = {f"artifact-store-ds-type:{kind}", f"artifact-store-ds-root:{root}", "metaflow_version:2"}
    return SimpleNamespace(pathspec="F/1", system_tags=tags)


def task_with(**metadata: object) -> Any:
    return SimpleNamespace(pathspec="F/1/s/2", metadata_dict=metadata)


PLAIN_RUN: Any = SimpleNamespace(pathspec="F/1", system_tags={"metaflow_version:2"})


@pytest.mark.parametrize(
    ("kind", "config", "words"),
    [
        (None, {"root": "s3://b/x"}, "has no type; pass type= with one of s3 .also s3-compatible and coreweave., gs"),
        ("s4", {"root": "s3://b/x"}, "the type 's4' is unknown; pass s3"),
        (7, {"root": "s3://b/x"}, "the type 7 is unknown"),
        ("s3", None, "config is nothing; pass a dict, or a function that returns one"),
        ("s3", "s3://b/x", "config is a str; pass a dict"),
        ("s3", lambda: None, "config is a function that returned nothing; pass a dict"),
        ("s3", {}, "config has no 'root'; pass s3://BUCKET/PREFIX"),
        ("s3", {"root": ""}, "config has no 'root'; pass s3://BUCKET/PREFIX"),
        ("s3", {"root": 7}, "config.'root'. is a int; pass s3://BUCKET/PREFIX"),
        ("s3", {"root": "bucket/x"}, "config.'root'. is 'bucket/x', which names no bucket; pass s3://BUCKET/PREFIX"),
        ("gs", {"root": "s3://b/x"}, "which names no bucket; pass gs://BUCKET/PREFIX"),
        ("gs", {"root": f"s3://{SECRET}@b/x"}, "is 's3://…@b/x', which names no bucket; pass gs://BUCKET/PREFIX"),
        ("azure", {"root": "/x"}, "which names no container; pass CONTAINER/PREFIX"),
        ("local", {"root": "s3://b/x"}, "which is no directory; pass a directory, or another type"),
        ("s3", {"root": "s3://b/x", "rol_arn": SECRET}, "unknown key 'rol_arn'; a store in s3 takes root, role_arn, "),
        ("gs", {"root": "gs://b/x", "role_arn": SECRET}, "unknown key 'role_arn'; a store in gs takes root$"),
        ("s3", {"root": "s3://b/x", "role_arn": {SECRET: 1}}, "config.'role_arn'. is a dict; pass a text"),
        ("s3", {"root": "s3://b/x", "client_params": SECRET}, "config.'client_params'. is a str; pass a dict"),
        ("s3", {"root": "s3://b/x", "session_vars": [SECRET]}, "config.'session_vars'. is a list; pass a dict"),
    ],
)
def test_a_config_that_cannot_be_used_is_one_sentence(kind: Any, config: Any, words: str) -> None:
    with pytest.raises(ArtifactError, match=f"^@with_artifact_store.*{words}") as raised:
        FlowStore(kind, config).check()
    assert "\n" not in str(raised.value)
    assert SECRET not in str(raised.value)


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"endpoint": "x", "aws_secret_access_key": SECRET}, "client_params as given: .*'endpoint'"),
        ({"endpoint_url": "no url"}, "Invalid endpoint"),
        ({"config": {"signature": "s3v4"}}, "client_params as given: .*'signature'"),
    ],
)
def test_client_params_that_boto3_does_not_take_are_named(params: dict[str, Any], words: str) -> None:
    store = FlowStore("s3", {"root": "s3://bucket/x", "client_params": params})
    with pytest.raises(ArtifactError, match=f"^@with_artifact_store.type='s3'.: .*{words}") as raised:
        require_client(store.config(), store.where)
    assert SECRET not in str(raised.value)


def test_what_json_cannot_hold_is_named_before_the_run() -> None:
    store = FlowStore("s3", {"root": "s3://bucket/x", "client_params": {"config": object()}})
    with pytest.raises(ArtifactError, match=r"config\['client_params'\] cannot be given to subprocesses"):
        store.check()


def test_a_function_that_raises_is_named_and_called_again() -> None:
    def config() -> dict[str, str]:
        return {"root": os.environ["NO_SUCH_VARIABLE"]}

    store = FlowStore("s3", config)
    with pytest.raises(ArtifactError, match=r"the function that config= names raised KeyError: 'NO_SUCH_VARIABLE'; it"):
        store.config()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_SUCH_VARIABLE", "s3://bucket/x")
        assert store.config().root == "s3://bucket/x"


def test_a_missing_sdk_is_said_before_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roots, "find_spec", lambda name: None)
    with pytest.raises(StorageError, match=r"type='gcs'.: a store in gs needs google-cloud-storage: pip install"):
        FlowStore("gcs", {"root": "gs://bucket/x"})


@pytest.mark.parametrize("given", ["s3", "s3-compatible", "coreweave"])
def test_types_of_s3_are_one(given: str) -> None:
    store = FlowStore(given, {"root": "s3://bucket/x/"})
    assert store.tags() == ["artifact-store-ds-type:s3", "artifact-store-ds-root:s3://bucket/x"]


def test_a_root_of_azure_is_taken_as_metaflow_and_as_references_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from metaflow import metaflow_config

    endpoint = "https://there.blob.core.windows.net"
    monkeypatch.setattr(metaflow_config, "AZURE_STORAGE_BLOB_SERVICE_ENDPOINT", endpoint)
    for given in ("container/x", f"{endpoint}/container/x"):
        config = StoreConfig.read("azure", {"root": given}, "here")
        assert (config.root, config.given_root) == (f"{endpoint}/container/x", given)


def test_credentials_are_in_no_repr_and_no_pickle(monkeypatch: pytest.MonkeyPatch) -> None:
    params = {"aws_access_key_id": "a", "aws_secret_access_key": SECRET, "region_name": "eu-west-1"}
    config = StoreConfig.read("s3", {"root": "s3://bucket/x", "client_params": params}, "here")
    store = open_with(config.root, config)
    assert SECRET not in repr(config) + repr(store) + repr(store.storage)
    assert SECRET.encode() not in pickle.dumps(store)
    with pytest.raises(TypeError, match="is not pickled"):
        pickle.dumps(config)


def test_the_flows_store_takes_the_place_of_its_datastore(tmp_path: Path) -> None:
    flow_datastore = SimpleNamespace(TYPE="hdfs", datastore_root="there")
    set_flow_store(flow_datastore, FlowStore("local", {"root": tmp_path / "store"}))
    datastore.require_usable(flow_datastore, "model", "train")
    assert store_of_flow(flow_datastore).root == str(tmp_path / "store")


def test_options_reach_subprocesses_by_a_private_file_that_goes_with_the_task(tmp_path: Path, configured: str) -> None:
    params = {"aws_secret_access_key": SECRET, "aws_access_key_id": "a"}
    flow = FlowStore("s3", {"root": "s3://bucket/x", "client_params": params})
    flow.export()
    entry = json.loads(os.environ[ENVIRONMENT_VARIABLE])["artifact_store"]
    assert SECRET not in os.environ[ENVIRONMENT_VARIABLE]
    assert stat.S_IMODE(os.stat(entry["file"]).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(os.path.dirname(entry["file"])).st_mode) == 0o700
    code = "from metaflow_artifacts._mf.artifact_store import inherited_store as s; print(dict(s().options))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == repr({"client_params": params})
    assert default_store().root == "s3://bucket/x"
    del flow
    assert not os.path.exists(entry["file"])
    with pytest.raises(StorageError, match=r"the settings of the artifact store s3://bucket/x are no longer at /"):
        default_store()


def test_the_file_is_written_anew_as_a_whole(tmp_path: Path) -> None:
    values = iter("ab")
    flow = FlowStore("s3", lambda: {"root": "s3://bucket/x", "role_arn": next(values)})
    flow.export()
    path = json.loads(os.environ[ENVIRONMENT_VARIABLE])["artifact_store"]["file"]
    registered: list[Any] = []
    metadata = SimpleNamespace(register_metadata=lambda *arguments: registered.extend(arguments[3]))
    for _ in range(2):
        # Two decorators of one step: the function is called once more, since @secrets may have set what it reads.
        flow.enter(metadata, "1", "s", "2", 0)
    assert json.loads(Path(path).read_text()) == {"role_arn": "b"}
    assert os.listdir(os.path.dirname(path)) == ["options.json"]
    assert {(one.field, one.value) for one in registered} == {
        ("artifact-store-ds-type", "s3"),
        ("artifact-store-ds-root", "s3://bucket/x"),
    }


@pytest.fixture
def content(tmp_path: Path) -> Path:
    (tmp_path / "content").write_text("x")
    return tmp_path / "content"


@pytest.mark.parametrize("by", ["run", "task", "task without metadata", "config"])
def test_a_block_leads_to_the_store_of_a_run(by: str, tmp_path: Path, configured: str, content: Path) -> None:
    there = tmp_path / "there"
    saved = open_store(there).save_model(content)
    given: dict[str, Any] = {
        "run": {"run": run_with("local", there)},
        "task": {"task": task_with(**{"artifact-store-ds-type": "local", "artifact-store-ds-root": str(there)})},
        "task without metadata": {
            "task": SimpleNamespace(**vars(task_with()), system_tags=run_with("local", there).system_tags)
        },
        "config": {"run": run_with("local", tmp_path / "moved away"), "config": lambda: {"root": str(there)}},
    }[by]
    with artifact_store_from(**given):
        assert default_store().root == str(there)
        assert store_for(saved["key"], open_store(configured)).root == str(there)
        with artifact_store_from(run=PLAIN_RUN):
            assert default_store().root == configured
        assert default_store().root == str(there)
    assert default_store().root == configured


def test_a_block_ends_with_an_error_too(tmp_path: Path, configured: str) -> None:
    with pytest.raises(ZeroDivisionError), artifact_store_from(run=run_with("local", tmp_path)):
        raise ZeroDivisionError
    assert default_store().root == configured


def test_other_threads_use_the_open_block_and_their_own_first(tmp_path: Path, configured: str) -> None:
    one, two = (run_with("local", tmp_path / name) for name in ("one", "two"))
    found: list[str] = []

    def ask() -> None:
        try:
            found.append(os.path.basename(default_store().root))
        except UsageError as error:
            found.append(str(error))

    def ask_in(run: Any, *then: Any) -> None:
        with artifact_store_from(run=run):
            ask()
            for one in then:
                in_thread(*one)

    def in_thread(function: Any, *arguments: Any) -> None:
        thread = threading.Thread(target=function, args=arguments)
        thread.start()
        thread.join()

    with artifact_store_from(run=one):
        in_thread(ask)
        # In the block of a second thread, a third one has none of its own.
        in_thread(ask_in, two, (ask,))
        in_thread(ask_in, one, (ask,))
        ask()
    in_thread(ask)
    assert [one for one in found if "different stores" not in one] == ["one", "two", "one", "one", "one", "configured"]
    assert "threads have opened artifact_store_from for different stores" in found[2]


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({}, ValueError, "pass either run= or task="),
        ({"run": PLAIN_RUN, "task": task_with()}, ValueError, "pass either run= or task="),
        ({"run": 7}, ArtifactError, "run= is a int; pass a metaflow.Run, or its pathspec"),
        ({"task": PLAIN_RUN}, ArtifactError, "task= is a SimpleNamespace; pass a metaflow.Task"),
        ({"run": run_with("hdfs", "x")}, ArtifactError, "the type 'hdfs' is unknown"),
        ({"run": run_with("s3", "s3://b/x"), "config": {"type": "s3"}}, ArtifactError, "unknown key 'type'"),
        ({"run": run_with("s3", "s3://b/x"), "config": "x"}, ArtifactError, "config is a str; pass a dict"),
        ({"run": "NoSuchFlow/7"}, ArtifactNotFound, "Metaflow knows no run NoSuchFlow/7"),
    ],
)
def test_a_block_that_cannot_be_opened_says_why(given: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=f"^artifact_store_from: .*{words}"), artifact_store_from(**given):
        pytest.fail("the block was entered")


def test_a_config_for_a_run_without_such_a_store_is_left_out_with_a_warning(configured: str) -> None:
    with (
        pytest.warns(ArtifactWarning, match=r"F/1 has used no @with_artifact_store; config= is left out") as warned,
        artifact_store_from(run=PLAIN_RUN, config={"role_arn": SECRET}),
    ):
        assert default_store().root == configured
    assert warned[0].filename == __file__


def test_a_block_without_options_uses_those_of_the_task_for_the_same_store(configured: str) -> None:
    flow = FlowStore("s3", {"root": "s3://bucket/x", "client_params": {"region_name": "eu-west-1"}})
    flow.export()
    with artifact_store_from(run=run_with("s3", "s3://bucket/x")):
        assert default_store() is default_store()
        assert default_store() is open_with("s3://bucket/x", flow.config())


def test_a_task_saves_with_its_own_options_in_a_block_for_the_same_store(configured: str) -> None:
    params = [{"region_name": name} for name in ("eu-west-1", "eu-west-2", "eu-west-3")]
    flow_datastore = SimpleNamespace(TYPE="local", datastore_root=configured)
    flow = FlowStore("s3", {"root": "s3://bucket/x", "client_params": params[0]})
    set_flow_store(flow_datastore, flow)
    flow.export()
    run = run_with("s3", "s3://bucket/x")

    def ask() -> None:
        # Another thread's options are not for this one, which has those of the task.
        assert config_of("s3://bucket/x") == flow.config()

    with artifact_store_from(run=run, config={"client_params": params[1]}):
        assert store_of_flow(flow_datastore) is open_with("s3://bucket/x", flow.config())
        assert config_of("s3://bucket/x") != flow.config()
        with artifact_store_from(run=PLAIN_RUN):
            # A reference may lead to the store of the block around this one.
            assert config_of("s3://bucket/x") != flow.config()
        with ThreadPoolExecutor(1) as pool:
            pool.submit(ask).result()


def test_a_store_of_a_config_works_in_a_worker_of_the_task(
    s3_server: SeaweedServer, tmp_path: Path, content: Path, configured: str
) -> None:
    params = {
        "endpoint_url": s3_server.endpoint,
        "aws_access_key_id": s3_server.access_key,
        "aws_secret_access_key": s3_server.secret_key,
        "region_name": "us-east-1",
    }
    flow = FlowStore("s3-compatible", {"root": f"{s3_server.root}/{tmp_path.name}", "client_params": params})
    flow.export()
    store = default_store()
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        saved = pool.submit(store.save_model, content).result()
    assert Path(store.load(saved, tmp_path / "out"), "content").read_text() == "x"


OTHER_PROCESS = """
import pickle, sys
pickle.load(sys.stdin.buffer).open(lambda question: None).put("handed", b"over")
print("metaflow" in sys.modules)
"""


@pytest.mark.parametrize("given", ["by a config", "by Metaflow's configuration"])
def test_a_store_is_used_by_a_process_that_does_not_import_metaflow(
    s3_server: SeaweedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    root = f"{s3_server.root}/{tmp_path.name}"
    config = None
    if given == "by a config":
        params = {"aws_access_key_id": s3_server.access_key, "aws_secret_access_key": s3_server.secret_key}
        config = StoreConfig.read("s3", {"root": root, "client_params": params}, "here")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "another")
    storage = open_with(root, config).storage
    portable = pickle.dumps(hand_over(storage).portable)
    done = subprocess.run([sys.executable, "-c", OTHER_PROCESS], input=portable, capture_output=True, check=True)
    assert done.stdout == b"False\n"
    assert storage.get("handed") == b"over"

    class Provider(aws_client.Boto3ClientProvider):
        """One that may register hooks."""

    monkeypatch.setattr(aws_client, "cached_provider_class", Provider)
    with pytest.raises(NotPortable):
        hand_over(storage)


def test_a_role_without_credentials_to_assume_it_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    config = StoreConfig.read("s3", {"root": "s3://bucket/x", "role_arn": "arn:aws:iam::1:role/x"}, "here")
    with pytest.raises(StorageError, match="no AWS credentials are found with which the role arn:aws:iam::1:role/x"):
        s3_client(None, config)
