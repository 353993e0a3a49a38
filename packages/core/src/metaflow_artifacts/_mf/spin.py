"""`spin` runs one step of a past run again, without the decorators that Metaflow's configuration does not name."""

from __future__ import annotations

from metaflow_artifacts._mf.conflict import OUR_MODULES

__all__ = ["allow_in_spin"]


def allow_in_spin() -> None:
    """Add our decorators to those that `spin` runs. To be called when Metaflow loads its extensions' toplevel modules.

    A list in one of the extensions' `config` modules would replace what the user or another extension has set. At this
    time all of that is read, and all decorators are loaded.
    """
    from metaflow import metaflow_config
    from metaflow.plugins import FLOW_DECORATORS, STEP_DECORATORS

    # Metaflow before 2.19 has no spin, and so no such list.
    allowed = getattr(metaflow_config, "SPIN_ALLOWED_DECORATORS", None)
    if not isinstance(allowed, list):
        return
    ours = [one.name for one in (*STEP_DECORATORS, *FLOW_DECORATORS) if one.__module__.startswith(OUR_MODULES)]
    # In place: other modules of Metaflow have imported the list.
    allowed.extend(name for name in ours if name not in allowed)
