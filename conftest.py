"""For every suite: a test that CI needs may not be skipped there, because nobody reads the skips of a green run."""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest

pytest_plugins = ["metaflow_artifacts.testing.pytest_plugin"]


# Fixtures of tests that start many processes, and take seconds.
_SLOW = {"cloud", "either", "environment", "here", "home", "make", "on_each", "runner", "s3_runner"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests come first, so that at the end no worker of pytest-xdist waits for another one."""
    items.sort(key=lambda item: not _SLOW & set(getattr(item, "fixturenames", ())))


def _fail_skips(report: pytest.TestReport | pytest.CollectReport) -> None:
    # A test that is expected to fail was run, and counts as skipped.
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get("CI"):
        report.outcome = "failed"
        report.longrepr = f"skipped, which CI does not allow: {report.longrepr}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _fail_skips(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _fail_skips(report)
    return report
