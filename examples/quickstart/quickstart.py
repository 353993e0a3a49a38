"""Runs the two flows beside this file on a local datastore in a temporary directory, one after the other.

The model's key goes from the first to the second, and then to plain Python, which loads it without Metaflow.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
READ_KEY = "from metaflow import Flow; print(Flow('TrainFlow').latest_successful_run.data.line['key'])"
LOAD = """
import sys
from metaflow_artifacts import open_store
root, key = sys.argv[1:]
path = open_store(root).load(key, "copy")
print("loaded", key, "into", path)
print("Metaflow imported:", "metaflow" in sys.modules)
"""


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="quickstart_") as directory:
        environment = {"METAFLOW_USER": "quickstart", **os.environ}
        environment["METAFLOW_DATASTORE_SYSROOT_LOCAL"] = directory

        def python(*arguments: object, **options: object) -> str:
            command = [sys.executable, *map(str, arguments)]
            done = subprocess.run(command, cwd=directory, env=environment, check=True, text=True, **options)
            return done.stdout

        say("1. A flow saves a model in one step and loads it in the next")
        python(HERE / "train_flow.py", "run")
        key = python("-c", READ_KEY, stdout=subprocess.PIPE).strip()
        say(f"2. Another flow loads it by its key, {key}")
        python(HERE / "predict_flow.py", "run", "--line", key)
        say("3. Plain Python loads it by its key")
        python("-c", LOAD, Path(directory) / ".metaflow", key)


def say(text: str) -> None:
    print(f"\n=== {text}", flush=True)


if __name__ == "__main__":
    main()
