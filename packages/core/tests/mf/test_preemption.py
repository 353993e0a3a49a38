"""What SIGTERM does to saves in the background."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)


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
