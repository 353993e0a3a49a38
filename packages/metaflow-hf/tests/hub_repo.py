"""What the Hub for tests serves: repos of commits, branches and tags, and the files in them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Blob:
    """A file of a commit: LFS files go by the SHA-256 of their content, others by git's id of the blob."""

    data: bytes
    lfs: bool = False
    xet_hash: str | None = None
    oid: str = field(init=False)

    def __post_init__(self) -> None:
        if self.lfs:
            oid = hashlib.sha256(self.data).hexdigest()
        else:
            oid = hashlib.sha1(b"blob %d\0" % len(self.data) + self.data).hexdigest()
        object.__setattr__(self, "oid", oid)


def lfs(data: bytes, xet_hash: str | None = None) -> Blob:
    """Content that is kept with LFS, as the Hub does for everything large or binary."""
    return Blob(data, True, xet_hash)


class Repo:
    """A repo of the Hub; `token` is the one that opens it where it is private or gated."""

    def __init__(self, name: str, kind: str, private: bool, gated: bool, token: str | None) -> None:
        self.name = name
        self.kind = kind
        self.private = private
        self.gated = gated
        self.token = token
        self.commits: dict[str, dict[str, Blob]] = {}
        self.refs: dict[str, str] = {}

    def commit(self, changes: Mapping[str, bytes | Blob | None], branch: str = "main") -> str:
        """Change, add or (None) remove files on a branch; the new commit's id."""
        files = dict(self.commits[self.refs[branch]]) if branch in self.refs else {}
        for path, content in changes.items():
            if content is None:
                del files[path]
            else:
                files[path] = content if isinstance(content, Blob) else Blob(content)
        listing = repr([(path, blob.oid) for path, blob in sorted(files.items())])
        sha = hashlib.sha1(f"{self.name} {len(self.commits)} {listing}".encode()).hexdigest()
        self.commits[sha] = files
        self.refs[branch] = sha
        return sha

    def tag(self, name: str, sha: str | None = None) -> None:
        """Name a commit, by default the newest of `main`."""
        self.refs[name] = sha or self.refs["main"]

    def resolve(self, revision: str | None) -> str | None:
        """The commit that a branch, tag or commit id names."""
        revision = revision or "main"
        return self.refs.get(revision) or (revision if revision in self.commits else None)

    @property
    def files(self) -> dict[str, bytes]:
        """What the newest commit of `main` holds."""
        return {path: blob.data for path, blob in self.commits[self.refs["main"]].items()}
