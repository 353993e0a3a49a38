"""Cards in a real browser: Debian's chromium, or the one that CHROMIUM and CHROMEDRIVER name."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

from metaflow_artifacts.testing.flows import FlowRunner
from metaflow_artifacts.testing.servers import hold_ports, port_of

_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
)


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    """A browser with one window."""
    options = webdriver.ChromeOptions()
    options.binary_location = os.environ.get("CHROMIUM") or shutil.which("chromium") or "/usr/bin/chromium"
    for flag in _FLAGS:
        options.add_argument(flag)
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('chromium')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = os.environ.get("CHROMEDRIVER") or shutil.which("chromedriver") or "/usr/bin/chromedriver"
    with webdriver.Chrome(options, Service(driver)) as started:
        yield started


@pytest.fixture
def runner(tmp_path: Path) -> FlowRunner:
    """Runs flows on a local datastore of the test's own."""
    return FlowRunner(tmp_path)


@pytest.fixture
def card_server(runner: FlowRunner) -> Iterator[Callable[[Path], str]]:
    """Starts Metaflow's own card server for a flow; its address."""
    started: list[subprocess.Popen[bytes]] = []
    held: list[socket.socket] = []

    def start(flow: Path) -> str:
        held.extend(hold_ports(1))
        port = port_of(held[-1])
        command = [sys.executable, str(flow), "card", "server", "--port", str(port), "--poll-interval", "1"]
        started.append(subprocess.Popen(command, cwd=runner.work, env=runner.variables()))
        address = f"http://127.0.0.1:{port}"
        _wait_for(lambda: _answers(f"{address}/runinfo"))
        return address

    yield start
    for process in started:
        process.terminate()
        process.wait()
    for one in held:
        one.close()


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def _wait_for(what: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, f"waited for {seconds} s"
        time.sleep(0.2)


@pytest.fixture
def wait_for() -> Callable[..., None]:
    """Comes back when the function given is true, and fails when it does not become so in 60 s."""
    return _wait_for
