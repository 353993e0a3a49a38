"""The process that stores saves in the background, on a machine that is busy with other tests.

It has the lowest priority, and is given up where it gets no processor: a test of what it does would then be a test of
something else, by chance.
"""

from __future__ import annotations

import pytest

from metaflow_artifacts._transfer import worker_process
from metaflow_artifacts._transfer.worker_share import Share

__all__ = ["PATIENT", "be_patient"]

_LONG_S = 600.0
_LIMITS = ("_READY_S", "_SILENCE_S", "_LONGEST_SILENCE_S", "_CALL_S", "_END_S")
_NICE = "os.nice(19)"

PATIENT = f"""
from metaflow_artifacts._transfer import worker_process, worker_share
worker_share.Share.is_too_small = lambda share: False
for limit in {_LIMITS}:
    setattr(worker_process, limit, {_LONG_S})
assert {_NICE!r} in worker_process._BOOT
worker_process._BOOT = worker_process._BOOT.replace({_NICE!r}, "")
"""
"""For a script: its worker has the priority of others, and is waited for."""


class _Served(Share):
    def is_too_small(self) -> bool:
        return False


def be_patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same for this process."""
    monkeypatch.setattr(worker_process, "Share", _Served)
    for limit in _LIMITS:
        monkeypatch.setattr(worker_process, limit, _LONG_S)
    assert _NICE in worker_process._BOOT
    monkeypatch.setattr(worker_process, "_BOOT", worker_process._BOOT.replace(_NICE, ""))
