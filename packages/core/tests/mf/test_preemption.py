"""What SIGTERM does to saves in the background."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from faultlib.patient_worker import PATIENT

from metaflow_artifacts import open_store

BLOCKED = """
import os, signal, threading, time, types
from metaflow_artifacts import open_store
from metaflow_artifacts._mf import background, preemption
from metaflow_artifacts._store.background import SaveOptions, background_saves
from metaflow_artifacts._transfer.scan import Source

def tell(line):
    print(line, flush=True)

tell.warning = tell

def storing(source):
    threading.Event().wait()

def block():
    # It is never stored.
    background_saves().submit({"a": b"1"}, lambda: storing, SaveOptions())
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=240)


def test_the_handler_that_was_there_before_may_save(tmp_path: Path) -> None:
    code = f"""
import os, signal
from metaflow_artifacts import open_store
from metaflow_artifacts._mf.preemption import watch_for_preemption
store = open_store({str(tmp_path)!r})
def handle(number, frame):
    print(store.save_model_async({{"a": b"last"}}).result()["size"], flush=True)
    os._exit(3)
signal.signal(signal.SIGTERM, handle)
watch_for_preemption(lambda line: None)
os.kill(os.getpid(), signal.SIGTERM)
while True:
    signal.pause()
"""
    done = run(code)
    assert (done.returncode, done.stdout) == (3, "4\n"), done.stderr


def test_after_sigterm_nothing_more_is_taken_over(tmp_path: Path) -> None:
    code = f"""
import os, signal
from metaflow_artifacts import open_store
from metaflow_artifacts._mf.preemption import watch_for_preemption
store = open_store({str(tmp_path)!r})
watch_for_preemption(lambda line: print(line, flush=True))
for number in range(1_000_000):
    pending = store.save_model_async({{"a": bytes(1_000_000)}})
    if number == 3:
        os.kill(os.getpid(), signal.SIGTERM)
"""
    done = run(code)
    assert done.returncode == -signal.SIGTERM, done.stderr
    assert "SIGTERM was received" in done.stdout
    assert "could not be stored" not in done.stdout


@pytest.mark.parametrize("grace", [None, 0.3], ids=["what is pending", "the step"])
def test_a_process_that_got_sigterm_ends_after_its_time(grace: float | None) -> None:
    code = f"""{BLOCKED}
preemption.PENDING_S = 0.3
preemption.watch_for_preemption(tell, {grace})
block()
os.kill(os.getpid(), signal.SIGTERM)
while True:
    signal.pause()
"""
    done = run(code)
    assert done.returncode == -signal.SIGTERM, done.stderr
    if grace is None:
        assert done.stdout.endswith("\n1 save in the background could not be stored within 0.3 seconds\n")
    else:
        assert done.stdout == "SIGTERM was received: the step has 0.3 seconds to save and to leave\n"


@pytest.mark.parametrize("by", ["the code", "an alarm"])
def test_a_step_that_fails_waits_its_time_for_what_is_pending(by: str) -> None:
    """An alarm is what Metaflow's @timeout sets: it comes while the step waits at its end."""
    code = f"""{BLOCKED}
background.AFTER_FAILURE_S = 0.3

def ring(number, frame):
    raise TimeoutError("rung")

def step():
    block()
    if {by!r} == "the code":
        raise ValueError("wrong")
    signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, 0.2)

flow = types.SimpleNamespace(_transition="of the code")
try:
    background.with_pending_saves(step, flow, tell)()
except (ValueError, TimeoutError) as error:
    print(error, flow._transition, flush=True)
"""
    done = run(code)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "The step failed; 1 save in the background may take up to 0.3 more seconds",
        "1 save in the background could not be stored in this time",
        # Where the code has come to its end, Metaflow may call self.next again.
        "wrong of the code" if by == "the code" else "rung None",
    ]


@pytest.mark.parametrize("grace", [None, 50.0])
def test_from_sigterm_on_it_is_stored_here(tmp_path: Path, grace: float | None) -> None:
    code = f"""
import os, signal, time
from metaflow_artifacts import open_store
from metaflow_artifacts._mf.preemption import is_preempted, watch_for_preemption
from metaflow_artifacts._store.background import background_saves
{PATIENT}
worker_process.LEAST_BYTES = 1
watch_for_preemption(lambda line: None, {grace})
store = open_store({str(tmp_path / "store")!r})
store.save_model_async({{"a": b"1" * {1 << 20}}}).result()
os.kill(background_saves()._worker_process._process.pid, signal.SIGSTOP)
pending = store.save_model_async({{"a": b"2" * {1 << 20}}})
os.kill(os.getpid(), signal.SIGTERM)
while not is_preempted():
    time.sleep(0.001)
while not {grace or 0}:
    signal.pause()
store.save_model_async({{"a": b"3" * {1 << 20}}}).result()
"""
    done = run(code)
    assert (done.returncode, done.stdout, done.stderr) == (0 if grace else -signal.SIGTERM, "", "")
    assert len(list(open_store(str(tmp_path / "store")).list())) == (3 if grace else 2)


def test_where_the_signal_is_ignored_saves_go_on_after_the_step(tmp_path: Path) -> None:
    """Also where the step ends while the process waits for what is pending."""
    code = f"""{BLOCKED}
may_store = threading.Event()

def storing(source):
    may_store.wait()
    return {{"key": "stored"}}

signal.signal(signal.SIGTERM, signal.SIG_IGN)
preemption.watch_for_preemption(lambda line: None)
saves = background_saves()
pending = saves.submit({{"a": b""}}, lambda: storing, SaveOptions())
os.kill(os.getpid(), signal.SIGTERM)
while not saves._is_closed:
    time.sleep(0.001)
preemption.running_preemption().end()
may_store.set()
store = open_store({str(tmp_path)!r})
print(pending.result()["key"], store.save_model_async({{"a": b"late"}}).result()["size"])
"""
    done = run(code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "stored 4\n", "")


_NOBODY_READS = """
import os, signal, threading
from metaflow_artifacts._mf.background import with_pending_saves
from metaflow_artifacts._mf.log import Log
from metaflow_artifacts._mf.preemption import watch_for_preemption
from metaflow_artifacts._store.background import SaveOptions, background_saves

may_store = threading.Event()

def logger(line, **more):
    may_store.set()
    raise BrokenPipeError("nobody reads the log")

log = Log("checkpoint", logger)
threading.excepthook = lambda args: os._exit(3)
"""


def test_sigterm_ends_a_process_whose_log_nobody_reads() -> None:
    code = """
watch_for_preemption(log)
os.kill(os.getpid(), signal.SIGTERM)
while True:
    signal.pause()
"""
    done = subprocess.run([sys.executable, "-c", _NOBODY_READS + code], timeout=240)
    assert done.returncode == -signal.SIGTERM


def test_a_step_that_fails_stores_what_is_pending_where_nobody_reads_the_log() -> None:
    code = """
def storing(source):
    may_store.wait()
    return {"key": "stored"}

def step():
    global pending
    pending = background_saves().submit({"a": b""}, lambda: storing, SaveOptions())
    raise RuntimeError("the code of the step")

try:
    with_pending_saves(step, None, log)()
except RuntimeError as error:
    print(error, pending.done(), background_saves().is_abandoned)
"""
    done = subprocess.run([sys.executable, "-c", _NOBODY_READS + code], timeout=240, capture_output=True, text=True)
    assert done.stdout == "the code of the step True False\n", done.stderr
