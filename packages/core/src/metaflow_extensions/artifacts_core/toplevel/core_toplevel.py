"""What Metaflow loads of core, whichever decorator package is installed: spin learns the names of our decorators."""

from metaflow_artifacts import __version__  # noqa: F401
from metaflow_artifacts._mf.spin import allow_in_spin as __allow_in_spin

__mf_extensions__ = "metaflow-artifacts"

__allow_in_spin()
