"""Names that this distribution adds to `metaflow`: all here that do not start with two underscores."""

from ..plugins.checkpoint_deco.checkpoint import Checkpoint  # noqa: F401

__mf_extensions__ = "metaflow-artifacts-checkpoint"
__version__ = "0.1.0"
