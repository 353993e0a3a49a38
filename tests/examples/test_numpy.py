from __future__ import annotations

from collections.abc import Callable
from typing import Any


def test_a_numpy_loop_goes_on_to_the_same_weights(survives: Callable[[str, str, str], tuple[Any, Any]]) -> None:
    undisturbed, killed = survives("numpy_flow.py", "NumpyFlow", "epoch 10:")
    assert killed == undisturbed
