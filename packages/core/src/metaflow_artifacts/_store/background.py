"""Saves in the background: one worker for each process stores snapshots, in the order of the calls.

The worker is a thread, which leaves the chunks to a process of its own where it can (`_transfer/worker_process.py`).
One save is stored while at most one other waits. A call that finds more waits until there is room, or replaces the one
that waits. The process does not end before all are stored.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from metaflow_artifacts._format.reference import ModelArtifact
from metaflow_artifacts._store.background_job import Foreground, Job, Storing
from metaflow_artifacts._store.pending import PendingSave
from metaflow_artifacts._transfer.content import Content
from metaflow_artifacts._transfer.current_engine import in_background
from metaflow_artifacts._transfer.snapshot import NoSnapshot, take_snapshot
from metaflow_artifacts._transfer.worker_process import WorkerProcess
from metaflow_artifacts.errors import ArtifactError, InvalidInput, SaveReplaced, SaveTimeout, warn

__all__ = ["BackgroundSaves", "OnBusy", "SaveOptions", "Storing", "background_saves"]

OnBusy = Literal["wait", "replace"]
"""What a save does where another one waits already."""
_IDLE_S = 10.0
"""After how long without a save the worker ends."""
_LONGEST_WAIT_S = 0.5


@dataclass(frozen=True)
class SaveOptions:
    """How a save in the background is taken over."""

    consume: bool = False
    """Whether the caller gives its files away: they are moved and not copied. Buffers are always copied."""
    on_busy: OnBusy = "wait"
    """Where another save waits already: `wait` until there is room, or `replace` the one that waits."""
    temp_root: str | os.PathLike[str] | None = None
    """Where a snapshot is made if the source's own file system cannot be written to."""
    tell: Callable[[str], None] = warn
    """Called once with a sentence where saves cannot be made in the background, or only by this process itself."""
    note_unseen: Callable[[BaseException], None] = lambda error: None
    """Called at the end of the process with the error of the save, if nobody has asked for it."""

    def check(self) -> None:
        """Raise InvalidInput for a value that is not known."""
        if self.on_busy not in ("wait", "replace"):
            raise InvalidInput(f"on_busy: expected 'wait' or 'replace', found {self.on_busy!r}")


class BackgroundSaves:
    """The queue of the saves of one process, and the worker that stores them."""

    def __init__(self) -> None:
        self._process = os.getpid()
        # A signal's handler may save, and interrupt a thread that holds these.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._turn = threading.RLock()
        """Held by the call that hands a save over, so that the order of numbers is that of the queue."""
        self._waiting: deque[Job] = deque()
        self._running: Job | None = None
        self._foreground: Job | None = None
        """What the caller's thread stores, as there can be no snapshot."""
        self._entering = 0
        """How many calls have found room and not handed over yet."""
        self._worker: threading.Thread | None = None
        awaited = weakref.WeakMethod(self._is_awaited)
        self._worker_process = WorkerProcess(lambda: bool((is_awaited := awaited()) and is_awaited()))
        """Stores the chunks, where it can."""
        self._is_closed = False
        self._is_abandoned = False
        self._has_ended = False
        self._handed_over: list[tuple[Hashable, PendingSave]] = []
        """Since the last `wait`."""
        self._inherited: list[tuple[Hashable, PendingSave]] = []
        """In a forked child: what its parent had not stored."""
        self._failed: list[Job] = []
        self._has_told = False
        self._awaited = 0
        """How many threads wait until something is stored."""
        self.seconds_waited = 0.0
        """How long callers have waited for saves: while they handed them over, and until others were stored."""

    def submit(
        self,
        content: Content,
        begin: Callable[[], Storing],
        options: SaveOptions,
        *,
        group: Hashable = None,
        pending: PendingSave | None = None,
    ) -> PendingSave:
        """Hand a save over: take a snapshot of `content`, and have it stored after all that were handed over before.

        `begin` is called as soon as there is a snapshot; what it returns stores it. With `replace`, a save of the same
        `group` is replaced. Returns `pending`, or a new one. Raises as `take_snapshot` and `begin`.
        """
        options.check()
        start = time.monotonic()
        pending = pending or PendingSave()
        pending._note_waited = self._note_waited
        with self._turn, self._room(group, options.on_busy):
            try:
                snapshot, reason = take_snapshot(content, consume=options.consume, temp_root=options.temp_root), ""
            except NoSnapshot as error:
                snapshot, reason = Foreground(content, options.consume), str(error)
            try:
                if reason and not self._has_told:
                    self._has_told = True
                    options.tell(f"saves are not made in the background, and the step waits for each: {reason}")
                job = Job(group, pending, snapshot, begin(), options.note_unseen, options.tell)
            except BaseException:
                snapshot.give_back()
                raise
            if reason:
                self._store_now(job)
            else:
                self._add(job, options.on_busy)
        self._wait_at_exit(pending)
        pending.seconds_waited = time.monotonic() - start
        self.seconds_waited += pending.seconds_waited
        return pending

    @contextmanager
    def _room(self, group: Hashable, on_busy: OnBusy) -> Iterator[None]:
        """Begins when there is room for one more."""
        with self._lock:
            # Once it is closed, the process is about to end: what was handed over then would be lost.
            # A signal that comes just before a wait is handled only after it, so no wait is without an end.
            while not self._wait_for(
                lambda: not self._is_closed and (not self._waiting or self._replaceable(group, on_busy) is not None),
                _LONGEST_WAIT_S,
            ):
                pass
            self._entering += 1
        try:
            yield
        finally:
            with self._lock:
                self._entering -= 1
                self._changed.notify_all()

    def _replaceable(self, group: Hashable, on_busy: OnBusy) -> Job | None:
        return next((job for job in self._waiting if on_busy == "replace" and job.group == group), None)

    def _add(self, job: Job, on_busy: OnBusy) -> None:
        with self._lock:
            old = self._replaceable(job.group, on_busy)
            if old is not None:
                # First: an interrupt may come between any two of these lines. The worker leaves out what is done.
                old.pending._finish(SaveReplaced("a later save with on_busy='replace' has taken the place of this one"))
                self._waiting.remove(old)
            self._waiting.append(job)
            self._handed_over.append((job.group, job.pending))
            self._changed.notify_all()
        if old is not None:
            old.snapshot.close()
        _finalize_at_exit()
        self._ensure_worker()

    def _store_now(self, job: Job) -> None:
        """Store a save in the caller's thread, after all that were handed over before.

        What interrupts it is raised, and ends it as it ends a plain save.
        """
        self.settle()
        self._foreground = job
        outcome: ModelArtifact | BaseException = ArtifactError("this save was interrupted")
        try:
            outcome = job.run()
        finally:
            with self._lock:
                self._foreground = None
                job.pending._finish(outcome)
                job.release()
                self._handed_over.append((job.group, job.pending))
                if isinstance(outcome, ArtifactError):
                    self._failed.append(job)
                self._changed.notify_all()
        if isinstance(outcome, BaseException) and not isinstance(outcome, ArtifactError):
            job.pending.take_error()
            raise outcome

    def _wait_at_exit(self, pending: PendingSave) -> None:
        """Where the process is ending already, wait: `end` may have run, and threads are stopped soon."""
        if threading.main_thread().is_alive():
            return
        pending._finished.wait()
        if self._has_ended:
            self._print_failures()

    def _ensure_worker(self) -> None:
        """Start the worker if there is something to do and none. An interrupt may have come before it was started."""
        with self._lock:
            if not self._waiting or (self._worker is not None and self._worker.is_alive()):
                return
            try:
                worker = threading.Thread(target=self._work, name="metaflow-artifacts-saves", daemon=True)
                worker.start()
                self._worker = worker
                return
            except RuntimeError:
                # The interpreter ends, or the system has no thread left.
                pass
        self._work(idle_s=0)

    def _work(self, idle_s: float = _IDLE_S) -> None:
        """What the worker does."""
        while True:
            with self._lock:
                if not self._changed.wait_for(lambda: self._waiting, idle_s):
                    # Before the lock is released: whoever adds something now starts another one.
                    self._worker = None
                    return
                self._running = job = self._waiting.popleft()
                self._changed.notify_all()
            if job.pending.done():
                job.snapshot.close()
                with self._lock:
                    self._running = None
                    self._changed.notify_all()
                continue
            with in_background(), self._worker_process.used(job.tell):
                outcome = job.run()
            with self._lock:
                self._running = None
                job.pending._finish(outcome)
                job.release()
                if isinstance(outcome, BaseException):
                    self._failed.append(job)
                self._changed.notify_all()
            del job, outcome

    def _note_waited(self, seconds: float) -> None:
        self.seconds_waited += seconds

    def _wait_for(self, is_so: Callable[[], object], timeout: float | None) -> bool:
        """Wait until something is so, which a save that is stored makes so. The lock is held."""
        self._awaited += 1
        try:
            return bool(self._changed.wait_for(is_so, timeout))
        finally:
            self._awaited -= 1

    def _is_awaited(self) -> bool:
        return self._awaited > 0 or any(job.pending.awaited for job in self._jobs())

    @property
    def pending(self) -> int:
        """How many saves are not done."""
        return len(self._jobs())

    def _jobs(self) -> list[Job]:
        with self._lock:
            return [job for job in (self._foreground, self._running, *self._waiting) if job is not None]

    def settle(self, timeout: float | None = None) -> bool:
        """Wait until all that was handed over before is done, `timeout` seconds at most; whether that is so."""
        jobs = self._jobs()
        if not jobs:
            return True
        self._ensure_worker()
        start = time.monotonic()
        try:
            with self._lock:
                return self._wait_for(lambda: all(job.pending.done() for job in jobs), timeout)
        finally:
            self.seconds_waited += time.monotonic() - start

    def wait(self, timeout: float | None = None, *, kind: str | None = None) -> list[ModelArtifact]:
        """Wait for all saves, and return the references of those handed over since the last call, in their order.

        Those that were replaced are left out, and those that are handed over while this waits. With `kind`, only those
        count whose group is a tuple that begins with it. Raises the first error, SaveTimeout after `timeout` seconds,
        and UsageError in a forked child that has handed over none, while its parent had some that were not stored.
        """
        with self._lock:
            mine = [pending for group, pending in self._handed_over if kind in (None, _kind(group))]
        if not mine:
            mine = [pending for group, pending in self._inherited if kind in (None, _kind(group))]
        if not self.settle(timeout):
            raise SaveTimeout(f"{self.pending} saves are not done after {timeout} seconds; they go on")
        taken = set(map(id, mine))
        with self._lock:
            self._handed_over = [(group, pending) for group, pending in self._handed_over if id(pending) not in taken]
        references = []
        for pending in mine:
            error = pending.exception()
            if error is None:
                references.append(pending.result())
            elif not isinstance(error, SaveReplaced):
                raise error
        return references

    def take_failures(self) -> list[BaseException]:
        """The errors of saves that failed, if nobody has asked for them; each is returned once."""
        return [error for error, _ in self._take_failures()]

    def _take_failures(self) -> list[tuple[BaseException, Callable[[BaseException], None]]]:
        with self._lock:
            failed, self._failed = self._failed, []
        return [(error, job.note_unseen) for job in failed if (error := job.pending.take_error()) is not None]

    def close_when_done(self, timeout: float) -> bool:
        """Take nothing more over, and wait until nothing is pending, `timeout` seconds at most. Whether all is stored.

        A call that would hand over a save waits until `reopen`; one that is being made is still taken over.
        """
        with self._lock:
            self._is_closed = True
            return self._wait_for(lambda: not self.pending and not self._entering, timeout)

    def hurry(self) -> None:
        """Store by this process, at its priority, what is pending and what is handed over until `reopen`."""
        self._worker_process.give_up()

    def reopen(self) -> None:
        """Take saves over again, and do not hurry."""
        self._worker_process.use_again()
        with self._lock:
            self.reopen_without_lock()
            self._changed.notify_all()

    def reopen_without_lock(self) -> None:
        """As `reopen`, for the handler of a signal: calls from now on do not wait; those that wait go on waiting."""
        self._is_closed = False

    def abandon(self) -> None:
        """Do not wait for what is pending, neither when the process ends nor where it is pickled."""
        self._is_abandoned = True
        for job in self._jobs():
            job.pending._abandon()

    @property
    def is_abandoned(self) -> bool:
        """Whether nobody waits for what is pending."""
        return self._is_abandoned

    def end(self) -> None:
        """The end of the process: wait for what is pending, and print the errors that nobody has seen."""
        if self._process != os.getpid() or self._is_abandoned:
            return
        self.settle()
        self._worker_process.close()
        self._has_ended = True
        self._print_failures()

    def _print_failures(self) -> None:
        for error, note in self._take_failures():
            print(f"a save in the background failed: {type(error).__name__}: {error}\n", end="", file=sys.stderr)
            note(error)


def _kind(group: Hashable) -> object:
    return group[0] if isinstance(group, tuple) and group else group


_saves = BackgroundSaves()
_finalized: set[int] = set()
"""The processes in which `_end` is called where multiprocessing ends them."""


def _renew() -> None:
    global _saves
    parents, _saves = _saves, BackgroundSaves()
    parents._worker_process.forget()
    _saves._inherited = [*parents._inherited, *parents._handed_over]
    _saves._inherited = [(group, pending) for group, pending in _saves._inherited if not pending.done()]


os.register_at_fork(after_in_child=_renew)


def background_saves() -> BackgroundSaves:
    """The saves of this process."""
    return _saves


def _finalize_at_exit() -> None:
    if os.getpid() in _finalized or "multiprocessing" not in sys.modules:
        return
    _finalized.add(os.getpid())
    from multiprocessing import parent_process
    from multiprocessing.util import Finalize

    if parent_process() is not None:
        # Workers that were forked end without Python's own clean-up.
        Finalize(None, _end, exitpriority=100)


def _end() -> None:
    _saves.end()


atexit.register(_end)
