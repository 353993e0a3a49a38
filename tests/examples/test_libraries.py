from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Survives = Callable[[str, str, str], tuple[Any, Any]]


def test_a_network_goes_on_to_the_same_predictions(survives: Survives) -> None:
    undisturbed, killed = survives("torch_flow.py", "TorchFlow", "epoch 8:")
    assert np.allclose(killed, undisturbed, rtol=1e-5)


def test_a_trainer_that_rotates_goes_on_with_what_it_had_kept(
    survives: Survives,
) -> None:
    undisturbed, killed = survives("rotating_flow.py", "RotatingFlow", "step 30:")
    assert killed == undisturbed
    assert killed[1] == ["checkpoint-55", "checkpoint-60"]
