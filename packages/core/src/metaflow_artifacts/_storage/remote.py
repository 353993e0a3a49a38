"""What the storages of all clouds have in common: everything that is not one vendor's own request."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import logging
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar

from metaflow_artifacts._storage.base import CopyOutcome, ObjectInfo, Storage
from metaflow_artifacts._storage.memory import memory
from metaflow_artifacts._storage.names import TEMPORARY, check_key, check_prefix, is_key
from metaflow_artifacts._storage.outgoing import Blocks, Outgoing
from metaflow_artifacts._storage.remote_deletes import Deletes
from metaflow_artifacts._storage.remote_objects import Answer, Described, ObjectReader, StagedObject
from metaflow_artifacts._storage.remote_requests import Requests, Service
from metaflow_artifacts._text import has_credentials, public_url
from metaflow_artifacts.errors import ArtifactNotFound, InvalidInput, StorageError, TransientStorageError

__all__ = ["RemoteStorage", "be_quiet", "path_of"]

MOST_THREADS = 64
"""Concurrent requests of a kind of transfer, where they are faster than fewer."""


_YOUNG_S = 1800.0
"""The largest age of a copy that was just made: what clocks may differ by, and the time that the request takes."""


class RemoteStorage(Storage):
    """Objects in a bucket of a cloud, below a prefix.

    A backend implements the requests below. Each gets a client of `service` and the full name of an object, makes one
    request, and lets the SDK's exceptions pass. They are retried, resumed and explained here.

    One client serves all threads of a process. It is made at the first request, and again after a fork. A request
    that fails for a reason that may pass is retried. TransientStorageError is raised when no request has succeeded for
    `patience` seconds, or after some attempts (see `Requests.pause`).
    """

    stages_in_memory: ClassVar[bool] = True
    batch: ClassVar[int] = 0
    """How many objects one request deletes; 0 where the service has no such request."""
    keeps_sha256: ClassVar[bool] = False
    """Whether the service can keep a SHA-256 of an object. Then it copies none without."""

    def __init__(self, root: str, bucket: str, prefix: str, service: Service, threads: int, patience: float) -> None:
        self.root = root
        self.bucket = bucket
        self.threads = threads
        self.most_threads = MOST_THREADS
        self._prefix = prefix
        self._service = service
        self._requests = Requests(root, bucket, service, patience)
        self._deletes = Deletes(
            self._requests, prefix, threads, self._delete, self.batch, self._delete_batch, self._is_unsupported
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.root!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return self._maker(True), ()

    def __deepcopy__(self, memo: dict[int, Any]) -> RemoteStorage:
        # In the same process, the copy may use the same function that gives credentials, whatever that holds.
        return self._maker(False)()

    @abstractmethod
    def _maker(self, portable: bool) -> Callable[[], RemoteStorage]:
        """A function that opens the same storage; with `portable`, one that can be pickled and has no credentials."""

    @abstractmethod
    def _write(self, client: Any, name: str, data: memoryview | Outgoing, sha256: bytes, new: bool) -> None:
        """Write an object; with `new`, only if there is none of this name. The digest may be sent along."""

    @abstractmethod
    def _read(self, client: Any, name: str, first: int, last: int | None, ranged: bool, version: str | None) -> Answer:
        """Ask for an object's bytes from `first` to `last`, both included; without `ranged`, for all.

        With `version`, which an earlier answer gave, only if the object is still the same.
        """

    @abstractmethod
    def _page(self, client: Any, prefix: str, more: Any) -> tuple[Iterable[tuple[str, int, float]], Any]:
        """Names, sizes and times of some objects, and what to pass as `more` for the next ones: None at the end."""

    @abstractmethod
    def _renew(self, client: Any, name: str, after: float) -> float | None:
        """Set the object's time to now. The new time, if the answer has it."""

    @abstractmethod
    def _shares_service(self, source: Any) -> bool:
        """Whether another storage of this class is on the same service, so that a request can name objects of both."""

    @abstractmethod
    def _describe(self, client: Any, name: str) -> Described:
        """Size, version and digests of an object."""

    @abstractmethod
    def _copy(self, client: Any, name: str, source: Any, source_name: str, found: Described) -> Described:
        """Copy an object of another storage on the same service, if it still is the version that was `found`, and if
        there is none of this name here, as far as the service takes that condition.

        Returns what the service says about the copy.
        """

    @abstractmethod
    def _discard(self, client: Any, name: str, version: str) -> object:
        """Remove an object if it still is this version."""

    @abstractmethod
    def _delete(self, client: Any, name: str) -> object:
        """Remove an object."""

    def _delete_batch(self, client: Any, names: list[str]) -> list[tuple[str, Exception]]:
        """Remove up to `batch` objects. The names and errors of those that exist and could not be removed."""
        raise NotImplementedError

    @abstractmethod
    def _is_unsupported(self, error: BaseException | None) -> bool:
        """Whether the server refuses this kind of request, so that another kind should be used."""

    @abstractmethod
    def _is_denied(self, error: BaseException | None) -> bool:
        """Whether this user lacks the right to make this kind of request."""

    @abstractmethod
    def _may_be_replaced(self, error: BaseException | None) -> bool:
        """Whether an object whose renewal failed in this way can be written again all the same."""

    def connect(self) -> None:
        """Make the client before the first request, which takes some time. Nothing is sent.

        Where it cannot be made, nothing is raised: the first request tries again, and raises.
        """
        self._requests.connect()

    @property
    def server(self) -> str:
        return self._service.endpoint(self._requests.client("reach", ""))

    def put(self, key: str, data: bytes) -> None:
        self._send(key, memoryview(data), hashlib.sha256(data).digest())

    def put_if_absent(self, key: str, data: bytes) -> bool:
        try:
            self._send(key, memoryview(data), hashlib.sha256(data).digest(), new=True)
        except _AlreadyThere as error:
            # If an answer was lost, the object that exists may be the one that the first attempt wrote.
            return error.retried and self.get(key) == data
        return True

    def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        def request(client: Any) -> bytes:
            answer = self._answer(key, client, start, length)
            if answer is None:
                return b""
            with contextlib.closing(answer.body):
                data = answer.body.read()
            if len(data) != answer.length:
                raise TransientStorageError(
                    f"cannot read {self.url(key)}: the server sent less than it announced; try again"
                )
            return data

        check_key(key)
        return self._requests.make("read", key, request)

    @contextlib.contextmanager
    def open(self, key: str, start: int = 0, length: int | None = None) -> Iterator[ObjectReader]:
        check_key(key)
        with self.open_any(key, start, length) as reader:
            yield reader

    @contextlib.contextmanager
    def open_any(self, name: str, start: int = 0, length: int | None = None) -> Iterator[ObjectReader]:
        reader = ObjectReader(self._requests, name, functools.partial(self._answer, name), start, length)
        try:
            yield reader
        finally:
            reader.close()

    @contextlib.contextmanager
    def stage(self, size: int) -> Iterator[StagedObject]:
        yield StagedObject(memory(size), self._send)

    def put_hashed(self, key: str, data: memoryview, sha256: bytes) -> None:
        self._send(key, data, sha256)

    def send(self, key: str, size: int, sha256: bytes, blocks: Blocks) -> None:
        self._send(key, Outgoing(size, sha256, blocks), sha256)

    def copy_from(self, source: Storage, key: str, size: int, sha256: bytes, *, strict: bool = False) -> CopyOutcome:
        check_key(key, writing=True)
        if not isinstance(source, RemoteStorage) or type(source) is not type(self):
            return CopyOutcome.UNABLE
        name = source._prefix + key
        try:
            if not self._shares_service(source):
                return CopyOutcome.UNABLE
            found = source._requests.make("read", key, lambda client: source._describe(client, name))
            if found.size != size or found.sha256 not in (None, sha256):
                return CopyOutcome.UNFIT
            if found.sha256 is None and (strict or self.keeps_sha256 or found.digest is None):
                return CopyOutcome.UNFIT
            copied = self._requests.make(
                "copy", key, lambda client: self._copy(client, self._prefix + key, source, name, found)
            )
            if copied.is_like(found, sha256) and self._is_young(key, copied.modified):
                return CopyOutcome.COPIED
            self._take_back(key, copied.version)
            return CopyOutcome.UNFIT
        except (StorageError, ArtifactNotFound) as error:
            # The caller looks again, or reads and writes the object, which shows what is wrong with either.
            return self._outcome(error)

    def _outcome(self, error: StorageError | ArtifactNotFound) -> CopyOutcome:
        """What the failure of a copy means; raises it if it may pass."""
        cause = error.__cause__
        if self._service.is_refusal(cause):
            return CopyOutcome.EXISTS
        if self._service.is_changed(cause):
            return CopyOutcome.UNFIT
        if isinstance(error, TransientStorageError):
            raise error
        return CopyOutcome.UNABLE if self._is_unsupported(cause) or self._is_denied(cause) else CopyOutcome.UNFIT

    def _take_back(self, key: str, version: str | None) -> None:
        """Remove a copy that turned out wrong, unless somebody has written the object again. Else a save relies on it.

        Where it cannot be removed, the caller writes over it, if the source has the right content.
        """
        if version is not None:
            with contextlib.suppress(StorageError, ArtifactNotFound):
                self._requests.make("delete", key, lambda client: self._discard(client, self._prefix + key, version))

    def _is_young(self, key: str, modified: float | None) -> bool:
        """Whether a copy has a time of its own. A server that keeps the source's time would have gc take it away."""
        if modified is None:
            info = self.stat(key)
            modified = 0.0 if info is None else info.modified
        return modified > self.now() - _YOUNG_S

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        check_prefix(prefix)
        return (info for info in self._pages(prefix) if is_key(info.key))

    def list_any(self, prefix: str) -> Iterator[ObjectInfo]:
        check_prefix(prefix)
        return self._pages(prefix)

    def _pages(self, prefix: str) -> Iterator[ObjectInfo]:
        more: Any = None
        while True:
            request = functools.partial(self._page, prefix=self._prefix + prefix, more=more)
            objects, more = self._requests.make("list", prefix, request)
            for name, size, modified in objects:
                key = name[len(self._prefix) :]
                if not key.startswith(TEMPORARY):
                    yield ObjectInfo(key, size, modified)
            if more is None:
                return

    def delete(self, keys: Iterable[str]) -> None:
        self._deletes.delete(keys)

    def delete_any(self, names: Iterable[str]) -> None:
        self._deletes.delete(names, any_names=True)

    def touch(self, key: str, after: float = 0.0) -> bool:
        check_key(key)
        request = functools.partial(self._renew, name=self._prefix + key, after=after)
        try:
            modified = self._requests.make("refresh the time of", key, request)
        except ArtifactNotFound:
            return False
        except StorageError as error:
            if self._is_unsupported(error.__cause__) or self._may_be_replaced(error.__cause__):
                return False
            raise
        if modified is None:
            info = self.stat(key)
            return info is not None and info.modified > after
        return modified > after

    def url(self, key: str) -> str:
        return f"{self.root}/{key}"

    def _send(self, key: str, data: memoryview | Outgoing, sha256: bytes, *, new: bool = False) -> None:
        """Write an object. With `new`, raises _AlreadyThere where the key exists."""
        check_key(key, writing=True)
        attempts = itertools.count()

        def request(client: Any) -> None:
            again = next(attempts) > 0
            if isinstance(data, Outgoing):
                data.seek(0)
            try:
                self._write(client, self._prefix + key, data, sha256, new)
            except self._service.faults() as error:
                if isinstance(data, Outgoing) and data.failure is not None:
                    raise data.failure from None
                if new and self._service.is_refusal(error):
                    raise _AlreadyThere(again or self._service.was_retried(error)) from error
                raise
            finally:
                if isinstance(data, Outgoing):
                    data.close()

        self._requests.make("write", key, request)

    def _answer(
        self, key: str, client: Any, start: int, length: int | None, version: str | None = None
    ) -> Answer | None:
        """The answer to a request for a range of an object; None where the range holds nothing."""
        if start < 0 or (length is not None and length < 0):
            raise InvalidInput(f"range of {key!r}: start {start} and length {length} must not be negative")
        ranged = start > 0 or length is not None
        # HTTP has no empty ranges. One byte shows whether the object exists.
        last = None if length is None else start + max(length, 1) - 1
        try:
            answer = self._read(client, self._prefix + key, start, last, ranged, version)
        except self._service.faults() as error:
            if self._service.is_beyond(error):
                return None
            raise
        if ranged and not answer.ranged:
            answer.body.close()
            raise StorageError(
                f"cannot read {self.url(key)}: {self._service.endpoint(client)} does not serve byte ranges; "
                "use a server, or a proxy, that does"
            )
        if length == 0:
            answer.body.close()
            return None
        return answer


class _AlreadyThere(Exception):
    def __init__(self, retried: bool) -> None:
        super().__init__(retried)
        self.retried = retried


def path_of(root: str, path: str) -> str:
    """The prefix of the keys below a root's `path`. It is used as it is, without slashes at its ends, as Metaflow does.

    Raises InvalidInput for one that leads elsewhere, and for a root with credentials in it, which messages would repeat
    (a plain `?` may be in a name).
    """
    if has_credentials(root):
        raise InvalidInput(
            f"datastore root {public_url(root)!r} has a user name or a signature in it; remove it, credentials come "
            "from the configuration of the cloud"
        )
    path = path.strip("/")
    if any(part in {".", ".."} for part in path.split("/")):
        raise InvalidInput(f"datastore root {root!r} has a part '.' or '..' in its path; remove it")
    return path + "/" if path else ""


def be_quiet(*names: str) -> None:
    """Stop these loggers of an SDK, unless the user has set their level: what they log is raised or repeated anyway."""
    for name in names:
        logger = logging.getLogger(name)
        if logger.level == logging.NOTSET:
            logger.setLevel(logging.CRITICAL + 1)
