"""Makes the calls of many transfers in threads that all of them share, within one budget of memory.

A call is given the memory that it needs before it begins, all at once; so no call waits for memory while it holds some,
and there can be no deadlock. A call that needs more than the whole budget runs while no other one holds memory. Calls
of a call are made by the thread that it runs in.

The threads are daemons, so that they never keep the interpreter from its end. They end when there was nothing to do for
a while. Where no thread can be started any more, the thread that wants the calls makes them. `current_engine.py` has
the engines of a process.

An interrupt (KeyboardInterrupt) may come in the caller's thread at any moment, also before the first line of a
function. So what must be given back is given back in two `finally`, one around the other; the second time does nothing
where the first one came to its end.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, Generic, TypeVar

from metaflow_artifacts._storage.job import SEND_BYTES, Cancelled, Job, current, work_again_for
from metaflow_artifacts._transfer.waiting import Changes, Turn
from metaflow_artifacts._transfer.width import Width

__all__ = ["BUDGET_BYTES", "MOST_THREADS", "Call", "Engine", "Group", "Later", "Manners"]

BUDGET_BYTES = 256 << 20
"""The memory of all calls that run."""
MOST_THREADS = 64

_IDLE_S = 10.0
"""After how long without a call a thread ends."""
_GRACE_S = 1.0
"""How long an interrupted transfer waits for its requests, whose sockets it has shut."""

_T = TypeVar("_T")
_R = TypeVar("_R")

Call = tuple[int, Callable[[], None]]
"""The bytes of memory that a call needs, and the call."""


@dataclass(frozen=True)
class Manners:
    """How an engine treats the other threads of the process."""

    block_bytes: int = 512 << 10
    """How much is read, hashed and written at a time: so little that it stays in the processor's cache."""
    send_bytes: int = SEND_BYTES
    """How much is given to a socket at a time."""
    fills_cache: bool = False
    """Whether saves put what they send into the node's cache."""


class Engine:
    """Makes the calls of many transfers, in threads that all of them share."""

    def __init__(
        self,
        budget: int = BUDGET_BYTES,
        most_threads: int = MOST_THREADS,
        manners: Manners | None = None,
        on_thread: Callable[[Engine], None] = lambda engine: None,
    ) -> None:
        """`budget` is in bytes. Each thread of the engine calls `on_thread` with the engine before it makes calls."""
        self._budget = budget
        self._most_threads = most_threads
        self.manners = manners or Manners()
        self._on_thread = on_thread
        self._lock = threading.Lock()
        self._work: queue.SimpleQueue[None] = queue.SimpleQueue()
        """An item for each idle thread that shall look for a call."""
        self._groups: deque[Group] = deque()
        """Those with calls that wait; the one that was served last comes last."""
        self._threads = 0
        """Those that serve; each counts itself."""
        self._is_alone = False
        """Whether the last thread could not be started."""
        self._idle = 0
        self._held = 0
        self._tickets: deque[Turn] = deque()
        """Callers that wait for memory to make a call themselves."""

    def run(self, calls: Iterable[Call], width: Width, group: Group | None = None) -> None:
        """Make the calls, as many at once as `width` allows. Raises the first error.

        `group` is a new one with this width, whose `later` the calls use. After an error no further call begins, and
        those that have begun are waited for. An interrupt (KeyboardInterrupt) also shuts their sockets.
        """
        remaining = iter(calls)
        if current() is not None:
            for _, call in remaining:
                call()
            return
        first = list(islice(remaining, 2))
        if group is None and len(first) < 2:
            for need, call in first:
                self._run_here(need, call, width)
            return
        group = group or Group(self, width)
        try:
            with group:
                for need, call in chain(first, remaining):
                    group.add(need, call)
        except BaseException as error:
            group.leave(error)
            raise

    def ordered(self, call: Callable[[_T], _R], items: Iterable[_T], width: Width) -> Iterator[_R]:
        """The results of the call for each item, in order; several items ahead are worked on.

        Raises the first error.
        """
        remaining = iter(items)
        first = list(islice(remaining, 2))
        if current() is not None or len(first) < 2:
            yield from map(call, chain(first, remaining))
            return
        group, ahead = Group(self, width), deque[Later[_R]]()
        try:
            with group:
                for item in chain(first, remaining):
                    ahead.append(group.later(lambda item=item: call(item)))  # type: ignore[misc]
                    if len(ahead) > 2 * width.now:
                        yield ahead.popleft().result()
                while ahead:
                    yield ahead.popleft().result()
        except BaseException as error:
            group.leave(error)
            raise

    def _run_here(self, need: int, call: Callable[[], None], width: Width) -> None:
        """Make one call in the caller's thread."""
        turn = Turn()
        try:
            try:
                self._take(turn, need)
                with Job(width.slow_down, self.manners.send_bytes).working():
                    call()
            finally:
                self._give_back(turn)
        finally:
            self._give_back(turn)

    def _take(self, turn: Turn, need: int) -> None:
        """Wait for memory for a caller that makes a call itself, and that holds none where it needs some."""
        if not need:
            # A call may want the result of another one while it holds memory that others wait for.
            return
        with self._lock:
            self._tickets.append(turn)
        needed = False
        while not turn.has_come:
            with self._lock:
                change = turn.changed.next()
                if self._tickets[0] is turn and self._fits(need):
                    self._tickets.popleft()
                    self._held += need
                    turn.held, turn.has_come = need, True
                    needed = self._wake()
            if not turn.has_come:
                change.acquire()
        self._start(needed)

    def _give_back(self, turn: Turn, group: Group | None = None, task: _Task | None = None) -> None:
        """The end of a caller's turn, and of the call that it has made of a group."""
        if turn.is_over:
            return
        work_again_for(turn.job)
        with self._lock:
            if group is not None and task is not None:
                self._end(group, task)
            self._held -= turn.held
            turn.held = 0
            if turn in self._tickets:
                self._tickets.remove(turn)
            needed = self._wake()
        self._start(needed)
        turn.is_over = True

    def _fits(self, need: int) -> bool:
        return not need or not self._held or self._held + need <= self._budget

    def _choice(self) -> Group | None:
        """The group whose next call comes first: of those that may have one more, the one with the fewest."""
        if self._tickets:
            return None
        ready = [group for group in self._groups if group.width.running < group.width.now]
        group = min(ready, key=lambda group: group.running, default=None)
        # A call that needs much is not passed over, or it would wait for ever.
        return group if group is not None and self._fits(group.waiting[0].need) else None

    def _wake(self) -> bool:
        """See to it that somebody makes the next call. Returns whether a thread must be started for it."""
        if self._tickets:
            self._tickets[0].changed.notify_all()
        elif self._choice() is not None:
            if not self._idle:
                return self._threads < self._most_threads
            if self._work.qsize() < self._idle:
                self._work.put(None)
        return False

    def wake(self) -> None:
        """See to it that the calls are made which may run now that a width has grown."""
        with self._lock:
            needed = self._wake()
        self._start(needed)

    def _start(self, needed: bool) -> None:
        if needed:
            try:
                threading.Thread(target=self._serve, name="metaflow-artifacts", daemon=True).start()
            except RuntimeError:
                # The interpreter ends, or the system has no thread left.
                with self._lock:
                    self._is_alone = True
                    # Those who have counted on this thread may have to make their calls themselves.
                    for group in self._groups:
                        group.changed.notify_all()

    def _begin(self, group: Group, task: _Task) -> None:
        thread = threading.get_ident()
        # The group goes first: other threads take the first waiting call of every group that they find in the queue.
        self._groups.remove(group)
        group.waiting.remove(task)
        if group.waiting:
            self._groups.append(group)
        group.running += 1
        group.width.running += 1
        task.thread = thread

    def _end(self, group: Group, task: _Task) -> None:
        if task.thread == threading.get_ident():
            group.running -= 1
            group.width.running -= 1
            task.thread = None
        group.changed.notify_all()

    def _serve(self) -> None:
        """What each thread does."""
        self._on_thread(self)
        with self._lock:
            if self._threads >= self._most_threads:
                return
            self._threads += 1
            self._is_alone = False
        while (found := self._next()) is not None:
            group, task, needed = found
            self._start(needed)
            group.make(task)
            with self._lock:
                self._held -= task.need
                self._end(group, task)
                if self._tickets:
                    self._wake()
            del found, group, task

    def _next(self) -> tuple[Group, _Task, bool] | None:
        """Begin the next call. Returns whether a thread must be started for the one after it, too.

        None, where there was nothing to do for a while: the thread ends.
        """
        was_idle, was_woken = False, True
        while True:
            with self._lock:
                self._idle -= was_idle
                group = self._choice()
                if group is not None:
                    task = group.waiting[0]
                    self._begin(group, task)
                    self._held += task.need
                    return group, task, self._wake()
                if not was_woken:
                    self._threads -= 1
                    return None
                self._idle += 1
            was_idle = True
            try:
                self._work.get(timeout=_IDLE_S)
            except queue.Empty:
                was_woken = False

    def _add(self, group: Group, task: _Task) -> None:
        with self._lock:
            if group._is_dropped:
                # Whoever waits for the task is told that the group was dropped.
                return
            # In this order: see `_begin`.
            group.waiting.append(task)
            if len(group.waiting) == 1:
                self._groups.append(group)
            needed = self._wake()
        self._start(needed)

    def _wait(self, group: Group, is_done: Callable[[], bool]) -> None:
        """Wait for calls of a group. Where there is no thread, this one makes them."""
        while True:
            with self._lock:
                if is_done():
                    return
                change = group.changed.next()
                makes = group.waiting and self._is_alone and not self._threads
                task = group.waiting[0] if makes else None
            if task is None:
                change.acquire()
            else:
                self._make_here(group, task)

    def _make_here(self, group: Group, task: _Task) -> None:
        """Make a call of a group in the caller's thread, if no other has begun it."""
        turn = Turn()
        try:
            try:
                with self._lock:
                    if task in group.waiting:
                        self._begin(group, task)
                if task.thread == threading.get_ident():
                    self._take(turn, task.need)
                    group.make(task)
            finally:
                self._give_back(turn, group, task)
        finally:
            self._give_back(turn, group, task)


class _Task:
    __slots__ = ("call", "done", "need", "thread")

    def __init__(self, need: int, call: Callable[[], Any]) -> None:
        self.need = need
        self.call = call
        self.done = False
        self.thread: int | None = None
        """The thread for which it is counted as running."""


class Later(Generic[_R]):
    """The result of a call that another thread makes, or this one as soon as it asks for the result."""

    def __init__(self, group: Group, call: Callable[[], _R]) -> None:
        self._group = group
        self._call: Callable[[], _R] | None = call
        self._outcome: list[_R] = []
        self._task = _Task(0, self._run)

    def _run(self) -> None:
        call, self._call = self._call, None
        assert call is not None
        # What the call holds is released with it, and not with its result.
        self._outcome.append(call())

    def result(self) -> _R:
        """Wait for the result. Raises the first error of the group."""
        self._group.settle(self._task)
        return self._outcome[0]


class Group:
    """The calls of one transfer. At the end of the block, those that have not been made are waited for.

    Where the block or a call raises, no further call begins, and those that have begun are waited for.
    """

    def __init__(self, engine: Engine, width: Width) -> None:
        self.width = width
        self.waiting: deque[_Task] = deque()
        self.running = 0
        self.changed = Changes()
        self._engine = engine
        self._job = Job(width.slow_down, engine.manners.send_bytes)
        self._error: BaseException | None = None
        self._is_dropped = False
        self._is_left = False

    def add(self, need: int, call: Callable[[], None]) -> None:
        """Have a call made that needs so many bytes of memory. Waits while many wait. Raises the first error."""
        self._engine._add(self, _Task(need, call))
        self._engine._wait(self, lambda: self._is_dropped or len(self.waiting) < 2 * self.width.now)
        self._raise()

    def later(self, call: Callable[[], _R]) -> Later[_R]:
        """Have a call made that needs no memory, whose result is asked for. This may also be called by a call."""
        later = Later(self, call)
        self._engine._add(self, later._task)
        return later

    def settle(self, task: _Task) -> None:
        """Wait until the call is made; where it has not begun, this thread makes it. Raises the first error."""
        engine = self._engine
        with engine._lock:
            waits = task in self.waiting
        if waits:
            engine._make_here(self, task)
        engine._wait(self, lambda: task.done or self._is_dropped)
        self._raise()

    def make(self, task: _Task) -> None:
        """Make a call in this thread."""
        try:
            with self._job.working():
                task.call()
        except Cancelled:
            pass
        except BaseException as error:
            with self._engine._lock:
                self._fail(error)
            self._job.stop()
        task.done = True

    def _fail(self, error: BaseException) -> None:
        self._error = self._error or error
        self._drop()

    def _drop(self) -> None:
        self._is_dropped = True
        # In this order: see `_begin`.
        if self in self._engine._groups:
            self._engine._groups.remove(self)
        self.waiting.clear()
        self.changed.notify_all()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error
        if self._is_dropped:
            raise Cancelled

    def __enter__(self) -> Group:
        self.width.begin()
        self.width.when_wider.add(self._engine.wake)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        try:
            if error is None:
                self._engine._wait(self, lambda: not self.waiting and not self.running)
                self._raise()
            self.leave(error)
        except BaseException as second:
            self.leave(second)
            raise

    def leave(self, error: BaseException | None) -> None:
        """Let nothing of the group go on after the block, which ends with this error."""
        if self._is_left:
            return
        if error is not None:
            self._abandon(shuts=not isinstance(error, Exception))
        # Break the reference cycle of error, traceback, frame and group, which would keep buffers alive.
        self._error = None
        self._is_left = True

    def _abandon(self, shuts: bool) -> None:
        """Drop the calls that wait, and wait for those that run."""
        with self._engine._lock:
            self._drop()
        self._job.stop()
        end = None
        if shuts:
            self._job.close()
            end = time.monotonic() + _GRACE_S
        while True:
            with self._engine._lock:
                left = -1.0 if end is None else max(0.0, end - time.monotonic())
                if not self.running or not left:
                    return
                change = self.changed.next()
            change.acquire(timeout=left)
