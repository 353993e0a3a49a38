"""What callers pass to name an artifact, parsed once: the functions here are where a reference enters the packages."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from metaflow_artifacts._format.foreign import parse_any_key
from metaflow_artifacts._format.keys import CheckpointKey, ModelKey
from metaflow_artifacts._format.reference import ModelArtifact, parse_reference
from metaflow_artifacts._layout import ARTIFACT_PREFIXES, MODEL_ARTIFACTS
from metaflow_artifacts._store.pending import PendingSave
from metaflow_artifacts._text import seconds_of
from metaflow_artifacts.errors import ArtifactNotFound, InvalidReference

__all__ = ["ParsedReference", "Reference", "demand_same", "differing", "key_of", "root_of", "split_url"]


_UUID = re.compile(r"[\w.%-]+_[0-9a-f]{32}", re.ASCII)
_KEY = re.compile(
    rf"{re.escape(MODEL_ARTIFACTS)}{_UUID.pattern}(?![0-9a-z])|"
    rf"(?:{'|'.join(map(re.escape, ARTIFACT_PREFIXES[1:]))})(?:[\w.%-]+/){{4}}[0-9a-f]{{8}}\.[0-9]+\.[\w.%-]+\.[0-9]+",
    re.ASCII,
)
"""A key in a longer text."""
_LOOKED_AT = 10_000
"""In how many characters of a text that is no key one is looked for."""


@dataclass(frozen=True)
class ParsedReference:
    """A key, url or reference that was found to be well-formed. A store takes it without another look at it."""

    key: str
    parts: ModelKey | CheckpointKey
    """What the key says. Of a key that breaks the grammar, as those of metaflow-checkpoint may: what it would say."""
    artifact: ModelArtifact | None
    """The reference; None where only a key or url was given."""
    root: str | None = None
    """The root of the store that it was saved to, from its `url`; None for a key."""

    @property
    def own_key(self) -> str:
        """The key that an artifact of these packages has: `key`, with what breaks the grammar encoded."""
        return str(self.parts)

    @classmethod
    def of(cls, reference: Reference) -> ParsedReference:
        """What a reference says. Raises InvalidReference for neither a key, nor a url, nor what a save returned."""
        if isinstance(reference, ParsedReference):
            return reference
        if isinstance(reference, PendingSave):
            reference = reference.result()
        if isinstance(reference, Mapping):
            if set(reference) == {"error"}:
                raise InvalidReference(
                    f"nothing can be loaded: this stands for a save in the background that failed: {reference['error']}"
                )
            artifact = parse_reference(reference)
            key, url = artifact["key"], artifact["url"]
            return cls(key, parse_any_key(key), artifact, url[: -len(key) - 1] if url.endswith("/" + key) else None)
        if not isinstance(reference, str):
            raise InvalidReference(
                f"expected a key (str) or the dict that save() returned, found {type(reference).__name__}"
            )
        root, key = split_url(reference)
        if root is not None and "://" not in root and not os.path.isabs(root):
            # What stands before the key is no root, so that the text is malformed as a whole.
            root, key = None, reference
        try:
            return cls(key, parse_any_key(key), None, root)
        except InvalidReference as error:
            raise InvalidReference(f"{error}{_meant(reference)}") from None


Reference = str | Mapping[str, Any] | ParsedReference | PendingSave
"""A key, a url (`<root>/<key>`), the dict that a save returned, one of them parsed, or what `save_async` returned."""


def _meant(text: str) -> str:
    """What to pass where `text`, which is no key, holds one, as text that was copied does; empty if it does not."""
    text = text[:_LOOKED_AT].strip()
    if text.startswith("{"):
        return "; it looks like a dict that was written as text: pass the dict, which json.loads makes of JSON"
    # Where slashes are encoded, so is what a key has encoded itself.
    keys = set(_KEY.findall(unquote(text) if "%2f" in text.lower() else text))
    if len(keys) == 1:
        return f"; pass only the key that is in this text, {keys.pop()!r}"
    if _UUID.fullmatch(text):
        return f"; it looks like the end of a key: pass {MODEL_ARTIFACTS + text!r}"
    return ""


def split_url(text: str) -> tuple[str | None, str]:
    """The root and the key in a url, `<root>/<key>`; None and the text where it holds no key after a root."""
    start = max(text.rfind("/" + prefix) for prefix in ARTIFACT_PREFIXES)
    return (text[:start], text[start + 1 :]) if start > 0 else (None, text)


def key_of(reference: Reference) -> str:
    """The key of the artifact that a reference names. Raises InvalidReference."""
    return ParsedReference.of(reference).key


def root_of(reference: Reference) -> str | None:
    """The root of the store that a reference was saved to, from its `url`; None for a key. Raises InvalidReference."""
    return ParsedReference.of(reference).root


def differing(wanted: ModelArtifact, found: ModelArtifact) -> list[str]:
    """The members in which the artifact that is stored at a key is not the one that a reference is to.

    The size of a tar of metaflow-checkpoint is not that of its content.
    """
    names = ["created_on", "size", "pathspec"]
    if "tar" in (wanted.get("storage_format"), found.get("storage_format")):
        names.remove("size")
    if _is_same_moment(wanted["created_on"], found["created_on"]):
        names.remove("created_on")
    return [name for name in names if wanted.get(name) != found.get(name)]


def _is_same_moment(one: str, other: str) -> bool:
    """Whether two dates mean the same: what keeps a reference in a table or a database may write its date anew."""
    try:
        return one == other or seconds_of(one) == seconds_of(other)
    except ValueError:
        return False


def demand_same(reference: ParsedReference, artifact: ModelArtifact) -> None:
    """Raise ArtifactNotFound if the artifact that is stored at the key is not the one that a dict refers to.

    Where a service counts runs from 1 again, another run can have the same keys.
    """
    wanted, found = reference.artifact, artifact
    if wanted is None:
        return
    if differing(wanted, found):
        raise ArtifactNotFound(
            f"{found['key']}: the reference is to what {wanted['pathspec'] or 'somebody'} saved on "
            f"{wanted['created_on']} ({wanted['size']} bytes); another artifact is stored at its key now, saved by "
            f"{found['pathspec'] or 'somebody'} on {found['created_on']}; pass the key alone for that one"
        )
