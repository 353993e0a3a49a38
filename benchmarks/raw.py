"""The same bytes moved by a plain loop, which `compare.py` runs beside the packages.

    python raw.py --datastore local|s3 run --payload DIR --out FILE --target DIR|s3://bucket/prefix

It is a flow like the one of `workload.py`, so that both run in the same state of the machine: the time to get a page
of memory depends on which process had it before. Local: `copy_file_range`, 16 MiB in each call, with as many threads
as the store uses. S3: put from files and get into files, in objects of 16 MiB, with boto3's defaults and one
connection for each thread. Nothing is hashed and nothing is verified.
"""

import json
import os
import shutil
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

from metaflow import FlowSpec, Parameter, step

from metaflow_artifacts._storage import open_storage

CHUNK = 16 << 20


def pieces(directory):
    for folder, _, names in os.walk(directory):
        for name in names:
            path = os.path.join(folder, name)
            size = os.path.getsize(path)
            for start in range(0, size, CHUNK):
                yield path, os.path.relpath(path, directory), start, min(CHUNK, size - start)


def timed(threads, work, items):
    items = list(items)
    begin = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, items))
    return time.perf_counter() - begin


def copy(source, target):
    def work(piece):
        path, name, start, length = piece
        place = os.path.join(target, name)
        os.makedirs(os.path.dirname(place), exist_ok=True)
        read = os.open(path, os.O_RDONLY)
        write = os.open(place, os.O_WRONLY | os.O_CREAT, 0o666)
        done = 0
        while done < length:
            done += os.copy_file_range(read, write, length - done, start + done, start + done)
        os.close(read)
        os.close(write)

    return timed(open_storage(target).threads, work, pieces(source))


class Objects:
    """Put into and get from S3, as boto3 does it."""

    def __init__(self, root):
        import boto3
        from botocore.config import Config

        self.threads = open_storage(root).threads
        self.bucket, _, self.prefix = root.removeprefix("s3://").partition("/")
        self.client = boto3.client("s3", config=Config(max_pool_connections=self.threads))

    def put(self, source):
        def work(piece):
            path, file, start, length = piece
            with open(path, "rb") as opened:
                opened.seek(start)
                content = opened.read(length)
            self.client.put_object(Bucket=self.bucket, Key=f"{self.prefix}/{file}/{start}", Body=content)

        return timed(self.threads, work, pieces(source))

    def get(self, source, loaded):
        def work(piece):
            _, file, start, _ = piece
            place = os.path.join(loaded, file)
            os.makedirs(os.path.dirname(place), exist_ok=True)
            answer = self.client.get_object(Bucket=self.bucket, Key=f"{self.prefix}/{file}/{start}")
            write = os.open(place, os.O_WRONLY | os.O_CREAT, 0o666)
            os.pwrite(write, answer["Body"].read(), start)
            os.close(write)

        return timed(self.threads, work, pieces(source))


class RawLoop(FlowSpec):
    payload = Parameter("payload", required=True)
    out = Parameter("out", required=True)
    target = Parameter("target", required=True)

    @step
    def start(self):
        self.seconds = {}
        for name in sorted(os.listdir(self.payload)):
            source, target = os.path.join(self.payload, name), os.path.join(self.target, name)
            self.seconds[f"{name}.save"] = (
                Objects(self.target).put(source) if self.target.startswith("s3://") else copy(source, target)
            )
        self.next(self.load)

    @step
    def load(self):
        for name in sorted(os.listdir(self.payload)):
            for metric in (f"{name}.load", f"{name}.load_again"):
                loaded = tempfile.mkdtemp()
                if self.target.startswith("s3://"):
                    self.seconds[metric] = Objects(self.target).get(os.path.join(self.payload, name), loaded)
                else:
                    self.seconds[metric] = copy(os.path.join(self.target, name), loaded)
                shutil.rmtree(loaded)
        self.next(self.end)

    @step
    def end(self):
        with open(self.out, "w") as file:
            json.dump(self.seconds, file)


if __name__ == "__main__":
    RawLoop()
