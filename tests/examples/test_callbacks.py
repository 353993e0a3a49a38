"""Trainings with the callbacks, killed at a random step: they end with the same weights, bit for bit."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest


@pytest.mark.parametrize(
    ("file", "flow", "unit", "first", "last"),
    [
        # Weights and history.
        ("keras_flow.py", "KerasFlow", "epoch", 4, 10),
        # Weights, with a learning rate that changes.
        ("lightning_flow.py", "LightningFlow", "epoch", 4, 10),
        # The weights of the best step, which may be one of before the kill.
        ("transformers_flow.py", "TransformersFlow", "step", 10, 30),
        # Predictions, the best round and all evaluations, which early stopping has ended.
        ("xgboost_flow.py", "XGBoostFlow", "round", 14, 32),
    ],
)
def test_a_training_ends_with_the_same_weights(
    survives: Callable[..., tuple[Any, Any]], file: str, flow: str, unit: str, first: int, last: int
) -> None:
    step = random.randint(first, last)
    undisturbed, killed = survives(file, flow, f"{unit} {step}:", background=True)
    assert killed == undisturbed, f"killed at {unit} {step}"
