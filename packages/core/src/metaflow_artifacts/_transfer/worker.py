"""The process that stores the chunks of saves in the background, for the `WorkerProcess` that starts it.

It has the lowest priority, so that it waits for whoever else wants the processor. It imports neither Metaflow nor the
program that started it. It ends as soon as the process that started it does, and then nothing is committed: only that
process writes manifests.
"""

from __future__ import annotations

import functools
import itertools
import math
import mmap
import os
import pickle
import queue
import socket
import threading
import time
import traceback
import warnings
from contextlib import suppress
from typing import Any

from metaflow_artifacts._storage.base import Storage
from metaflow_artifacts._transfer.channel import Channel
from metaflow_artifacts._transfer.chunk_saving import store_chunks
from metaflow_artifacts._transfer.progress import Progress
from metaflow_artifacts._transfer.scan import Source, SourceFile
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
from metaflow_artifacts.errors import ArtifactWarning

__all__ = ["main"]

_IDLE_S = 10.0
"""After how long without a job it ends: it holds some 60 MB of memory, and programs may wait for all their children."""
_LOOK_S = 1.0
"""How often it says that it lives, and looks whether the process that started it does: a forked child may hold its end
of the channel."""
_COUNT_S = 0.25
"""How often it says at most how much is stored."""
_STORAGES = 4
"""How many storages are kept, with their connections."""


def main(end: int, parent: int) -> None:
    """Serve the process with the id `parent`, which is at the other end of the socket `end`."""
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:
        # Where memory runs out, the training is not what is killed.
        score.write("500")
    worker = _Worker(Channel(socket.socket(fileno=end), functools.partial(_look_for, parent)), parent)
    code = 1
    try:
        worker.serve()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        # Without a wait for threads: what they do serves nobody any more.
        os._exit(code)


def _look_for(parent: int, seconds: float) -> None:
    if os.getppid() != parent:
        raise ConnectionAbortedError("the process that started this one has ended")


class _Worker:
    def __init__(self, channel: Channel, parent: int) -> None:
        self._channel = channel
        self._parent = parent
        self._asked: dict[int, queue.SimpleQueue[Answer]] = {}
        self._numbers = itertools.count()
        self._storages: dict[bytes, Storage] = {}
        self._counted_at = 0.0
        warnings.showwarning = self._warn
        warnings.filterwarnings("always", category=ArtifactWarning)

    def serve(self) -> None:
        """Do what is asked for, until the other end is closed or nothing was asked for a while."""
        self._send(Alive())
        # Its first job comes, or the end of the channel.
        idle_since = math.inf
        storing: threading.Thread | None = None
        while True:
            if not self._channel.has_arrived(_LOOK_S):
                if storing is not None and storing.is_alive():
                    idle_since = time.monotonic()
                    self._send(Alive())
                if os.getppid() != self._parent or time.monotonic() - idle_since > _IDLE_S:
                    return
                continue
            try:
                message, files = self._channel.receive()
            except (EOFError, ConnectionError):
                return
            if isinstance(message, Answer):
                self._asked[message.number].put(message)
            else:
                storing = threading.Thread(target=self._store_or_end, args=(message, files), daemon=True)
                storing.start()
                idle_since = time.monotonic()

    def _store_or_end(self, job: Job, opened: list[int]) -> None:
        try:
            self._store(job, opened)
        except BaseException:
            # Without an answer the other process would wait for ever.
            traceback.print_exc()
            os._exit(1)

    def _store(self, job: Job, opened: list[int]) -> None:
        try:
            outcome = self._stored(job, opened)
        except BaseException as error:
            outcome = Failed(job.number, failure(error))
        for fd in opened:
            os.close(fd)
        self._send(outcome)

    def _stored(self, job: Job, opened: list[int]) -> Stored | Failed:
        if job.umask is not None:
            os.umask(job.umask)
        files = _opened(job, opened)
        source, progress = Source(list(files)), Progress(functools.partial(self._count, job.number))
        storage = self._storage(job.storage)
        found = store_chunks(storage, source, job.chunk_size, progress, job.refresh_after, job.cache)
        chunks = [(chunk.sha256, chunk.size) for chunk in found[0]]
        changed = {
            number: now._replace(content=None, fd=None, shared=None)
            for number, now in enumerate(source.files)
            if now is not files[number]
        }
        counted = Counted(job.number, progress.total, progress.done, progress.stored)
        return Stored(job.number, chunks, found[1], changed, counted)

    def _storage(self, pickled: bytes) -> Storage:
        storage = self._storages.pop(pickled, None)
        if storage is None:
            portable = pickle.loads(pickled)
            storage = portable.open(functools.partial(self._ask, portable.number))
        while len(self._storages) >= _STORAGES:
            del self._storages[next(iter(self._storages))]
        self._storages[pickled] = storage
        return storage

    def _ask(self, storage: int, about: Any) -> Any:
        number = next(self._numbers)
        answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()
        self._asked[number] = answers
        self._send(Question(number, storage, about))
        answer = answers.get()
        del self._asked[number]
        if answer.error is not None:
            raise answer.error
        return answer.value

    def _count(self, job: int, progress: Progress) -> None:
        now = time.monotonic()
        if now - self._counted_at >= _COUNT_S:
            self._counted_at = now
            self._send(Counted(job, progress.total, progress.done, progress.stored))

    def _warn(self, message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        if issubclass(category, ArtifactWarning):
            self._send(Warned(str(message)))

    def _send(self, message: object) -> None:
        try:
            self._channel.send(message)
        except OSError:
            os._exit(0)


def _opened(job: Job, opened: list[int]) -> list[SourceFile]:
    """The files of a job, as they can be read here."""
    maps: dict[int, memoryview] = {}
    for index in {index for index, _ in job.places.values()}:
        maps[index] = memoryview(mmap.mmap(opened[index], 0, prot=mmap.PROT_READ))
    files = []
    for number, file in enumerate(job.files):
        if number in job.places:
            index, at = job.places[number]
            file = file._replace(content=maps[index][at : at + file.size])
        elif file.fd is not None:
            file = file._replace(fd=opened[file.fd])
        files.append(file)
    return files
