"""What one package saves, another loads, where neither side has the other's package."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
KEY = "from metaflow import Flow; print(Flow('{}').latest_run.data.{}['key'])"
NOTEBOOK = """
import os
from metaflow import Checkpoint
with Checkpoint() as cp:
    cp.load({!r})
    print("notebook", os.listdir(cp.directory))
"""


def test_checkpoints_and_models_are_exchanged(environment: Callable[..., Any], tmp_path: Path) -> None:
    with_checkpoint, with_model = environment("metaflow-artifacts-checkpoint"), environment("metaflow-artifacts-model")
    shared = {"cwd": tmp_path, "METAFLOW_DATASTORE_SYSROOT_LOCAL": str(tmp_path)}

    def key(place: Any, flow: str, name: str) -> str:
        printed: str = place.python("-c", KEY.format(flow, name), **shared)
        return printed.split()[-1]

    with_checkpoint.python(HERE / "exchange_checkpoint_flow.py", "run", **shared)
    saved = key(with_checkpoint, "ExchangeCheckpointFlow", "reference")
    log = with_model.python(HERE / "exchange_model_flow.py", "run", "--checkpoint-key", saved, **shared)
    for name in ("checkpoint_key", "reference"):
        assert f"model loaded {name} of a checkpoint {{'epoch': 1}}" in log
    assert f"model parents ['{saved}']" in log

    model = key(with_model, "ExchangeModelFlow", "saved")
    log = with_checkpoint.python(HERE / "exchange_checkpoint_flow.py", "run", "--model-key", model, **shared)
    assert "checkpoint loaded of a model" in log
    assert f"checkpoint parents ['{model}']" in log
    assert "notebook ['weights']" in with_checkpoint.python("-c", NOTEBOOK.format(model), **shared)
