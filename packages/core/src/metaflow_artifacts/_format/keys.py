"""The grammar of keys: which strings are keys of artifacts, and what they say about them.

```
mf.models/models/artifacts/<label>_<32 hex>
mf.checkpoints/checkpoints/artifacts/<Flow>/<step>/<scope>/<task>/<id>.<attempt>.<name>.<n>
mf.huggingface_hub/checkpoints/artifacts/<Flow>/<step>/<scope>/<task>/<id>.<attempt>.<name>.<n>
```
In parts that users choose (labels, names, flow and step names), all characters except ASCII letters, digits, `.`, `_`
and `-` are percent-encoded, so that a key is safe as a path, in a URL and on a terminal.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import lru_cache
from urllib.parse import quote, unquote_to_bytes
from uuid import uuid4

from metaflow_artifacts._layout import (
    ARTIFACTS,
    CHECKPOINTS,
    HUB,
    MODEL_ARTIFACTS,
    MODELS,
    TOMBSTONES,
    checkpoint_prefix,
)
from metaflow_artifacts.errors import InvalidInput, InvalidReference

__all__ = [
    "CHECKPOINTS",
    "HUB",
    "MODELS",
    "Attempt",
    "CheckpointKey",
    "CheckpointPlace",
    "ModelKey",
    "attempt_of",
    "encode_part",
    "parse_key",
    "parse_tombstone",
]

_MAX_PART = 200
"""Most bytes of an encoded part. Common file systems allow 255; a key and a temporary name add to a part."""
_MAX_KEY = 800

_EXAMPLES = (
    f"keys look like {MODEL_ARTIFACTS}<label>_<32 hex> or "
    f"{checkpoint_prefix(CHECKPOINTS)}<Flow>/<step>/<scope>/<task>/<id>.<attempt>.<name>.<n>"
)
_MODEL = re.compile(r"(?P<label>.+)_(?P<hex>[0-9a-f]{32})", re.ASCII)
_CHECKPOINT = re.compile(
    r"(?P<id>[0-9a-f]{8})\.(?P<attempt>0|[1-9][0-9]{0,8})\.(?P<name>.+)\.(?P<n>0|[1-9][0-9]{0,17})", re.ASCII
)
_HEX12 = re.compile(r"[0-9a-f]{12}", re.ASCII)


def encode_part(text: str, what: str) -> str:
    """`text` as one part of a key.

    Raises InvalidInput, which names the part as `what` and gives the rule that it breaks.
    """
    if not isinstance(text, str):
        raise InvalidInput(f"{what}: expected a string, found {type(text).__name__}")
    return _encode_part(text, what)


# In a listing, thousands of keys have the same flow, step and names.
@lru_cache(maxsize=4096)
def _encode_part(text: str, what: str) -> str:
    if not text:
        raise InvalidInput(f"{what}: empty; give it at least one character")
    if not text.isprintable():
        raise InvalidInput(f"{what} {text[:40]!r}: has control or unprintable characters; leave them out")
    encoded = quote(text, safe="")
    encoded = encoded.replace("~", "%7E")
    if encoded.startswith("."):
        encoded = "%2E" + encoded[1:]
    if len(encoded) > _MAX_PART:
        raise InvalidInput(
            f"{what} {text[:40]!r}…: {len(encoded)} bytes when encoded for a key, at most {_MAX_PART} are allowed; "
            "choose a shorter one"
        )
    return encoded


@lru_cache(maxsize=4096)
def _decode_part(part: str, what: str) -> str:
    try:
        text = unquote_to_bytes(part).decode()
    except UnicodeDecodeError:
        raise InvalidReference(f"{what} is not valid UTF-8") from None
    if encode_part(text, what) != part:
        raise InvalidReference(f"{what} {part!r} is encoded in another way than these packages do it")
    return text


@dataclass(frozen=True)
class ModelKey:
    """The key of a model: the label that it was saved under, and 32 random hex digits."""

    label: str
    hex: str

    @classmethod
    def new(cls, label: str) -> ModelKey:
        """A new key. Raises InvalidInput for a label that breaks a rule."""
        encode_part(label, "label")
        return cls(label, uuid4().hex)

    @property
    def uuid(self) -> str:
        """`<label>_<32 hex>`, the last part of the key."""
        return f"{encode_part(self.label, 'label')}_{self.hex}"

    def __str__(self) -> str:
        return MODEL_ARTIFACTS + self.uuid


@dataclass(frozen=True)
class CheckpointPlace:
    """The keys of all checkpoints of one place in a flow, in all runs."""

    flow: str
    step: str
    scope: str
    """12 hex digits: the namespace."""
    task: str
    """12 hex digits: the task's place in the flow, the same in every run."""
    root: str = CHECKPOINTS
    """`mf.checkpoints` or `mf.huggingface_hub`."""

    def __post_init__(self) -> None:
        for what, value in (("scope", self.scope), ("task", self.task)):
            if not _HEX12.fullmatch(value):
                raise InvalidInput(f"{what} {value!r}: expected 12 hex digits")
        if self.root not in (CHECKPOINTS, HUB):
            raise InvalidInput(f"root {self.root!r}: expected {CHECKPOINTS} or {HUB}")

    def prefix(self, kind: str = ARTIFACTS) -> str:
        """The key prefix of its manifests (ARTIFACTS), tombstones (TOMBSTONES) or choices (CHOICES), with its slash."""
        flow, step = encode_part(self.flow, "flow"), encode_part(self.step, "step")
        return f"{checkpoint_prefix(self.root, kind)}{flow}/{step}/{self.scope}/{self.task}/"


@lru_cache(maxsize=4096)
def _place(flow: str, step: str, scope: str, task: str, root: str) -> CheckpointPlace:
    return CheckpointPlace(_decode_part(flow, "flow"), _decode_part(step, "step"), scope, task, root)


@dataclass(frozen=True)
class CheckpointKey:
    """The key of a checkpoint: its place, the task and attempt that saved it, its name and its number."""

    place: CheckpointPlace
    id: str
    """8 hex digits for the task of the run. Two tasks can have the same; the pathspec in the manifest decides."""
    attempt: int
    name: str
    n: int
    """Number within the attempt, from 0, over all names."""

    def numbered(self, n: int) -> CheckpointKey:
        """The same key with another number."""
        return replace(self, n=n)

    @property
    def filename(self) -> str:
        """The last part of the key."""
        return f"{self.id}.{self.attempt}.{encode_part(self.name, 'name')}.{self.n}"

    def __str__(self) -> str:
        return self.place.prefix() + self.filename

    @property
    def tombstone(self) -> str:
        """The key of its tombstone, an empty object: the checkpoint was saved with latest=False, or was deleted."""
        return self.place.prefix(TOMBSTONES) + self.filename


Attempt = tuple[CheckpointPlace, str, int]
"""What the keys of all checkpoints of one attempt of a task have in common: place, id and attempt."""


def attempt_of(key: CheckpointKey) -> Attempt:
    """The attempt that saved a checkpoint."""
    return key.place, key.id, key.attempt


def parse_key(key: str) -> ModelKey | CheckpointKey:
    """The parts of a key. Raises InvalidReference for any text that these packages would not write as a key."""
    if not isinstance(key, str):
        raise InvalidReference(f"expected a key (str), found {type(key).__name__}; {_EXAMPLES}")
    try:
        if len(key) > _MAX_KEY:
            raise InvalidReference(f"it has {len(key)} characters, at most {_MAX_KEY} are allowed")
        return _parse(key)
    except InvalidInput as error:
        raise InvalidReference(f"not the key of a stored artifact: {key[:_MAX_KEY]!r}: {error}; {_EXAMPLES}") from None


def parse_tombstone(key: str) -> CheckpointKey:
    """The key of the checkpoint that the tombstone at `key` stands for. Raises InvalidReference if it is none."""
    for root in (CHECKPOINTS, HUB):
        prefix = checkpoint_prefix(root, TOMBSTONES)
        if key.startswith(prefix):
            checkpoint = parse_key(checkpoint_prefix(root) + key[len(prefix) :])
            assert isinstance(checkpoint, CheckpointKey)
            return checkpoint
    raise InvalidReference(f"not the key of a tombstone: {key[:_MAX_KEY]!r}")


def _parse(key: str) -> ModelKey | CheckpointKey:
    parts = key.split("/")
    if "" in parts:
        raise InvalidReference("empty part; a key has no leading, trailing or double slash")
    if key.startswith(MODEL_ARTIFACTS) and len(parts) == 4:
        match = _MODEL.fullmatch(parts[3])
        if match is None:
            raise InvalidReference(f"{parts[3]!r} is not <label>_<32 hex>")
        return ModelKey(_decode_part(match["label"], "label"), match["hex"])
    if key.startswith((checkpoint_prefix(CHECKPOINTS), checkpoint_prefix(HUB))) and len(parts) == 8:
        match = _CHECKPOINT.fullmatch(parts[7])
        if match is None:
            raise InvalidReference(f"{parts[7]!r} is not <id>.<attempt>.<name>.<n>")
        place = _place(*parts[3:7], parts[0])
        name = _decode_part(match["name"], "name")
        return CheckpointKey(place, match["id"], int(match["attempt"]), name, int(match["n"]))
    raise InvalidReference("unknown prefix or wrong number of parts")
