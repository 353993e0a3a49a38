"""What Metaflow loads of core, whichever decorator package is installed: `artifact_store_from`, and the names of our
decorators for spin."""

from metaflow_artifacts import __version__  # noqa: F401
from metaflow_artifacts._mf.spin import allow_in_spin as __allow_in_spin

from ..plugins.store_deco.api import artifact_store_from  # noqa: F401

__mf_extensions__ = "metaflow-artifacts"

__allow_in_spin()
