"""What users write into `@with_artifact_store(type=, config=)` and `artifact_store_from(config=)`, read and checked.

The config of a store in S3 can hold credentials. They are in no repr, no error, and no pickle of a StoreConfig.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from metaflow_artifacts._mf.roots import in_words, is_cloud, missing_sdks, names_a_bucket, normalised
from metaflow_artifacts._text import shown_url
from metaflow_artifacts.errors import InvalidInput, StorageError

__all__ = ["StoreConfig", "kind_of", "result_of"]

_KINDS = {
    "s3": "s3",
    "s3-compatible": "s3",
    "coreweave": "s3",
    "gs": "gs",
    "gcs": "gs",
    "azure": "azure",
    "local": "local",
}
"""Core's name for each type that a user may write."""
_NAMED = "s3 (also s3-compatible and coreweave), gs, azure or local"
_OPTIONS: dict[str, dict[str, type]] = {"s3": {"role_arn": str, "session_vars": dict, "client_params": dict}}
"""For each type, what its config may have besides the root, and the type of each value."""


def kind_of(given: object, where: str) -> str:
    """The datastore that a `type` means, in Metaflow's words. Raises InvalidInput for any other; `where` is named."""
    if given is None:
        raise InvalidInput(f"{where} has no type; pass type= with one of {_NAMED}")
    kind = _KINDS.get(given) if isinstance(given, str) else None
    if kind is None:
        raise InvalidInput(f"{where}: the type {given!r:.80} is unknown; pass {_NAMED}")
    return kind


@dataclass(frozen=True, eq=False)
class StoreConfig:
    """A store and how it is reached. Two are equal if everything in them is."""

    kind: str
    """The type of the datastore in Metaflow's words: `local`, `s3`, `gs` or `azure`."""
    given_root: str
    """The root as Metaflow has it: with `azure`, `CONTAINER/PREFIX` or a URL."""
    root: str
    """The root as core has it."""
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """`role_arn`, `session_vars` and `client_params`, as far as they are given."""

    @classmethod
    def read(cls, kind: str, given: object, where: str) -> StoreConfig:
        """The config that a user gave: a dict, or a function of no arguments that returns one.

        `kind` is what `kind_of` returned. Raises InvalidInput for a key or value that cannot be used; the message
        begins with `where` and shows no value but the root.
        """
        config = result_of(given, where)
        if not isinstance(config, Mapping):
            found = "nothing" if config is None else f"a {type(config).__name__}"
            raise InvalidInput(f"{where}: config {_was(given, found)}; pass a dict, or a function that returns one")
        known = _OPTIONS.get(kind, {})
        unknown = sorted(str(key) for key in config if key not in {"root", *known})
        if unknown:
            keys = ", ".join(["root", *known])
            raise InvalidInput(f"{where}: config has the unknown key {unknown[0]!r}; a store in {kind} takes {keys}")
        for key, expected in known.items():
            _demand_type(config.get(key), key, expected, where)
        root = _root(kind, config.get("root"), where)
        # A copy: what the user changes afterwards is not meant.
        options = {key: copy.deepcopy(config[key]) for key in known if config.get(key)}
        return cls(kind, root.rstrip("/") if is_cloud(kind) else os.path.abspath(root), normalised(kind, root), options)

    @classmethod
    def decode(cls, values: Mapping[str, Any]) -> StoreConfig:
        """The config that `encode` gave."""
        return cls(values["kind"], values["given_root"], values["root"], values.get("options") or {})

    def encode(self) -> dict[str, Any]:
        """Everything, for JSON. Raises InvalidInput if the options hold what JSON cannot."""
        for key, value in self.options.items():
            try:
                json.dumps(value)
            except (TypeError, ValueError) as error:
                raise InvalidInput(
                    f"config[{key!r}] cannot be given to subprocesses, which read it as JSON: {error}; write it with "
                    "dicts, lists, texts and numbers (client_params['config'] as a dict)"
                ) from None
        return {"kind": self.kind, "given_root": self.given_root, "root": self.root, "options": dict(self.options)}

    def without_role(self) -> StoreConfig:
        """The same, but no role is assumed."""
        options = {key: value for key, value in self.options.items() if key != "role_arn"}
        return StoreConfig(self.kind, self.given_root, self.root, options)

    def require_sdk(self, where: str) -> None:
        """Raise StorageError if a package that the store needs is not installed."""
        missing, install = missing_sdks(self.kind)
        if missing:
            raise StorageError(f"{where}: a store in {self.kind} needs {' and '.join(missing)}: {install}")

    def _identity(self) -> tuple[str, str, bytes]:
        # What is no JSON is told apart by the object that it is.
        text = json.dumps(dict(self.options), sort_keys=True, default=lambda value: f"{type(value)} {id(value)}")
        return self.kind, self.root, hashlib.sha256(text.encode()).digest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StoreConfig) and self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())

    def __reduce__(self) -> NoReturn:
        raise TypeError("the config of an artifact store can hold credentials, and is not pickled")


def result_of(given: object, where: str) -> object:
    """A config that is no function, or what the function returns. Raises InvalidInput if it raises an error."""
    if not callable(given):
        return given
    try:
        returned: object = given()
        return returned
    except Exception as error:
        raise InvalidInput(
            f"{where}: the function that config= names raised {type(error).__name__}: {error}; it is called where a "
            "run is started, for the root, and in each task"
        ) from error


def _was(given: object, found: str) -> str:
    return f"is a function that returned {found}" if callable(given) else f"is {found}"


def _demand_type(value: object, key: str, expected: type, where: str) -> None:
    accepted = Mapping if expected is dict else expected
    if value is not None and not isinstance(value, accepted):
        raise InvalidInput(
            f"{where}: config[{key!r}] is a {type(value).__name__}; pass a {'text' if expected is str else 'dict'}"
        )


def _root(kind: str, root: object, where: str) -> str:
    if isinstance(root, os.PathLike) and kind == "local":
        root = os.fspath(root)
    form = in_words(kind)[1] if is_cloud(kind) else "a directory"
    if root is None or root == "":
        raise InvalidInput(f"{where}: config has no 'root'; pass {form}")
    if not isinstance(root, str):
        raise InvalidInput(f"{where}: config['root'] is a {type(root).__name__}; pass {form}")
    found = f"{where}: config['root'] is {shown_url(root)!r}"
    if is_cloud(kind) and not names_a_bucket(kind, root):
        raise InvalidInput(f"{found}, which names no {in_words(kind)[0]}; pass {form}")
    if not is_cloud(kind) and "://" in root:
        raise InvalidInput(f"{found}, which is no directory; pass {form}, or another type")
    return root
