"""Errors that Metaflow can show, and that stay what they are for everybody else."""

from __future__ import annotations

import pickle
import sys
import traceback
from collections.abc import Iterator

import pytest
from metaflow.exception import MetaflowException, MetaflowExceptionWrapper
from metaflow.metaflow_current import current

import metaflow_artifacts.errors
from metaflow_artifacts._mf.errors import in_flow, in_hook, shown
from metaflow_artifacts.errors import ArtifactError, ArtifactNotFound, SourceError

NAMED = [getattr(metaflow_artifacts.errors, name) for name in metaflow_artifacts.errors.__all__]
CLASSES = [named for named in NAMED if issubclass(named, ArtifactError)]


@pytest.fixture
def task() -> Iterator[None]:
    current._set_env(run_id="1", step_name="start", task_id="2", is_running=True)
    yield
    current._set_env(is_running=False)


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_an_error_becomes_one_that_metaflow_shows(kind: type[ArtifactError]) -> None:
    original = kind("the message")
    with pytest.raises(kind) as raised, shown():
        raise original
    error = raised.value
    assert error is original
    assert isinstance(error, MetaflowException)
    assert (str(error), error.message) == ("the message", "the message")
    assert error.headline.isascii()
    assert " " in error.headline or kind.__name__ == error.headline.replace(" ", "")
    assert (error.source_file, error.line_no) == (__file__, sys._getframe().f_lineno - 8)

    # Stored and sent as what it is: the reader may have no Metaflow, and cannot import a class made here.
    wrapped = MetaflowExceptionWrapper(error)
    assert wrapped.type == f"metaflow_artifacts.errors.{kind.__name__}"
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert copy.args == ("the message",)


def test_the_cause_is_kept() -> None:
    def read() -> None:
        try:
            raise FileNotFoundError(2, "No such file")
        except OSError as error:
            raise SourceError("cannot read x") from error

    with pytest.raises(SourceError) as raised, shown():
        read()
    assert isinstance(raised.value.__cause__, FileNotFoundError)
    assert raised.traceback[-1].name == "read"


@pytest.mark.usefixtures("task")
def test_catch_prints_one_of_our_frames() -> None:
    """Metaflow's @catch prints and keeps what `traceback` makes of an error and its causes."""

    def read() -> None:
        try:
            raise FileNotFoundError(2, "No such file")
        except OSError as error:
            raise SourceError("cannot read x") from error

    def load() -> None:
        try:
            read()
        except SourceError as error:
            raise ArtifactNotFound("step a: cannot load") from error

    for wrapped in (in_flow(load), in_hook(load), in_hook(in_flow(load))):
        with pytest.raises(ArtifactNotFound) as raised:
            wrapped()
        printed = traceback.format_exception(raised.value)
        functions = [frame.name for frame in traceback.extract_tb(raised.value.__traceback__)]
        assert functions == ["test_catch_prints_one_of_our_frames", "wrapper"]
        assert "".join(printed).count("Traceback") == 1
        cause = raised.value.__cause__
        assert isinstance(cause, SourceError)
        assert isinstance(cause.__cause__, FileNotFoundError)


def test_outside_of_a_task_the_whole_traceback_is_kept() -> None:
    @in_flow
    def call() -> None:
        raise ArtifactNotFound("not there")

    with pytest.raises(ArtifactNotFound) as raised:
        call()
    assert [frame.name for frame in raised.traceback][-2:] == ["wrapper", "call"]


def test_calls_outside_of_a_task_raise_the_plain_error() -> None:
    @in_flow
    def call() -> None:
        raise ArtifactNotFound("not there")

    with pytest.raises(ArtifactNotFound) as raised:
        call()
    assert type(raised.value) is ArtifactNotFound


@pytest.mark.usefixtures("task")
def test_calls_in_a_task_raise_one_that_is_shown() -> None:
    @in_flow
    def inner() -> None:
        raise ArtifactNotFound("not there")

    @in_flow
    def outer() -> None:
        inner()

    with pytest.raises(ArtifactNotFound) as raised:
        outer()
    assert isinstance(raised.value, MetaflowException)


def test_hooks_always_raise_one_that_is_shown_and_leave_others_alone() -> None:
    @in_hook
    def hook(error: Exception) -> None:
        raise error

    with pytest.raises(MetaflowException):
        hook(ArtifactNotFound("not there"))
    plain = ValueError("not ours")
    with pytest.raises(ValueError, match="not ours") as raised:
        hook(plain)
    assert type(raised.value) is ValueError
