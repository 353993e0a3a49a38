"""The states of the random generators that training libraries share: Python's, numpy's and torch's."""

from __future__ import annotations

import random
import sys
from typing import Any

__all__ = ["random_state", "set_random_state"]


def random_state() -> dict[str, Any]:
    """The states of this process, as values that JSON can hold. Libraries that are not imported are left out."""
    version, numbers, gauss = random.getstate()
    state: dict[str, Any] = {"python": [version, list(numbers), gauss]}
    numpy, torch = sys.modules.get("numpy"), sys.modules.get("torch")
    if numpy is not None:
        name, keys, *rest = numpy.random.get_state()
        state["numpy"] = [str(name), keys.tolist(), *rest]
    if torch is not None:
        state["torch"] = _hex(torch.get_rng_state())
        if torch.cuda.is_available():
            state["cuda"] = [_hex(one) for one in torch.cuda.get_rng_state_all()]
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Set what `random_state` has returned. States of libraries and devices that are not here are left out."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    numpy, torch = sys.modules.get("numpy"), sys.modules.get("torch")
    if numpy is not None and "numpy" in state:
        name, keys, *rest = state["numpy"]
        numpy.random.set_state((name, numpy.array(keys, dtype=numpy.uint32), *rest))
    if torch is not None and "torch" in state:
        torch.set_rng_state(_tensor(torch, state["torch"]))
        if len(state.get("cuda", [])) == torch.cuda.device_count() > 0:
            torch.cuda.set_rng_state_all([_tensor(torch, one) for one in state["cuda"]])


def _hex(tensor: Any) -> str:
    return bytes(tensor.cpu().numpy()).hex()


def _tensor(torch: Any, text: str) -> Any:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)
