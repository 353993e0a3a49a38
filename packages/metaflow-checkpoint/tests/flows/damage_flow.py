"""Damages its newest checkpoints, as a broken disk would, and fails. The retry resumes from the newest whole one."""

import os

from metaflow import FlowSpec, checkpoint, current, retry, step

from metaflow_artifacts import open_store
from metaflow_artifacts.testing.flows import emit


class DamageFlow(FlowSpec):
    @retry(times=2, minutes_between_retries=0)
    @checkpoint
    @step
    def start(self):
        directory = current.checkpoint.directory
        loaded = current.checkpoint.info
        emit("loaded", [loaded and loaded.version_id, sorted(os.listdir(directory))])
        if current.retry_count == 0:
            saved = []
            for number in range(5):
                with open(os.path.join(directory, f"state {number}"), "wb") as file:
                    file.write(os.urandom(100_000))
                saved.append(current.checkpoint.save())
            store = open_store(os.environ["ROOT"])
            chunk = store.manifest(saved[4]).chunks[0].sha256
            flipped = bytearray(store.storage.get(f"mf.artifacts/chunks/sha256/{chunk[:2]}/{chunk[2:]}"))
            flipped[50_000] ^= 1
            store.storage.put(f"mf.artifacts/chunks/sha256/{chunk[:2]}/{chunk[2:]}", bytes(flipped))
            store.storage.put(saved[3]["key"], b"not a manifest")
            chunk = store.manifest(saved[2]).chunks[-1].sha256
            store.storage.delete([f"mf.artifacts/chunks/sha256/{chunk[:2]}/{chunk[2:]}"])
            raise RuntimeError("once")
        if current.retry_count == 1:
            for one in current.checkpoint.list():
                open_store(os.environ["ROOT"]).storage.put(one["key"], b"not a manifest")
            raise RuntimeError("once more")
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    DamageFlow()
