"""Every name that core lends to decorator packages is there, with Metaflow installed."""

from __future__ import annotations

from metaflow_artifacts import plugin


def test_every_name_of_the_seam_is_there() -> None:
    assert all(hasattr(plugin, name) for name in plugin.__all__)
    assert {name for name in dir(plugin) if not name.startswith("__")} == set(plugin.__all__)
