"""A cloud as the tests see it."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Cloud"]


@dataclass(frozen=True)
class Cloud:
    """A cloud as Metaflow's datastore."""

    kind: str
    """Metaflow's name of the datastore."""
    root: str
    """The root of the store, as references name it. No other test uses it."""
    environment: dict[str, str]
    """The variables by which Metaflow finds it; the default datastore is not set."""
