"""Names that this distribution adds to `metaflow`: all here that do not start with two underscores."""

from ..plugins.checkpoint_deco.outside import Checkpoint  # noqa: F401

__mf_extensions__ = "metaflow-checkpoint"
__version__ = "0.3.0"
