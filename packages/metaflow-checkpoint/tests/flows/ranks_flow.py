"""Trains in three subprocesses, which find their task, save at the same time, and load."""

import multiprocessing
import os
import subprocess
import sys

from metaflow import FlowSpec, checkpoint, current, retry, step

from metaflow_artifacts.testing.flows import emit

RANK = """
import os, sys
from metaflow import Checkpoint
from metaflow_artifacts.testing.flows import emit
rank = os.environ["RANK"]
cp = Checkpoint()
for number in range(3):
    with open(f"rank {rank}", "w") as file:
        file.write(f"{rank} {number}")
    saved = cp.save(f"rank {rank}", metadata={"rank": int(rank), "number": number}, name=f"rank{int(rank) % 2}")
own = [one for one in cp.list(name=f"rank{int(rank) % 2}") if one["metadata"]["rank"] == int(rank)]
with Checkpoint(temp_dir_root="scratch") as loader:
    loader.load(own[0])
    with open(os.path.join(loader.directory, f"rank {rank}")) as file:
        emit("rank", [file.read(), os.path.relpath(loader.directory).startswith("scratch/"), saved == own[0]])
emit("parents", saved["parents"])
"""


def save_in_child():
    current.checkpoint.save(name="child", metadata={"rank": -1})


class RanksFlow(FlowSpec):
    @retry(times=1, minutes_between_retries=0)
    @checkpoint
    @step
    def start(self):
        emit("loaded", current.checkpoint.info)
        ranks = [
            subprocess.Popen([sys.executable, "-c", RANK], env={**os.environ, "RANK": str(rank)}) for rank in range(3)
        ]
        emit("codes", [rank.wait() for rank in ranks])
        # A child of fork has neither connections nor counters of its parent.
        child = multiprocessing.get_context("fork").Process(target=save_in_child)
        child.start()
        child.join()
        emit("child", child.exitcode)
        last = current.checkpoint.save(name="last", metadata={"rank": -1})
        found = current.checkpoint.list(attempt=current.retry_count)
        emit("listed", [len(found), len({one["key"] for one in found}), found[0] == last])
        # Numbers go on, whichever process saves.
        emit("last", last["version_id"] > max(one["version_id"] for one in found[1:]))
        if current.retry_count == 0:
            raise RuntimeError("once")
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    RanksFlow()
