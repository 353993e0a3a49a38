"""The arguments of `snapshot_download` and the forms of `load=`, checked and turned into one class.

This module does not import huggingface_hub: mistakes are found before a flow starts, on a machine that may lack it.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from metaflow_artifacts.plugin import InvalidInput

# Every process of a flow with @huggingface_hub imports this module. What only the decorated task needs is not.
if TYPE_CHECKING:
    from metaflow_artifacts.plugin import ModelArtifact, SnapshotId

__all__ = ["CACHE_SCOPES", "LoadSpec", "RepoRequest", "parse_load", "secret_in", "without_secrets"]

CACHE_SCOPES = ("checkpoint", "flow", "global")
REPO_TYPES = ("model", "dataset", "space")

_REPO_ID = re.compile(r"(?!.*\.\.)[\w-][\w.-]*(/[\w-][\w.-]*)?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}", re.ASCII)
_SECRETS = ("token", "headers", "use_auth_token")
_REFUSED: dict[str, tuple[tuple[object, ...], str]] = {
    "cache_dir": ((), "files are kept in the datastore, not in a cache on disk; pass local_dir= for a copy on disk"),
    "dry_run": ((False,), "not supported; call huggingface_hub.snapshot_download for that"),
    "local_dir_use_symlinks": ((False, "auto"), "files are copied to local_dir, never linked; leave it out"),
    "proxies": (({},), "set HTTPS_PROXY and HTTP_PROXY, or configure the session of huggingface_hub, which are obeyed"),
    "resume_download": ((True,), "downloads always resume; pass force_download=True to download every file again"),
    "tqdm_class": ((), "there is no progress bar; the log says how far a long download is"),
}
"""Arguments of some version of snapshot_download that cannot be obeyed: the values besides None that ask for nothing
else than what is done, and what the error says about all others."""
_ARGUMENT_TYPES: dict[str, tuple[type, ...]] = {
    "max_workers": (int,),
    "etag_timeout": (int, float, type(None)),
    "endpoint": (str, type(None)),
    "token": (str, bool, type(None)),
    "headers": (Mapping, type(None)),
    "library_name": (str, type(None)),
    "library_version": (str, type(None)),
    "user_agent": (str, Mapping, type(None)),
}
_FORMS = "a repo id, a dict of snapshot_download arguments, or a pair of one of these and a path"


@dataclass(frozen=True)
class RepoRequest:
    """A repo with the arguments it was asked for. Its repr, name and metadata contain neither `token` nor `headers`."""

    repo_id: str
    repo_type: str = "model"
    revision: str | None = None
    """Branch, tag or commit id; None is the default branch."""
    allow_patterns: tuple[str, ...] | None = None
    ignore_patterns: tuple[str, ...] | None = None
    force_download: bool = False
    local_files_only: bool = False
    max_workers: int = 8
    """Files that are downloaded at the same time."""
    etag_timeout: float | None = None
    """Seconds to wait for the Hub's answer about a repo; None is the setting of huggingface_hub."""
    local_dir: str | None = None
    """A directory to which the files are copied as well; None for none."""
    endpoint: str | None = None
    library_name: str | None = None
    """With `library_version` and `user_agent`, how requests name the program that makes them; by default, this one."""
    library_version: str | None = None
    user_agent: str | Mapping[str, str] | None = None
    token: bool | str | None = field(default=None, repr=False)
    headers: Mapping[str, str] | None = field(default=None, repr=False)

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> RepoRequest:
        """Make a request from keyword arguments of `huggingface_hub.snapshot_download`.

        Raises InvalidInput, which names the argument that is unknown, missing, has the wrong type or cannot be
        obeyed: none is ignored.
        """
        given = dict(arguments)
        for name, (accepted, reason) in _REFUSED.items():
            value = given.pop(name, None)
            if value is not None and value not in accepted:
                raise InvalidInput(f"{name}: {reason}")
        if given.get("token") is None:
            given["token"] = given.pop("use_auth_token", None)
        accepted_names = {*cls.__dataclass_fields__, "use_auth_token"}
        for name in sorted(set(given) - accepted_names):
            similar = difflib.get_close_matches(name, sorted(accepted_names), 1)
            hint = f"; did you mean {similar[0]}?" if similar else ""
            raise InvalidInput(f"{name}: not an argument of huggingface_hub.snapshot_download{hint}")
        given.pop("use_auth_token", None)
        if "repo_id" not in given:
            raise InvalidInput("repo_id is missing: the repo to download, for example google-bert/bert-base-uncased")
        repo_type = given["repo_type"] = given.get("repo_type") or "model"
        for name in ("force_download", "local_files_only"):
            given[name] = bool(given.get(name))
        for name in ("allow_patterns", "ignore_patterns"):
            given[name] = _patterns(name, given.get(name))
        given["ignore_patterns"] = given["ignore_patterns"] or None
        if given.get("max_workers") is None:
            given.pop("max_workers", None)
        if given.get("local_dir") is not None:
            given["local_dir"] = os.fspath(given["local_dir"])
        # huggingface_hub returns revisions as texts with an attribute that holds the commit.
        given["revision"] = getattr(given.get("revision"), "resolved", given.get("revision"))
        request = cls(**given)
        if not isinstance(request.repo_id, str) or not _REPO_ID.fullmatch(request.repo_id):
            raise InvalidInput(f"repo_id {request.repo_id!r}: expected <name> or <organisation>/<name>")
        if repo_type not in REPO_TYPES:
            raise InvalidInput(f"repo_type {repo_type!r}: expected one of {', '.join(REPO_TYPES)}")
        for name, types in _ARGUMENT_TYPES.items():
            if not isinstance(getattr(request, name), types):
                # The value is not shown: it may be a secret in the wrong form.
                raise InvalidInput(f"{name}: has the wrong type, {type(getattr(request, name)).__name__}")
        if request.revision is not None and (not isinstance(request.revision, str) or not request.revision):
            raise InvalidInput(f"revision {request.revision!r}: expected a branch, a tag or a commit id")
        return request

    def arguments(self) -> dict[str, Any]:
        """The arguments that were given, as JSON can hold them, without `token` and `headers`."""
        given = {field.name: getattr(self, field.name) for field in fields(self) if field.repr}
        defaults = RepoRequest(self.repo_id)
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in given.items()
            if name in ("repo_id", "repo_type") or value != getattr(defaults, name)
        }

    @property
    def commit(self) -> str | None:
        """The commit, if it was asked for by its id; None for a branch or a tag, which can change."""
        return self.revision if self.revision is not None and _COMMIT.fullmatch(self.revision) else None

    @property
    def revision_key(self) -> tuple[str | None, ...]:
        """What decides the commit: the Hub is asked with these values."""
        return self.endpoint, self.repo_type, self.repo_id, self.revision or "main"

    @property
    def revision_hash(self) -> str:
        """20 hex digits of `revision_key`."""
        return _sha256(self.revision_key)[:20]

    @property
    def content_hash(self) -> str:
        """12 hex digits of all that decides the content."""
        return self._digest(self.repo_type, self.repo_id, self.revision or "main")[:12]

    @property
    def name(self) -> str:
        """The name of a snapshot's checkpoints."""
        return self.content_hash[:10]

    def snapshot(self, commit: str) -> SnapshotId:
        """What tells the snapshot of a commit from all others: its name, its repo, and which files it has."""
        from metaflow_artifacts.plugin import SnapshotId

        group = _sha256([self.repo_type, self.repo_id])[:20]
        return SnapshotId(self.name, group, f"{commit}.{self._digest()[:10]}", self.metadata(commit))

    def is_of(self, artifact: ModelArtifact) -> bool:
        """Whether a snapshot is one of this request. Two requests can have the same name, which is a short hash."""
        metadata = artifact["metadata"]
        wanted = self.metadata(str(metadata.get("commit")))
        return {name: metadata.get(name) for name in wanted} == wanted

    def _digest(self, *parts: str) -> str:
        return _sha256([*parts, _sorted(self.allow_patterns), _sorted(self.ignore_patterns)])

    def metadata(self, commit: str) -> dict[str, Any]:
        """The metadata of a snapshot's reference: where its content came from."""
        return {
            "registry": "huggingface",
            "repo_id": self.repo_id,
            "repo_type": self.repo_type,
            "revision": self.revision or "main",
            "commit": commit,
            "allow_patterns": _sorted(self.allow_patterns),
            "ignore_patterns": _sorted(self.ignore_patterns),
        }

    @property
    def patterns(self) -> dict[str, list[str] | None]:
        """The arguments that select files, as the functions of huggingface_hub take them."""
        given = {"allow_patterns": self.allow_patterns, "ignore_patterns": self.ignore_patterns}
        return {name: None if value is None else list(value) for name, value in given.items()}

    def __str__(self) -> str:
        kind = "" if self.repo_type == "model" else f"{self.repo_type} "
        return f"{kind}{self.repo_id}" + (f" at {self.revision[:40]}" if self.revision else "")


def _patterns(name: str, value: Any) -> tuple[str, ...] | None:
    if value is None:
        return None
    if isinstance(value, str):
        return (value,)
    if isinstance(value, (Sequence, set, frozenset)) and all(isinstance(item, str) for item in value):
        return tuple(value)
    raise InvalidInput(f"{name} {value!r}: expected a pattern such as '*.json', or a list of them")


def _sorted(patterns: tuple[str, ...] | None) -> list[str] | None:
    return None if patterns is None else sorted(set(patterns))


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, separators=(",", ":")).encode()).hexdigest()


@dataclass(frozen=True)
class LoadSpec:
    """One entry of `load=`: a repo, and the directory to load it into (None: a temporary one)."""

    request: RepoRequest
    path: str | None = None


def parse_load(load: Any) -> list[LoadSpec]:
    """The entries of a decorator's `load` argument. Raises InvalidInput, which names the entry that is wrong.

    A single repo counts as a list of one. A tuple is a list: a pair is a member of one.
    """
    if load is None:
        return []
    entries = load if _is_sequence(load) else [load]
    try:
        return [_spec(entry, f"load[{number}]") for number, entry in enumerate(entries)]
    except InvalidInput as error:
        if isinstance(load, tuple) and len(load) == 2:
            raise InvalidInput(f"{error}; a pair goes into a list: load=[('org/name', './path')]") from None
        raise


def _is_sequence(value: Any) -> bool:
    # Config objects have sequences of their own.
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def _spec(entry: Any, where: str) -> LoadSpec:
    path: str | None = None
    # On the command line (--with) a pair is a list: JSON has no tuples.
    if _is_sequence(entry):
        if len(entry) != 2 or not isinstance(entry[1], (str, os.PathLike)):
            raise InvalidInput(f"{where}: expected {_FORMS}; found {len(entry)} entries")
        entry, path = entry[0], os.fspath(entry[1])
    if isinstance(entry, str):
        entry = {"repo_id": entry}
    if not isinstance(entry, Mapping):
        raise InvalidInput(f"{where}: expected {_FORMS}; found {type(entry).__name__}")
    try:
        request = RepoRequest.of(entry)
    except InvalidInput as error:
        raise InvalidInput(f"{where}: {error}") from None
    return LoadSpec(request, path if path is not None else request.local_dir)


def without_secrets(load: Any) -> Any:
    """A copy of a `load` argument without its secrets. Metaflow stores the attributes of decorators with each run."""
    if isinstance(load, Mapping):
        return {name: without_secrets(value) for name, value in load.items() if not _is_secret(name, value)}
    if _is_sequence(load) or isinstance(load, (set, frozenset)):
        return [without_secrets(entry) for entry in load]
    return os.fspath(load) if isinstance(load, os.PathLike) else load


def secret_in(load: Any) -> str | None:
    """The name of the first argument in a `load` argument that is a secret; None if there is none."""
    if isinstance(load, Mapping):
        return next((str(name) for name, value in load.items() if _is_secret(name, value)), None)
    if _is_sequence(load):
        return next((secret for entry in load if (secret := secret_in(entry)) is not None), None)
    return None


def _is_secret(name: object, value: object) -> bool:
    # True and False say whether the token of huggingface_hub's own settings is sent.
    return name in _SECRETS and not (value is None or isinstance(value, bool))
