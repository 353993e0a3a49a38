"""The names that this distribution adds to `metaflow`: all names here that do not begin with two underscores."""

from metaflow_artifacts.plugin import guard_decorators as __guard_decorators

# Metaflow puts what is imported into the code package, if it asks for that.
from metaflow_artifacts_checkpoint import METAFLOW_PACKAGE_POLICY as __callbacks_policy  # noqa: F401

from ..plugins.checkpoint_deco.checkpoint import Checkpoint  # noqa: F401

__mf_extensions__ = "metaflow-artifacts-checkpoint"
__version__ = "0.1.0"

__guard_decorators()
