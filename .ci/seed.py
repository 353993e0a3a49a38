"""Runs the seed document's flows against an installed environment, on the local datastore and on S3, beside a Hub.

Usage: seed.py FOLDER PYTHON; FOLDER holds run_seed.py and hub_server.py.
"""

import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from metaflow_artifacts.testing.seaweedfs import seaweedfs
from metaflow_artifacts.testing.servers import hold_ports, port_of


def start_hub(script: Path, root: Path) -> tuple[subprocess.Popen[bytes], str]:
    repository = root / "bert-base-uncased"
    repository.mkdir(parents=True)
    (repository / "config.json").write_text("{}")
    (repository / "model.safetensors").write_bytes(os.urandom(100_000))
    (held,) = hold_ports(1)
    with held:
        port = port_of(held)
        hub = subprocess.Popen([sys.executable, script, root, str(port)], stderr=subprocess.DEVNULL)
        while hub.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return hub, f"http://127.0.0.1:{port}"
            time.sleep(0.05)
    sys.exit(f"{script} ended with {hub.returncode}")


def main() -> None:
    folder, python = Path(sys.argv[1]), sys.argv[2]
    # The S3 server's program lies beside the interpreter.
    os.environ["PATH"] += os.pathsep + str(Path(sys.executable).parent)
    with tempfile.TemporaryDirectory() as name, seaweedfs(Path(name) / "s3") as server:
        hub, endpoint = start_hub(folder / "hub_server.py", Path(name) / "hub")
        environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(Path(name) / "home")}
        s3 = {**server.environment(), "METAFLOW_DEFAULT_DATASTORE": "s3"}
        try:
            for where, variables in (("local datastore", {}), ("S3", s3)):
                print(f"Seed flows, {where}", flush=True)
                subprocess.run(
                    [sys.executable, folder / "run_seed.py", python], env={**environment, **variables}, check=True
                )
        finally:
            hub.kill()


if __name__ == "__main__":
    main()
