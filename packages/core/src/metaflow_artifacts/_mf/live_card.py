"""The card of a running task: the page is made in the task itself, and written to where Metaflow looks for cards.

Metaflow makes each `@card` in a process of its own, for which the task waits: about a second for every card. A card
that is made here costs a few milliseconds. It is also in no list of the step's cards, so that `current.card` is the
same with it and without.

Metaflow has no public function that writes a card; this module alone uses the private ones.
"""

from __future__ import annotations

import copy
import functools
import threading
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import dropwhile, takewhile
from typing import TYPE_CHECKING, Any, ClassVar
from uuid import uuid4

from metaflow_artifacts._mf.errors import is_ours

# The decorators import this module in every step; few steps have a card.
if TYPE_CHECKING:
    from metaflow_artifacts._mf.card import Html

__all__ = ["CardReport", "LiveCard", "has_card", "shown_on"]

_POLL_S = 1.0
"""Seconds between two looks at whether there is something new."""
_FIRST_REFRESH_S, _LONGEST_REFRESH_S = 5.0, 60.0
"""Seconds between two updates of the card, each of which is two requests to the datastore. The interval grows by one
second for each minute that the attempt runs."""
_MAX_FRAMES = 20
"""Lines of a traceback that the card of a failed task shows."""


def has_card(decorators: Iterable[Any], show_card: bool) -> bool:
    """Whether a step gets the card of a decorator: it has a card of the user, and `show_card` is true.

    `decorators` are those of the step. `show_card` is the decorator's argument of that name.
    """
    from metaflow.plugins.cards.card_decorator import CardDecorator

    return show_card and any(isinstance(one, CardDecorator) for one in decorators)


class CardReport(ABC):
    """What a decorator tells about its task: the content of its card. `LiveCard` makes one call at a time."""

    name: ClassVar[str]
    """The type of the card, and its id."""
    title: ClassVar[str]
    """The begin of the window title; the task's pathspec follows."""
    pathspec: str
    """Of the task."""

    @abstractmethod
    def changed(self) -> bool:
        """Whether there is something new since the last call. It is called once a second while the task runs."""

    @abstractmethod
    def parts(self, state: str) -> Sequence[Html]:
        """The parts of the page, of which the first is the heading. `state` is `running`, `done` or `failed`."""


class LiveCard:
    """Writes the card of a running task. No method raises an Exception: a card must never end a step that works.

    `flow_datastore` is what Metaflow gives to `step_init`. `warn` is called with one line when the card cannot be
    written.
    """

    def __init__(self, report: CardReport, flow_datastore: Any, warn: Callable[[str], None]) -> None:
        self._report = report
        self._warn = warn
        self._file: _CardFile | None = None
        self._stop = threading.Event()
        with self._guarded():
            # Here, because the step's code may change the working directory, from which a local root is found.
            self._file = _CardFile(report.name, report.pathspec, flow_datastore)

    def wrap(self, step_function: Callable[..., Any]) -> Callable[..., Any]:
        """The function of a step, with a thread beside it that keeps the card up to date. For `task_decorate`."""

        @functools.wraps(step_function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            follower = threading.Thread(target=self._follow, name=f"{self._report.name}-card", daemon=True)
            follower.start()
            try:
                result = step_function(*args, **kwargs)
            except BaseException as error:
                self._end(follower)
                self.fail(error, _user_lines(error))
                raise
            self._end(follower)
            self._write("done")
            return result

        return wrapper

    def fail(self, error: BaseException, lines: str = "") -> None:
        """Write the card of a task that failed, with the error, and the lines of code that led to it."""
        from metaflow_artifacts._mf.card import failure

        with self._guarded():
            self._write("failed", failure(type(error).__name__, str(error), lines))

    def _end(self, follower: threading.Thread) -> None:
        self._stop.set()
        follower.join()

    def _follow(self) -> None:
        """Write the card when there is something new, until the step's code has ended.

        A step that ends before the first look has no card until then, and writes it only once.
        """
        begin = time.monotonic()
        due = begin
        is_new = True
        while not self._stop.wait(_POLL_S):
            now = time.monotonic()
            with self._guarded():
                is_new = self._report.changed() or is_new
            if is_new and now >= due:
                is_new = False
                self._write("running")
                due = now + min(_LONGEST_REFRESH_S, _FIRST_REFRESH_S + (now - begin) / 60)

    def _write(self, state: str, *after_heading: Html) -> None:
        from metaflow_artifacts._mf.card import page

        with self._guarded():
            if self._file is None:
                return
            heading, *parts = self._report.parts(state)
            content = [heading, *after_heading, *parts]
            is_live = state == "running"
            title = f"{self._report.title} of {self._report.pathspec}"
            self._file.write(page(title, content, live=is_live), "".join(content), is_live=is_live)

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._warn(f"the card is not up to date: {error!r}")


@contextmanager
def shown_on(card: LiveCard | None) -> Iterator[None]:
    """Write an error that leaves the block to the card, if there is one. For errors before the step's code runs."""
    try:
        yield
    except BaseException as error:
        if card is not None:
            card.fail(error)
        raise


def _user_lines(error: BaseException) -> str:
    """The traceback of an error from the step's code down to the first call of our own modules."""
    below = dropwhile(lambda one: is_ours(one[0]), traceback.walk_tb(error.__traceback__))
    frames = list(takewhile(lambda one: not is_ours(one[0]), below))
    return "".join(traceback.StackSummary.extract(iter(frames[-_MAX_FRAMES:])).format())


class _CardFile:
    """The card of one attempt of a task in the datastore."""

    def __init__(self, name: str, pathspec: str, flow_datastore: Any) -> None:
        from metaflow.plugins.cards.card_datastore import CardDatastore

        of_task = flow_datastore._storage_impl
        root = CardDatastore.get_storage_root(flow_datastore.TYPE) or of_task.datastore_root
        # Not a copy: some storages keep the root that they had when they were first used.
        storage = type(of_task)(root)
        if hasattr(of_task, "s3_client"):
            # To make a client takes a tenth of a second.
            storage.s3_client = of_task.s3_client
        datastore = copy.copy(flow_datastore)
        datastore._storage_impl = storage
        self._datastore = CardDatastore(datastore, pathspec=pathspec)
        self._name = name
        self._uuid = uuid4().hex
        self._has_update = False

    def write(self, page: str, content: str, *, is_live: bool) -> None:
        """Write the whole page, and an update with its content for viewers that show a live page already."""
        self._datastore.save_card(self._uuid, self._name, page, card_id=self._name)
        if is_live or self._has_update:
            from metaflow_artifacts._mf.card import reload_token

            update = {
                "reload_token": reload_token(live=is_live),
                "data": {"content": content},
                "created_on": time.time(),
            }
            self._datastore.save_data(self._uuid, self._name, update, card_id=self._name)
            self._has_update = True
