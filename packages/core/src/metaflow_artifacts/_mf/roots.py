"""Roots of Metaflow's datastores as core has them, and what each type of datastore needs."""

from __future__ import annotations

import os
import re
from importlib.util import find_spec

from metaflow_artifacts._text import shown_url
from metaflow_artifacts.errors import StorageError

__all__ = ["SPIN", "azure_url", "in_words", "is_cloud", "missing_sdks", "names_a_bucket", "normalised"]

SPIN = "spin"
"""The type of the datastore of a step that is run with `spin`: a directory `.metaflow_spin`."""
_LOCAL_TYPES = ("local", SPIN)
_NAMES_A_BUCKET = {
    "s3": (re.compile(r"s3://[^/]"), "bucket", "s3://BUCKET/PREFIX"),
    "gs": (re.compile(r"gs://[^/]"), "bucket", "gs://BUCKET/PREFIX"),
    "azure": (re.compile(r"https?://|[^/:]+(/|$)"), "container", "CONTAINER/PREFIX"),
}
"""For each cloud: what its root looks like, and in words."""
_SDKS = {
    "azure": (("azure.storage.blob", "azure-storage-blob"), ("azure.identity", "azure-identity")),
    "gs": (("google.cloud.storage", "google-cloud-storage"),),
    "s3": (("boto3", "boto3"),),
}
"""For each cloud: modules that must be installed, and the packages that bring them."""


def is_cloud(kind: str) -> bool:
    """Whether `kind` is Metaflow's name of a cloud."""
    return kind in _NAMES_A_BUCKET


def names_a_bucket(kind: str, root: str) -> bool:
    """Whether a root of this cloud names a bucket, or a container."""
    return _NAMES_A_BUCKET[kind][0].match(root) is not None


def in_words(kind: str) -> tuple[str, str]:
    """What a root of this cloud must name, and the form that it has."""
    return _NAMES_A_BUCKET[kind][1:]


def missing_sdks(kind: str) -> tuple[list[str], str]:
    """The packages that a type of datastore needs and that are not installed, and how to install them."""
    missing = [package for module, package in _SDKS.get(kind, ()) if not _is_installed(module)]
    extra = {"azure": " (or metaflow-artifacts[azure])", "gs": " (or metaflow-artifacts[gcs])"}.get(kind, "")
    return missing, f"pip install {' '.join(missing)}{extra}"


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        # One of the packages above it.
        return False


def normalised(kind: str, root: str | None) -> str:
    """The root of a store in a Metaflow datastore: an absolute path, or a URL without a slash at its end.

    Raises StorageError for a type that is not supported, a root that is not configured, or one without a bucket.
    """
    if kind not in (*_LOCAL_TYPES, *_NAMES_A_BUCKET):
        raise StorageError(
            f"the datastore {kind} ({root and shown_url(root)}) cannot keep models and checkpoints yet; "
            "run the flow with --datastore s3, azure, gs or local"
        )
    variable = f"METAFLOW_DATASTORE_SYSROOT_{kind.upper()}"
    if not root:
        raise StorageError(f"the datastore {kind} has no root; set {variable}")
    if not is_cloud(kind):
        return os.path.abspath(root)
    place, form = in_words(kind)
    if not names_a_bucket(kind, root):
        raise StorageError(
            f"the root {shown_url(root)!r} of the datastore {kind} names no {place}; set {variable} to {form}"
        )
    root = root.rstrip("/")
    return azure_url(root) if kind == "azure" and "://" not in root else root


def azure_url(root: str) -> str:
    """The root of a store, from Metaflow's `CONTAINER/PREFIX`."""
    from metaflow import metaflow_config

    endpoint = metaflow_config.AZURE_STORAGE_BLOB_SERVICE_ENDPOINT
    if not endpoint:
        raise StorageError("the datastore azure has no endpoint; set METAFLOW_AZURE_STORAGE_BLOB_SERVICE_ENDPOINT")
    return f"{endpoint.rstrip('/')}/{root}"
