"""What happens when the process of a task gets SIGTERM: what is pending is stored, or the step gets some seconds.

The signal's handler runs in the main thread, between any two instructions. So it takes no lock and only notes the
signal: a thread waits for what is pending, and then sends the signal again, which ends the process as it would have
ended. A second signal ends it at once.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from typing import Any

from metaflow_artifacts._store.background import background_saves
from metaflow_artifacts._text import count_text

__all__ = ["PENDING_S", "Preemption", "is_preempted", "running_preemption", "watch_for_preemption"]

PENDING_S = 25.0
"""How long after the signal the task waits for pending saves. Kubernetes and most schedulers kill after 30 s."""


class Preemption:
    """Waits for SIGTERM in one process, from `install` to `end`."""

    def __init__(self, tell: Callable[[str], None], grace: float | None = None) -> None:
        """With `grace`, the step has so many seconds after the signal. `tell` is called with a line for the log."""
        self.is_seen = False
        self._tell = tell
        self._grace = grace
        self._process = os.getpid()
        self._previous: Any = None
        self._count = 0
        self._lock = threading.Lock()
        """Held while the signal is sent again; the handler does not take it."""
        self._left = threading.Event()
        """Set when the step has ended."""
        self._reader = self._writer = -1

    @property
    def is_of_this_process(self) -> bool:
        """Whether it was installed in this process, and not in the one that this was forked from."""
        return self._process == os.getpid()

    def install(self) -> bool:
        """Set the handler. Returns False, and changes nothing, in any other than the main thread."""
        previous = signal.getsignal(signal.SIGTERM)
        if threading.current_thread() is not threading.main_thread() or previous is None:
            return False
        self._reader, self._writer = os.pipe()
        self._previous = previous
        signal.signal(signal.SIGTERM, self._handle)
        threading.Thread(target=self._watch, name="metaflow-artifacts-preemption", daemon=True).start()
        return True

    def _handle(self, number: int, frame: Any) -> None:
        self._count += 1
        if self._count > 1 or not self.is_of_this_process:
            self._do_as_before(number, frame)
            return
        self.is_seen = True
        os.write(self._writer, b"!")

    def _do_as_before(self, number: int, frame: Any) -> None:
        previous = self._previous
        if callable(previous):
            # It may save, and this thread cannot go on before it returns.
            background_saves().reopen_without_lock()
            try:
                previous(number, frame)
            finally:
                self._went_on()
        elif previous == signal.SIG_IGN:
            self._went_on()
        else:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def _went_on(self) -> None:
        """The handler that was there before has not ended the process."""
        self._count = 0
        if self.is_of_this_process:
            os.write(self._writer, b".")

    def _watch(self) -> None:
        saves = background_saves()
        while (read := os.read(self._reader, 1)) != b"":
            if read == b".":
                saves.reopen()
                continue
            # A process of the lowest priority may not get done in time.
            saves.hurry()
            self._tell(self._line(saves.pending))
            if self._grace is not None:
                self._left.wait(self._grace)
            elif not saves.close_when_done(PENDING_S):
                lost = count_text(saves.pending, "save")
                self._tell(f"{lost} in the background could not be stored within {PENDING_S:g} seconds")
            with self._lock:
                if self._left.is_set():
                    # `end` sends the signal again, and whoever gets it may let the process go on.
                    saves.reopen()
                    return
                os.kill(self._process, signal.SIGTERM)

    def _line(self, pending: int) -> str:
        if self._grace is not None:
            return f"SIGTERM was received: the step has {self._grace:g} seconds to save and to leave"
        waiting = f"; the process ends when {count_text(pending, 'save')} in the background is stored, at most "
        return "SIGTERM was received" + (f"{waiting}{PENDING_S:g} seconds from now" if pending else "")

    def end(self) -> None:
        """The step has ended, and all that was pending is stored: restore the handler that was there before.

        Where the signal came and the step was given no time, the process ends now as it would have.
        """
        if not self.is_of_this_process or threading.current_thread() is not threading.main_thread():
            return
        with self._lock:
            self._left.set()
        # The step's code may have set one of its own since.
        if signal.getsignal(signal.SIGTERM) == self._handle:
            signal.signal(signal.SIGTERM, self._previous)
            if self.is_seen and self._count and self._grace is None:
                os.kill(self._process, signal.SIGTERM)
        os.write(self._writer, b".")


_preemption: Preemption | None = None


def running_preemption() -> Preemption | None:
    """The one that waits in this process."""
    return _preemption if _preemption is not None and _preemption.is_of_this_process else None


def watch_for_preemption(tell: Callable[[str], None], grace: float | None = None) -> None:
    """Wait for SIGTERM from now on, if this is the main thread and nothing waits yet."""
    global _preemption
    if running_preemption() is None:
        preemption = Preemption(tell, grace)
        if preemption.install():
            _preemption = preemption


def is_preempted() -> bool:
    """Whether this process has got SIGTERM since it waits for it."""
    preemption = running_preemption()
    return preemption is not None and preemption.is_seen
