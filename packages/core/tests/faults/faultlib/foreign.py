"""Writes what metaflow-checkpoint 0.2.14 leaves in a store, at the same keys, in the same order."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping
from uuid import uuid4

from metaflow_artifacts._storage import Storage

PLACE = "Flow/start/3a12c0aa5bf7/a92ae9615600"


def save_model(storage: Storage, files: Mapping[str, bytes] | bytes, form: str = "tar", label: str = "theirs") -> str:
    """A model, as a `tar` (its default) or as `files`; returns its key. Instead of files, a tar can be given."""
    name = f"{label}_{uuid4().hex}"
    return _save(storage, "mf.models/models", "", name, f"0.{name}", files, form, {"type": "model", "model_uuid": name})


def save_checkpoint(
    storage: Storage,
    files: Mapping[str, bytes],
    form: str = "files",
    n: int = 0,
    name: str = "mfchckpt",
    place: str = PLACE,
    root: str = "mf.checkpoints",
) -> str:
    """A checkpoint or Hub snapshot, as `files` (the default) or as a `tar`; returns its key."""
    last = f"0.{name}.{n}"
    more = {"type": "checkpoint", "name": name, "version_id": n, "pathspec_hash": "5707ab4f"}
    return _save(storage, f"{root}/checkpoints", place + "/", f"5707ab4f.{last}", last, files, form, more)


def _save(
    storage: Storage,
    root: str,
    place: str,
    name: str,
    task_name: str,
    files: Mapping[str, bytes] | bytes,
    form: str,
    more: dict[str, object],
) -> str:
    key = f"{root}/artifacts/{place}{name}"
    if form == "tar":
        content = files if isinstance(files, bytes) else tar_of(files)
        storage.put(key, content)
        size = len(content)
    else:
        assert not isinstance(files, bytes)
        for path, data in files.items():
            storage.put(f"{key}/{path}", data)
        size = sum(map(len, files.values()))
    about = {
        "pathspec": "Flow/1795619827227527/start/1",
        "attempt": 0,
        "key": key,
        "created_on": "2026-11-25T15:17:07.501431",
        "url": storage.url(key),
        "metadata": {},
        "storage_format": form,
        "size": size,
        **more,
    }
    data = json.dumps(about).encode()
    task = f"{root}/metadata/Flow/1795619827227527/start/1"
    storage.put(f"{root}/artifact_metadata/{place}{name}.metadata", data)
    storage.put(f"{task}/{task_name}.metadata", data)
    if place:
        storage.put(f"{root}/artifact_metadata/{place}latest", data)
        storage.put(f"{task}/latest", data)
    return key


def json_key(key: str) -> str:
    """Where the JSON about the artifact at `key` lies."""
    return key.replace("/artifacts/", "/artifact_metadata/", 1) + ".metadata"


def tar_of(files: Mapping[str, bytes]) -> bytes:
    """An uncompressed tar in Python's default format, that of an empty directory too begins with an entry."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        top = tarfile.TarInfo("content")
        top.type = tarfile.DIRTYPE
        tar.addfile(top)
        for path, data in files.items():
            info = tarfile.TarInfo(path)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()
