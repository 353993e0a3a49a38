"""The key prefixes of a store. Every other module takes them from here; `docs/format.md` (Layout) explains them."""

from __future__ import annotations

__all__ = [
    "ARTIFACTS",
    "ARTIFACT_PREFIXES",
    "CHECKPOINTS",
    "CHOICES",
    "CHUNKS",
    "GC_MARKS",
    "HUB",
    "MODELS",
    "MODEL_ARTIFACTS",
    "NEEDS",
    "PROBE",
    "RESERVED",
    "SURVEYS",
    "TEMPORARY",
    "TOMBSTONES",
    "TOP_DIRECTORIES",
    "checkpoint_prefix",
]

MODELS = "mf.models"
CHECKPOINTS = "mf.checkpoints"
HUB = "mf.huggingface_hub"
_INTERNAL = "mf.artifacts"

TOP_DIRECTORIES = (MODELS, CHECKPOINTS, HUB, _INTERNAL)
"""A root with one of these directories holds a store."""

ARTIFACTS = "artifacts"
TOMBSTONES = "not_latest"
CHOICES = "choices"


def checkpoint_prefix(root: str, kind: str = ARTIFACTS) -> str:
    """The key prefix of all checkpoints below `root` (`mf.checkpoints` or `mf.huggingface_hub`), with its slash.

    `kind` is ARTIFACTS for their manifests, TOMBSTONES for their tombstones, CHOICES for the choices of gangs.
    """
    return f"{root}/checkpoints/{kind}/"


MODEL_ARTIFACTS = f"{MODELS}/models/{ARTIFACTS}/"
ARTIFACT_PREFIXES = (MODEL_ARTIFACTS, checkpoint_prefix(CHECKPOINTS), checkpoint_prefix(HUB))
"""All manifests of a store lie below these."""

CHUNKS = f"{_INTERNAL}/chunks/sha256/"
GC_MARKS = f"{_INTERNAL}/gc/"
NEEDS = f"{_INTERNAL}/needs/"
RESERVED = tuple(f"{_INTERNAL}/{name}/" for name in ("parts", "rounds", "refs"))
"""Prefixes of later versions. This version writes nothing there and does not know what an object there needs."""

SURVEYS = f"{_INTERNAL}/surveys/"
"""What an upkeep flow hands from its first stage to the tasks of the second. No artifact needs it."""

TEMPORARY = f"{_INTERNAL}/tmp/"
"""Temporary objects of writers, in storages that need them; no key lies below it."""
PROBE = f"{_INTERNAL}/probe"
"""The object that shows whether a server refuses to overwrite; its content means nothing."""
