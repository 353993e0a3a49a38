"""Saves in the background: one worker for each process stores snapshots, in the order of the calls.

One save is stored while at most one other waits. A call that finds more waits until there is room, or replaces the one
that waits. The process does not end before all are stored.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Hashable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from metaflow_artifacts._format.reference import ModelArtifact
from metaflow_artifacts._store.pending import PendingSave
from metaflow_artifacts._transfer.content import Content, source_of
from metaflow_artifacts._transfer.engine import in_background
from metaflow_artifacts._transfer.removal import remove_tree
from metaflow_artifacts._transfer.scan import Source
from metaflow_artifacts._transfer.snapshot import NoSnapshot, Snapshot, take_snapshot
from metaflow_artifacts.errors import InvalidInput, SaveReplaced, SaveTimeout, warn

__all__ = ["BackgroundSaves", "OnBusy", "SaveOptions", "Storing", "background_saves"]

OnBusy = Literal["wait", "replace"]
"""What a save does where another one waits already."""
Storing = Callable[[Source], ModelArtifact]
"""Stores what is in a source; called once, by the worker."""

_IDLE_S = 10.0
"""After how long without a save the worker ends."""


@dataclass(frozen=True)
class SaveOptions:
    """How a save in the background is taken over."""

    consume: bool = False
    """Whether the caller gives its files and buffers away: files are moved and not copied."""
    on_busy: OnBusy = "wait"
    """Where another save waits already: `wait` until there is room, or `replace` the one that waits."""
    temp_root: str | os.PathLike[str] | None = None
    """Where a snapshot is made if the source's own file system cannot be written to."""
    tell: Callable[[str], None] = warn
    """Called once with a sentence where saves cannot be made in the background."""
    note_unseen: Callable[[BaseException], None] = lambda error: None
    """Called at the end of the process with the error of the save, if nobody has asked for it."""

    def check(self) -> None:
        """Raise InvalidInput for a value that is not known."""
        if self.on_busy not in ("wait", "replace"):
            raise InvalidInput(f"on_busy: expected 'wait' or 'replace', found {self.on_busy!r}")


@dataclass
class _Job:
    group: Hashable
    pending: PendingSave
    snapshot: Snapshot
    store: Storing
    note_unseen: Callable[[BaseException], None]

    def run(self) -> ModelArtifact | BaseException:
        self.pending._begin()
        try:
            reference = self.store(self.snapshot.source)
        except BaseException as error:
            self.snapshot.give_back()
            # The frames hold the content.
            traceback.clear_frames(error.__traceback__)
            return error
        self.snapshot.close()
        return reference


_NOTHING = Snapshot(Source())


def _nothing(source: Source) -> ModelArtifact:
    raise NotImplementedError


class BackgroundSaves:
    """The queue of the saves of one process, and the worker that stores them."""

    def __init__(self) -> None:
        self._process = os.getpid()
        # A signal's handler may save, and interrupt a thread that holds these.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._turn = threading.RLock()
        """Held by the call that hands a save over, so that the order of numbers is that of the queue."""
        self._waiting: deque[_Job] = deque()
        self._running: _Job | None = None
        self._worker: threading.Thread | None = None
        self._is_closed = False
        self._is_abandoned = False
        self._handed_over: list[tuple[Hashable, PendingSave]] = []
        """Since the last `wait`."""
        self._failed: list[_Job] = []
        self._has_told = False
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
        with self._turn:
            self._wait_for_room(group, options.on_busy)
            try:
                snapshot, reason = take_snapshot(content, consume=options.consume, temp_root=options.temp_root), ""
            except NoSnapshot as error:
                snapshot, reason = _Foreground(content, options.consume), str(error)
            try:
                job = _Job(group, pending, snapshot, begin(), options.note_unseen)
            except BaseException:
                snapshot.give_back()
                raise
            self._add(job, options.on_busy)
        if reason:
            if not self._has_told:
                self._has_told = True
                options.tell(f"saves are not made in the background, and the step waits for each: {reason}")
            pending._finished.wait()
        pending.seconds_waited = time.monotonic() - start
        self.seconds_waited += pending.seconds_waited
        return pending

    def _wait_for_room(self, group: Hashable, on_busy: OnBusy) -> None:
        with self._lock:
            # Once it is closed, the process is about to end: what was handed over then would be lost.
            self._changed.wait_for(
                lambda: not self._is_closed and (not self._waiting or self._replaceable(group, on_busy) is not None)
            )

    def _replaceable(self, group: Hashable, on_busy: OnBusy) -> _Job | None:
        return next((job for job in self._waiting if on_busy == "replace" and job.group == group), None)

    def _add(self, job: _Job, on_busy: OnBusy) -> None:
        with self._lock:
            # It may have been closed since there was room.
            self._changed.wait_for(lambda: not self._is_closed)
            old = self._replaceable(job.group, on_busy)
            if old is not None:
                self._waiting.remove(old)
            self._waiting.append(job)
            self._handed_over.append((job.group, job.pending))
            self._changed.notify_all()
        if old is not None:
            old.snapshot.close()
            old.pending._finish(SaveReplaced("a later save with on_busy='replace' has taken the place of this one"))
        _wait_at_exit()
        self._ensure_worker()

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
            with in_background():
                outcome = job.run()
            with self._lock:
                self._running = None
                job.pending._finish(outcome)
                if isinstance(outcome, BaseException):
                    job.snapshot, job.store = _NOTHING, _nothing
                    self._failed.append(job)
                self._changed.notify_all()
            del job, outcome

    @property
    def pending(self) -> int:
        """How many saves are not done."""
        with self._lock:
            return len(self._waiting) + (self._running is not None)

    def settle(self, timeout: float | None = None) -> bool:
        """Wait until nothing is pending, `timeout` seconds at most; whether that is so."""
        if not self.pending:
            return True
        self._ensure_worker()
        start = time.monotonic()
        try:
            with self._lock:
                return self._changed.wait_for(lambda: not self.pending, timeout)
        finally:
            self.seconds_waited += time.monotonic() - start

    def wait(self, timeout: float | None = None, *, kind: str | None = None) -> list[ModelArtifact]:
        """Wait for all saves, and return the references of those handed over since the last call, in their order.

        Those that were replaced are left out. With `kind`, only those count whose group is a tuple that begins with
        it. Raises the first error, and SaveTimeout after `timeout` seconds.
        """
        if not self.settle(timeout):
            raise SaveTimeout(f"{self.pending} saves are not done after {timeout} seconds; they go on")
        with self._lock:
            mine: list[tuple[Hashable, PendingSave]] = []
            others: list[tuple[Hashable, PendingSave]] = []
            for group, pending in self._handed_over:
                (mine if kind in (None, _kind(group)) else others).append((group, pending))
            self._handed_over = others
        references = []
        for _, pending in mine:
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
        """Wait until nothing is pending, `timeout` seconds at most, and take nothing over then. Whether all is stored.

        A call that would hand over a save waits until `reopen`.
        """
        with self._lock:
            is_done = self._changed.wait_for(lambda: not self.pending, timeout)
            self._is_closed = True
            return is_done

    def reopen(self) -> None:
        """Take saves over again."""
        with self._lock:
            self._is_closed = False
            self._changed.notify_all()

    def abandon(self) -> None:
        """Do not wait for what is pending when the process ends."""
        self._is_abandoned = True

    def end(self) -> None:
        """The end of the process: wait for what is pending, and print the errors that nobody has seen."""
        if self._process != os.getpid() or self._is_abandoned:
            return
        self.settle()
        for error, note in self._take_failures():
            print(f"a save in the background failed: {type(error).__name__}: {error}", file=sys.stderr)
            note(error)


def _kind(group: Hashable) -> object:
    return group[0] if isinstance(group, tuple) and group else group


class _Foreground(Snapshot):
    """The source itself, where there can be no snapshot; the caller waits until it is stored."""

    def __init__(self, content: Content, consume: bool) -> None:
        super().__init__(source_of(content))
        self._content = content
        self._consume = consume

    def close(self) -> None:
        if not self._consume:
            return
        values = self._content.values() if isinstance(self._content, Mapping) else [self._content]
        for path in values:
            if isinstance(path, (str, os.PathLike)):
                # As a move would: a link goes, and what it leads to stays.
                with suppress(OSError):
                    os.unlink(path)
                remove_tree(os.fspath(path))

    def give_back(self) -> None:
        pass


_saves = BackgroundSaves()
_waiting_at_exit: set[int] = set()


def _renew() -> None:
    global _saves
    _saves = BackgroundSaves()


os.register_at_fork(after_in_child=_renew)


def background_saves() -> BackgroundSaves:
    """The saves of this process."""
    return _saves


def _wait_at_exit() -> None:
    if os.getpid() in _waiting_at_exit:
        return
    _waiting_at_exit.add(os.getpid())
    atexit.register(_end)
    if "multiprocessing" in sys.modules:
        from multiprocessing import parent_process
        from multiprocessing.util import Finalize

        if parent_process() is not None:
            # Workers that were forked end without Python's own clean-up.
            Finalize(None, _end, exitpriority=100)


def _end() -> None:
    _saves.end()
