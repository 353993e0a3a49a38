"""A reference that names a host of somebody else sends it no credential: nobody connects to it at all."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from cloudlib import Cloud

from metaflow_artifacts import open_store
from metaflow_artifacts.testing.flows import FlowRunner

LOAD = """
import json, sys
from metaflow import load_model
load_model(json.loads(sys.argv[1]), sys.argv[2])
"""
COMMAND = "import sys; from metaflow_artifacts._cli import main; sys.exit(main(sys.argv[1:]))"


class Listener:
    """Somebody else's host: it counts who connects."""

    def __init__(self) -> None:
        self.connections = 0
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self.thread = threading.Thread(target=self._accept, daemon=True)
        self.thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self.socket.accept()
            except OSError:
                return
            self.connections += 1
            client.close()

    def close(self) -> None:
        self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()
        self.thread.join()


@pytest.fixture
def listener() -> Iterator[Listener]:
    listener = Listener()
    yield listener
    listener.close()


@pytest.mark.parametrize("scheme", ["https", "http"])
def test_a_foreign_host_gets_nothing(
    cloud: Cloud, runner: FlowRunner, listener: Listener, tmp_path: Path, scheme: str
) -> None:
    (tmp_path / "model").write_bytes(b"content")
    saved = open_store(tmp_path / "other").save_model(tmp_path / "model")
    foreign = f"{scheme}://127.0.0.1:{listener.port}/devstoreaccount1/container/prefix"
    reference = json.dumps({**saved, "url": f"{foreign}/{saved['key']}"})
    said = runner.python(LOAD, reference, "out", fails=True).output
    assert "no credentials are sent to another" in said
    assert foreign in said
    assert cloud.root in said
    for arguments in (["ls", "--root", foreign], ["show", f"{foreign}/{saved['key']}"]):
        said = runner.python(COMMAND, *arguments, fails=True).output
        assert "no credentials are sent to another" in said
        assert len(said.splitlines()) == 1
    assert listener.connections == 0
    # The listener would have noticed.
    with socket.create_connection(("127.0.0.1", listener.port)) as own:
        own.recv(1)
    assert listener.connections == 1


def test_a_key_of_one_account_goes_to_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """A token is good for a whole cloud, and another account of it is allowed; a key or signature is not sent there."""
    from metaflow_artifacts import StorageError
    from metaflow_artifacts._storage.azure import AzureStorage
    from metaflow_artifacts.testing.azurite import account_key

    one, other = "https://one.blob.core.windows.net", "https://other.blob.core.windows.net"
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{os.getpid() % 1000 + 1}")
    storage = AzureStorage(f"{other}/container/prefix", account_key, endpoint=one, patience=0.1)
    with pytest.raises(StorageError, match=f"the credentials for {one} are not sent to {other}"):
        storage.get("a")


def test_a_signature_in_the_endpoint_is_not_shown() -> None:
    from metaflow_artifacts import StorageError
    from metaflow_artifacts._storage.azure import AzureStorage

    one = "https://one.blob.core.windows.net/"
    with pytest.raises(StorageError) as caught:
        AzureStorage("https://example.org/container/prefix", endpoint=f"{one}?sv=2024-01-01&sig=secret")
    assert f"({one})" in str(caught.value)
    assert "secret" not in str(caught.value)
