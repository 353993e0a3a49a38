"""Messages for the errors of the operating system."""

from __future__ import annotations

import errno
from typing import NoReturn

from metaflow_artifacts.errors import (
    ArtifactError,
    ArtifactNotFound,
    InvalidInput,
    StorageError,
    TransientStorageError,
)

__all__ = ["DENIED", "MISSING", "NO_LINKS", "NO_LOCKS", "REASONS", "raise_error"]

REASONS = {
    errno.ENOSPC: "the disk is full; free space there or choose another datastore root",
    errno.EDQUOT: "the disk quota is used up; free space there or choose another datastore root",
    errno.EACCES: "permission denied; check owner and mode, or choose another datastore root",
    errno.EPERM: "permission denied; check owner and mode, or choose another datastore root",
    errno.EROFS: "the file system is read-only; remount it or choose another datastore root",
    errno.ENOENT: "it is not there, or was removed meanwhile; try again when the store is there",
    errno.ENOTDIR: "a file lies where a directory is needed; move it away",
    errno.EISDIR: "a directory lies where a file is needed; move it away",
    errno.EXDEV: "it lies on another file system than the rest of the store; keep the store on one",
    errno.ELOOP: "its symbolic links lead in a circle; remove them",
    errno.EMFILE: "too many files are open in this process; raise the limit (ulimit -n)",
    errno.EIO: "the disk or the network file system reports an input/output error; check it, and try again",
}
MISSING = frozenset({errno.ENOENT, errno.ENOTDIR})
DENIED = frozenset({errno.EPERM, errno.EACCES})
NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EXDEV})
NO_LOCKS = frozenset({errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK, errno.EINVAL})
_PASSING = frozenset({errno.EIO, errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.ESTALE, errno.ETIMEDOUT, errno.ENFILE})


def raise_error(error: OSError, action: str, path: str, key: str | None = None) -> NoReturn:
    """Raise the ArtifactError for an OSError. With `key`, a missing path raises ArtifactNotFound."""
    number = error.errno
    if key is not None and number in MISSING:
        raise ArtifactNotFound(f"nothing is stored at {path}; check the key {key!r} and the datastore") from error
    if number == errno.ENAMETOOLONG:
        raise InvalidInput(
            f"cannot {action} {path}: the path is too long for the file system; use a shorter one"
        ) from error
    reason = REASONS.get(number or 0) or error.strerror or str(error)
    kind: type[ArtifactError] = TransientStorageError if number in _PASSING else StorageError
    raise kind(f"cannot {action} {path}: {reason}") from error
