"""Names that this distribution adds to `metaflow`: all here that do not start with two underscores."""

from ..plugins.model_deco.api import delete_model, load_model  # noqa: F401

__mf_extensions__ = "metaflow-artifacts-model"
__version__ = "0.1.0"
