"""The worker process of this process, which stores the chunks of saves in the background.

It is a fresh process of the same Python. What it cannot do is done here, in the thread of the caller.
"""

from __future__ import annotations

import functools
import itertools
import math
import os
import pickle
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from metaflow_artifacts._format.manifest import Chunk
from metaflow_artifacts._storage.base import Storage
from metaflow_artifacts._storage.handover import Handover, NotPortable
from metaflow_artifacts._transfer.cache import Cache
from metaflow_artifacts._transfer.channel import Channel
from metaflow_artifacts._transfer.engine import BUDGET_BYTES
from metaflow_artifacts._transfer.handed_over import HandedOver
from metaflow_artifacts._transfer.new_files import owner, umask
from metaflow_artifacts._transfer.progress import Progress
from metaflow_artifacts._transfer.scan import Source, SourceFile
from metaflow_artifacts._transfer.shared_content import NoRoom, shared_content
from metaflow_artifacts._transfer.worker_messages import (
    Alive,
    Answer,
    Counted,
    Failed,
    Job,
    Question,
    Stored,
    Warned,
    failure,
)
from metaflow_artifacts._transfer.worker_share import Share
from metaflow_artifacts._transfer.worker_start import IGNORED, blocked_signals, import_paths
from metaflow_artifacts.errors import SourceError, StorageError, warn

__all__ = ["LEAST_BYTES", "WorkerProcess", "storing_elsewhere"]

LEAST_BYTES = 4 << 20
"""Less than this is stored here: that takes less than what the two processes say to each other."""
_MOST_FILES = 5000
"""More than these are stored here: to send their entries takes longer than what the worker spares."""
_WORKER_BYTES = 80 << 20
"""The memory of a worker that stores nothing."""
_NICE = 19
"""The lowest priority: the worker gets the processor when nobody else wants it, and never holds a training up."""
_LOOK_S = 0.5
"""How often it is looked whether the worker starves."""
_READY_S = 20.0
"""How long the worker may take to say its first word, while somebody waits."""
_SILENCE_S = 10.0
"""How long it may be silent later, while somebody waits: it says every second that it lives."""
_LONGEST_SILENCE_S = 60.0
"""How long it may be silent while nobody waits. A machine without a free processor leaves it little."""
_CALL_S = 20.0
"""How long it may take nothing of a message that is sent to it, or send nothing more of one."""
_REST_S = 60.0
"""How long saves are stored here after it starved."""
_LOST_S = 300.0
"""How long they are after it could not be started, or was lost twice."""
_KILLED_S = 0.5
"""How long this process waits for a worker to end that it has killed."""
_END_S = 10.0
"""How long the worker may take to end."""

# The worker begins with those signals blocked that it ignores a moment later. The user's directories come after those
# of Python itself: a module of the user may have the name of one of Python's, which this process has imported already.
_BOOT = f"""
import os, signal, sys
signals = {[*map(int, IGNORED)]}
for number in signals:
    signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
os.nice({_NICE})
# Clients are made from settings and keys, and not from a profile, which may not even exist.
os.environ.pop("AWS_PROFILE", None)
os.environ.pop("AWS_DEFAULT_PROFILE", None)
own = os.path.dirname(os.__file__)
own = [path for path in sys.path if path in (own, os.path.join(own, "lib-dynload"))]
end, parent, *paths = sys.argv[1:]
sys.path[:] = own + paths
from metaflow_artifacts._transfer.worker import main
main(int(end), int(parent))
"""

_SAYS_NOTHING = "the process that stores them does not answer"

Chunks = tuple[list[Chunk], dict[int, str]]


class _Lost(Exception):
    """The worker has ended, or cannot be started; the message says why."""


class _Silent(_Lost):
    """The worker says nothing: it is stopped, or hangs."""


class _Starves(Exception):
    """Somebody waits for the worker, and other processes leave it no processor; or it was given up."""


class WorkerProcess:
    """Starts the worker when it is first needed, and again where it has ended. One thread at a time calls `store`."""

    def __init__(self, is_awaited: Callable[[], bool] = lambda: False) -> None:
        """`is_awaited` says whether anybody waits for what is stored. Then its low priority spares nobody."""
        self._is_awaited = is_awaited
        self._rests_until = -math.inf
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: Channel | None = None
        self._killed: list[subprocess.Popen[bytes]] = []
        """Those that had not ended yet."""
        self._is_ready = False
        self._is_given_up = False
        self._has_told = False
        self._stored_here: weakref.WeakSet[Storage] = weakref.WeakSet()
        """Storages that work here, and not in the worker."""
        self._numbers = itertools.count()
        self._owner = owner()
        self._handed_over = HandedOver()

    @contextmanager
    def used(self, tell: Callable[[str], None]) -> Iterator[None]:
        """Saves of this thread use the worker in the block. `tell` is called once, where it cannot be used any more."""
        _local.store = functools.partial(self.store, tell)
        try:
            yield
        finally:
            _local.store = None

    def store(
        self,
        tell: Callable[[str], None],
        here: Callable[[], Chunks],
        storage: Storage,
        source: Source,
        chunk_size: int,
        progress: Progress,
        refresh_after: float,
        cache: Cache | None,
    ) -> Chunks:
        """As `store_chunks`, in the worker. Where that cannot be, `here` is called, which stores in this process."""
        found = self._stored_there(tell, storage, source, chunk_size, progress, refresh_after, cache)
        if isinstance(found, tuple):
            return found
        chunks = here()
        if found is not None:
            # The worker does not have all that this process has: a patched library, certificates, a network.
            self._stored_here.add(storage)
            self._tell_once(tell, f"the process that stores them fails: {type(found).__name__}: {found}")
        return chunks

    def _stored_there(
        self,
        tell: Callable[[str], None],
        storage: Storage,
        source: Source,
        chunk_size: int,
        progress: Progress,
        refresh_after: float,
        cache: Cache | None,
    ) -> Chunks | BaseException | None:
        """What the worker has stored, or its error; None where it is not used. Raises what is wrong with the source."""
        if self._is_given_up:
            self.close()
            return None
        suits = source.size >= LEAST_BYTES and len(source.files) <= _MOST_FILES and storage not in self._stored_here
        if not suits or time.monotonic() < self._rests_until or not threading.main_thread().is_alive():
            return None
        if self._owner != owner():
            # What it makes would belong to another user.
            self.close()
        try:
            handover, pickled = self._handed_over.find(storage)
            with shared_content(source, self._memory_for(storage, source)):
                files, places, opened = _sendable(source)
                job = Job(next(self._numbers), pickled, files, places, chunk_size, refresh_after, cache, umask())
                outcome = self._run_or_restart(job, opened, handover, progress)
        except (NotPortable, NoRoom):
            return None
        except _Starves:
            # What it has stored is found there.
            if not self._is_given_up:
                self._rests_until = time.monotonic() + _REST_S
            return None
        except _Lost as error:
            self._rests_until = time.monotonic() + _LOST_S
            self._tell_once(tell, str(error))
            return None
        if isinstance(outcome, Stored):
            return _taken(outcome, source, progress)
        if isinstance(outcome.error, SourceError):
            raise outcome.error
        return outcome.error

    def _tell_once(self, tell: Callable[[str], None], reason: str) -> None:
        if not self._has_told:
            self._has_told = True
            tell(f"saves in the background are stored by the process of the task, and slow it more: {reason}")

    def _memory_for(self, storage: Storage, source: Source) -> int:
        """The bytes that the worker will take besides what it has."""
        starts = 0 if self._process is not None else _WORKER_BYTES
        return starts + (min(source.size, BUDGET_BYTES) if storage.stages_in_memory else 0)

    def _run_or_restart(self, job: Job, opened: list[int], handover: Handover, progress: Progress) -> Stored | Failed:
        # One that has served before may have been idle for too long, or was killed: another one is started.
        for attempts_left in (0,) if self._process is None else (1, 0):
            try:
                return self._run(job, opened, handover, progress)
            except _Silent:
                raise
            except _Lost:
                if not attempts_left:
                    raise
        raise AssertionError("unreachable")

    def _start(self) -> None:
        if self._process is not None:
            return
        if not sys.executable or getattr(sys, "frozen", False):
            raise _Lost("there is no Python that could be started (sys.executable)")
        try:
            self._owner = owner()
            with _starting:
                ours, theirs = socket.socketpair()
                self._channel = Channel(ours)
                with theirs:
                    end = theirs.fileno()
                    command = [sys.executable, "-c", _BOOT, str(end), str(os.getpid()), *import_paths()]
                    nothing = subprocess.DEVNULL
                    with blocked_signals():
                        self._process = subprocess.Popen(
                            command, stdin=nothing, stdout=nothing, pass_fds=[end], cwd="/"
                        )
            self._channel.look = functools.partial(_look_for, self._process)
        except (OSError, RuntimeError, ValueError, subprocess.SubprocessError) as error:
            raise _Lost(f"no process can be started to store them: {error}") from error

    def _run(self, job: Job, opened: list[int], handover: Handover, progress: Progress) -> Stored | Failed:
        try:
            self._start()
            assert self._process is not None
            share = Share(self._process.pid)
            self._send(job, opened)
            while True:
                self._wait_for_message(share)
                message = self._receive()
                self._is_ready = True
                if isinstance(message, Alive):
                    continue
                if isinstance(message, Question):
                    self._send(_answer(handover, message))
                elif isinstance(message, Warned):
                    warn(message.text)
                elif isinstance(message, Counted):
                    if message.job == job.number:
                        _count(progress, message)
                elif message.job != job.number:
                    raise _Lost("the process that stores them answers for an earlier save")
                else:
                    outcome: Stored | Failed = message
                    return outcome
        except BaseException:
            # What it says later about this job must not be taken for the next one's.
            self.close()
            raise

    def _send(self, message: object, opened: Sequence[int] = ()) -> None:
        assert self._channel is not None
        try:
            self._channel.send(message, opened)
        except BlockingIOError as error:
            raise _Silent(_SAYS_NOTHING) from error
        except OSError as error:
            raise _Lost(self._why_lost(error)) from error

    def _receive(self) -> Any:
        assert self._channel is not None
        try:
            return self._channel.receive()[0]
        except BlockingIOError as error:
            raise _Silent(_SAYS_NOTHING) from error
        except Exception as error:
            # Besides the end of the other process: what cannot be unpickled.
            raise _Lost(self._why_lost(error)) from error

    def _wait_for_message(self, share: Share) -> None:
        assert self._channel is not None
        begin = time.monotonic()
        while True:
            is_awaited = self._is_awaited()
            if self._is_given_up or (is_awaited and share.is_too_small()):
                raise _Starves
            if not is_awaited:
                share.forget()
            if self._channel.has_arrived(_LOOK_S):
                return
            longest = _LONGEST_SILENCE_S if not is_awaited else _SILENCE_S if self._is_ready else _READY_S
            if time.monotonic() - begin > longest:
                raise _Silent(_SAYS_NOTHING)

    def _why_lost(self, error: BaseException) -> str:
        assert self._process is not None
        assert self._channel is not None
        # If it has not ended, it ends now.
        self._channel.close()
        try:
            code = self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            code = 0
        if not code:
            return f"the process that stores them cannot be reached: {error}"
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        return f"the process that stores them {how}"

    def give_up(self) -> None:
        """Store here from now on, what the worker is storing too. Any thread may call this."""
        self._is_given_up = True

    def use_again(self) -> None:
        """Take `give_up` back."""
        self._is_given_up = False

    def close(self) -> None:
        """End the worker. What it was storing is not committed."""
        channel, process = self._channel, self._process
        self._channel = self._process = None
        self._is_ready = False
        if channel is not None:
            channel.close()
        if process is not None:
            # One of another user may not be killed, and ends since the channel is closed.
            with suppress(PermissionError):
                process.kill()
            # One that gets no processor ends later, and so does one that waits for a file system.
            with suppress(subprocess.TimeoutExpired):
                process.wait(_KILLED_S)
            self._killed.append(process)
        self._killed = [one for one in self._killed if one.poll() is None]

    def __del__(self) -> None:
        self.close()

    def forget(self) -> None:
        """In a forked child: the worker is its parent's."""
        channel, process = self._channel, self._process
        self._channel = self._process = None
        if channel is not None:
            channel.close()
        for one in self._killed if process is None else [*self._killed, process]:
            # It is not this process's child: nothing is to be waited for.
            one.returncode = 0
        self._killed.clear()


def _look_for(process: subprocess.Popen[bytes], seconds: float) -> None:
    if process.poll() is not None:
        raise ConnectionAbortedError("it has ended")
    if seconds > _CALL_S:
        raise BlockingIOError("it does not answer")


def _sendable(source: Source) -> tuple[list[SourceFile], dict[int, tuple[int, int]], list[int]]:
    """The files without what cannot be pickled, the places of those in memory, and the descriptors to send."""
    files: list[SourceFile] = []
    places: dict[int, tuple[int, int]] = {}
    opened: dict[int, int] = {}
    for number, file in enumerate(source.files):
        fd = None
        if file.shared is not None and file.size:
            places[number] = opened.setdefault(file.shared[0].fileno(), len(opened)), file.shared[1]
        elif file.fd is not None:
            fd = opened.setdefault(file.fd, len(opened))
        content = b"" if file.content is not None and not file.size else None
        files.append(file._replace(content=content, fd=fd, shared=None))
    return files, places, list(opened)


def _answer(handover: Handover, question: Question) -> Answer:
    try:
        if question.storage != handover.portable.number:
            # A thread of an earlier save still asks. It must not get keys that are for another storage.
            raise StorageError("keys were asked for a storage that is not used any more")
        answer = Answer(question.number, handover.answer(question.about))
        pickle.dumps(answer)
        return answer
    except Exception as error:
        return Answer(question.number, None, failure(error))


def _count(progress: Progress, counted: Counted) -> None:
    progress.more(counted.total - progress.total)
    progress.add(counted.done - progress.done, stored=counted.stored - progress.stored)


def _taken(stored: Stored, source: Source, progress: Progress) -> Chunks:
    for number, now in stored.changed.items():
        before = source.files[number]
        source.files[number] = now._replace(content=before.content, fd=before.fd, shared=before.shared)
    size = sum(size for _, size in stored.chunks)
    if size != source.size:
        raise StorageError(f"the process that stores has stored {size} bytes of a save of {source.size}; save again")
    _count(progress, stored.counted)
    return [Chunk(*chunk) for chunk in stored.chunks], stored.digests


_local = threading.local()
# A fork waits while a worker is started: the child would hold the worker's end of the channel.
_starting = threading.RLock()


def _renew() -> None:
    global _local, _starting
    _local, _starting = threading.local(), threading.RLock()


os.register_at_fork(
    before=lambda: _starting.acquire(), after_in_parent=lambda: _starting.release(), after_in_child=_renew
)


def storing_elsewhere() -> Callable[..., Chunks] | None:
    """What saves of this thread call to store their chunks: `WorkerProcess.store`, but for `tell`."""
    found: Callable[..., Chunks] | None = getattr(_local, "store", None)
    return found
