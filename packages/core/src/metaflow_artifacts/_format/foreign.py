"""What metaflow-checkpoint has stored: its keys, and the JSON that it keeps about each artifact. No I/O.

These are facts about metaflow-checkpoint 0.2.14, found by running it. Its keys share the prefixes of ours, and often
their grammar:

```
mf.models/models/artifacts/<label>_<32 hex>
mf.checkpoints/checkpoints/artifacts/<Flow>/<step>/<12 hex>/<12 hex>/<8 hex>.<attempt>.<name>.<n>
mf.huggingface_hub/checkpoints/artifacts/…      the same, or below
    mf:internal/huggingface-hub/registry:flow/<Flow>/ and mf:internal/huggingface-hub/registry:global/fully-global/
```
Labels and names are not encoded: they may hold spaces, slashes and characters outside of ASCII (a storage lists only
keys of ASCII, so the last are not seen here). What lies at such a key depends on the member `storage_format`:

- `tar` (the default of models): one object at the key, a POSIX tar without compression.
- `files` (the default of checkpoints and snapshots): no object at the key, one for each file at `<key>/<path>`. An
  empty directory leaves no object at all.

JSON about it lies twice beside it, with `key`, `type`, `size`, `storage_format`, `pathspec`, `attempt`, `created_on`,
`url` and `metadata` among its members:

- at the key with `artifact_metadata` for `artifacts` and `.metadata` at the end;
- below `<root>/{models,checkpoints}/metadata/<Flow>/<run>/<step>/<task>/`, as `<attempt>.<rest>.metadata`.

Below `artifact_metadata`, each place also has an object `latest`, a copy of the JSON of one checkpoint. The content is
written before the JSON, and a deletion removes the content first. So content without JSON comes from a save that was
killed or is still running.

None of these objects names a chunk.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from metaflow_artifacts._format.keys import CheckpointKey, CheckpointPlace, ModelKey, parse_key
from metaflow_artifacts._format.manifest import Manifest
from metaflow_artifacts._format.reference import MAX_DEPTH, ModelArtifact, depth, validate_reference, with_own_names
from metaflow_artifacts._layout import ARTIFACT_PREFIXES, ARTIFACTS, HUB, MODEL_ARTIFACTS
from metaflow_artifacts.errors import CorruptArtifact, InvalidInput, InvalidReference

__all__ = [
    "JSON_BYTES",
    "ForeignArtifact",
    "ForeignManifest",
    "Location",
    "json_key",
    "json_prefix",
    "key_of_json",
    "parse_any_key",
    "parse_json",
    "task_prefix",
]

JSON_BYTES = 16 << 20
"""Most bytes of the JSON about an artifact that are read."""

_ABOUT = "artifact_metadata"
_BY_TASK = "metadata"
_ENDING = ".metadata"
_MODEL = re.compile(r"(?P<label>.+)_(?P<hex>[0-9a-f]{32})", re.ASCII | re.DOTALL)
_CHECKPOINT = re.compile(
    r"(?P<flow>[^/]+)/(?P<step>[^/]+)/(?P<scope>[^/]+)/(?P<task>[^/]+)/"
    r"(?P<id>[0-9a-f]{8})\.(?P<attempt>0|[1-9][0-9]{0,8})\.(?P<name>.+)\.(?P<n>0|[1-9][0-9]{0,17})",
    re.ASCII | re.DOTALL,
)
_READABLE = re.compile(r"[ -\[\]-~]+")
"""What a key can hold: printable ASCII without a backslash."""
_ENCODED = re.compile(r"%[0-9A-Fa-f]{2}")
"""What stands for an encoded byte: a key with it is a misspelt one of ours, not one of metaflow-checkpoint."""
_HEX12 = re.compile(r"[0-9a-f]{12}", re.ASCII)
_NO_PLACE = "0" * 12


@dataclass(frozen=True)
class ForeignArtifact:
    """What the JSON says about an artifact of metaflow-checkpoint."""

    artifact: ModelArtifact
    """The reference, with the members that ours have. In a tar, `size` is that of the tar."""
    storage_format: Literal["tar", "files"]
    task_json: str | None
    """The key of the second JSON, which lies at the task; None if its pathspec is no pathspec."""

    @property
    def key(self) -> str:
        return self.artifact["key"]


@dataclass(frozen=True, slots=True)
class Location:
    """Where the content of a file begins."""

    key: str
    start: int


@dataclass(frozen=True)
class ForeignManifest(Manifest):
    """The files of an artifact of metaflow-checkpoint, found in its storage. There are no chunks, and no digests."""

    locations: Sequence[Location] = ()
    """For each of `files`, where its content is."""
    refused: Mapping[str, str] | None = None
    """Members that cannot be loaded, by their path, each with the reason."""
    damage: str | None = None
    """What is wrong with the artifact as a whole."""
    storage_format: str = "files"
    modified: Mapping[str, float] | None = None
    """When the objects with the content were written, by their keys; seconds since the epoch."""


def parse_any_key(key: str) -> ModelKey | CheckpointKey:
    """As `parse_key`, also of keys that metaflow-checkpoint writes and these packages would not.

    Of those, the result is the key that a copy to another store has: what breaks the grammar is encoded. Raises
    InvalidReference for any other text.
    """
    try:
        return parse_key(key)
    except InvalidReference as error:
        try:
            parts = _parse(key)
        except InvalidInput:
            parts = None
        if parts is None:
            raise
        try:
            # A label or name may break a rule of ours.
            return parse_key(str(parts))
        except InvalidInput:
            raise error from None


def _parse(key: str) -> ModelKey | CheckpointKey | None:
    if not isinstance(key, str) or not _READABLE.fullmatch(key) or _ENCODED.search(key):
        return None
    if any(part in ("", ".", "..") for part in key.split("/")):
        return None
    if key.startswith(MODEL_ARTIFACTS):
        match = _MODEL.fullmatch(key[len(MODEL_ARTIFACTS) :])
        return None if match is None else ModelKey(match["label"], match["hex"])
    root = key.partition("/")[0]
    for prefix in ARTIFACT_PREFIXES[1:]:
        match = _CHECKPOINT.fullmatch(key[len(prefix) :]) if key.startswith(prefix) else None
        if match is not None:
            place = _place(root, match["flow"], match["step"], match["scope"], match["task"])
            return CheckpointKey(place, match["id"], int(match["attempt"]), match["name"], int(match["n"]))
    return None


def _place(root: str, flow: str, step: str, scope: str, task: str) -> CheckpointPlace:
    if root == HUB and not (_HEX12.fullmatch(scope) and _HEX12.fullmatch(task)):
        # Snapshots for a whole flow, or for all: `mf:internal/huggingface-hub/registry:flow/<Flow>/`.
        return CheckpointPlace(task, scope, _NO_PLACE, _NO_PLACE, root)
    return CheckpointPlace(flow, step, scope, task, root)


def json_key(key: str) -> str:
    """Where the JSON about the artifact at `key` lies."""
    return key.replace(f"/{ARTIFACTS}/", f"/{_ABOUT}/", 1) + _ENDING


def json_prefix(prefix: str) -> str:
    """Where the JSON lies about artifacts whose keys begin with `prefix`."""
    return prefix.replace(f"/{ARTIFACTS}/", f"/{_ABOUT}/", 1)


def key_of_json(key: str) -> str | None:
    """The key of the artifact that the JSON at `key` is about; None for another object."""
    if not key.endswith(_ENDING):
        return None
    return key.replace(f"/{_ABOUT}/", f"/{ARTIFACTS}/", 1)[: -len(_ENDING)]


def task_prefix(prefix: str, pathspec: str) -> str:
    """Where the JSON about the artifacts of a task lies; `prefix` is one of ARTIFACT_PREFIXES."""
    return f"{prefix.removesuffix(f'{ARTIFACTS}/')}{_BY_TASK}/{pathspec}/"


def parse_json(data: bytes, key: str | None) -> ForeignArtifact:
    """What the JSON about the artifact at `key` says; with None, about whichever it names. Raises CorruptArtifact."""
    where = (
        "the JSON of metaflow-checkpoint about an artifact" if key is None else f"{json_key(key)}: the JSON about {key}"
    )
    if len(data) > JSON_BYTES:
        raise CorruptArtifact(f"{where} has more than the {JSON_BYTES} bytes that are read; restore it")
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CorruptArtifact(f"{where} cannot be read ({str(error)[:100]}); restore it") from None
    if not isinstance(value, dict):
        raise CorruptArtifact(f"{where} is no object; restore it")
    artifact = with_own_names(value)
    problems = validate_reference(artifact)
    if not problems and key is not None and artifact["key"] != key:
        problems = [f"key: expected {key!r}, found {artifact['key']!r}"]
    if not problems and depth(artifact) > MAX_DEPTH + 1:
        problems = [f"metadata: more than {MAX_DEPTH} levels"]
    storage_format: Any = value.get("storage_format")
    if storage_format not in ("tar", "files"):
        problems.append(f"storage_format: expected 'tar' or 'files', found {storage_format!r:.40}")
    if problems:
        raise CorruptArtifact(f"{where} is damaged ({'; '.join(problems)[:300]}); restore it")
    return ForeignArtifact(cast(ModelArtifact, artifact), storage_format, _task_json(artifact))


def _task_json(artifact: Mapping[str, Any]) -> str | None:
    pathspec, key = str(artifact["pathspec"]), str(artifact["key"])
    if pathspec.count("/") != 3 or any(part in ("", ".", "..") for part in pathspec.split("/")):
        return None
    for prefix in ARTIFACT_PREFIXES:
        if key.startswith(prefix):
            rest = key[len(prefix) :]
            if prefix != MODEL_ARTIFACTS:
                # Without its place, and the digits of its task.
                name = rest.split("/", 4)[-1].partition(".")[2]
            else:
                name = f"{artifact['attempt']}.{rest}"
            return f"{task_prefix(prefix, pathspec)}{name}{_ENDING}"
    return None
