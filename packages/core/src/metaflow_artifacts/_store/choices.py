"""The choices of gangs: what the nodes of a `@parallel` step resume from, decided once for each attempt.

The nodes start at different times, and the first of them may already save while others start. If each looked for the
newest checkpoint by itself, they could resume from different ones. `docs/format.md` (Choices) has the rule.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from dataclasses import asdict, dataclass

from metaflow_artifacts._format.keys import CheckpointKey, CheckpointPlace, parse_key
from metaflow_artifacts._layout import CHOICES
from metaflow_artifacts._store.store import Store
from metaflow_artifacts.errors import ArtifactNotFound, CorruptArtifact, InvalidReference, TransientStorageError

__all__ = ["Choice", "GangChoice"]


@dataclass(frozen=True)
class Choice:
    """What all nodes of an attempt of a gang resume from."""

    key: str | None
    """The key of the checkpoint; None if the attempt starts from the beginning."""
    node: str
    """The pathspec of the node that chose."""


class GangChoice:
    """The choice of one attempt of a gang, which may not be made yet."""

    def __init__(self, store: Store, place: CheckpointPlace, gang: str, attempt: int) -> None:
        """`gang` is the pathspec of its control task."""
        self._store = store
        self._place = place
        self._gang = gang
        # The pathspec's 8 digits in the keys of checkpoints can be those of another gang too; 32 digits cannot.
        digits = hashlib.sha256(gang.encode("utf-8", "surrogatepass")).hexdigest()[:32]
        self.key = f"{place.prefix(CHOICES)}{digits}.{attempt}"

    def find(self) -> Choice | None:
        """The choice, if one was made. One request.

        Raises CorruptArtifact if the object cannot be understood, StorageError if the storage fails.
        """
        try:
            content = self._store.storage.get(self.key)
        except ArtifactNotFound:
            return None
        return self._parse(content)

    def make(self, choice: Choice) -> Choice:
        """Make the choice, unless another node has made one, and return the one that all nodes obey.

        Raises CorruptArtifact if the other node's choice cannot be understood, StorageError if the storage fails.
        """
        storage = self._store.storage
        storage.require_put_if_absent()
        if storage.put_if_absent(self.key, json.dumps({"gang": self._gang, **asdict(choice)}, indent=1).encode()):
            return choice
        found = self.find()
        if found is None:
            raise TransientStorageError(
                f"{storage.url(self.key)}: another node's choice was removed while this node read it; retry the step"
            )
        return found

    def _parse(self, content: bytes) -> Choice:
        values = None
        with contextlib.suppress(ValueError, RecursionError):
            values = json.loads(content)
        if isinstance(values, dict) and values.get("gang") == self._gang and isinstance(values.get("node"), str):
            choice = Choice(values.get("key"), values["node"])
            if "key" in values and self._can_be_chosen(choice.key):
                return choice
        raise CorruptArtifact(
            f"{self._store.storage.url(self.key)} should say what all nodes of {self._gang} resume from, but it does "
            f"not: {content[:100]!r}; retry the step, since the next attempt chooses anew"
        )

    def _can_be_chosen(self, key: object) -> bool:
        if key is None:
            return True
        try:
            parsed = parse_key(key)  # type: ignore[arg-type]
        except InvalidReference:
            return False
        return isinstance(parsed, CheckpointKey) and parsed.place == self._place
