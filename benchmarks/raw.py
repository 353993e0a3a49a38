"""The same bytes moved by a plain loop: the least that a save and a load can cost on this machine.

    python raw.py local|s3 --payload DIR --out FILE --target DIR|s3://bucket/prefix

Local: `copy_file_range`, 16 MiB a call, with as many threads as the store uses. S3: put from files and get into files,
in objects of 16 MiB, with boto3 as it comes but for a connection a thread. No hashing, no verification, no names.
"""

import argparse
import json
import os
import shutil
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

from metaflow_artifacts.storage import open_storage

CHUNK = 16 << 20


def files_of(directory):
    for folder, _, names in os.walk(directory):
        for name in names:
            path = os.path.join(folder, name)
            yield path, os.path.relpath(path, directory), os.path.getsize(path)


def pieces(directory):
    for path, name, size in files_of(directory):
        for start in range(0, size, CHUNK):
            yield path, name, start, min(CHUNK, size - start)


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


def local(payload, target):
    seconds = {}
    for name in sorted(os.listdir(payload)):
        saved, loaded = os.path.join(target, "saved"), os.path.join(target, "loaded")
        seconds[f"{name}.save"] = copy(os.path.join(payload, name), saved)
        seconds[f"{name}.load"] = copy(saved, loaded)
        shutil.rmtree(saved)
        shutil.rmtree(loaded)
    return seconds


def s3(payload, root):
    import boto3
    from botocore.config import Config

    threads = open_storage(root).threads
    bucket, _, prefix = root.removeprefix("s3://").partition("/")
    client = boto3.client("s3", config=Config(max_pool_connections=threads))
    seconds = {}
    for name in sorted(os.listdir(payload)):
        source, loaded = os.path.join(payload, name), tempfile.mkdtemp()

        def put(piece, source=source):
            path, file, start, length = piece
            with open(path, "rb") as opened:
                opened.seek(start)
                client.put_object(Bucket=bucket, Key=f"{prefix}/{file}/{start}", Body=opened.read(length))

        def get(piece, loaded=loaded):
            _, file, start, _ = piece
            place = os.path.join(loaded, file)
            os.makedirs(os.path.dirname(place), exist_ok=True)
            write = os.open(place, os.O_WRONLY | os.O_CREAT, 0o666)
            os.pwrite(write, client.get_object(Bucket=bucket, Key=f"{prefix}/{file}/{start}")["Body"].read(), start)
            os.close(write)

        seconds[f"{name}.save"] = timed(threads, put, pieces(source))
        seconds[f"{name}.load"] = timed(threads, get, pieces(source))
        shutil.rmtree(loaded)
    return seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("where", choices=["local", "s3"])
    parser.add_argument("--payload", required=True)
    parser.add_argument("--target", required=True)
    parser.add_argument("--out", required=True)
    options = parser.parse_args()
    with open(options.out, "w") as file:
        json.dump({"local": local, "s3": s3}[options.where](options.payload, options.target), file)


if __name__ == "__main__":
    main()
