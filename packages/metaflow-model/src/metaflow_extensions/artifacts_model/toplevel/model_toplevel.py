"""The names that this distribution adds to `metaflow`: all names here that do not begin with two underscores."""

from metaflow_artifacts.plugin import guard_decorators as __guard_decorators

from ..plugins.model_deco.api import delete_model, load_model  # noqa: F401

__mf_extensions__ = "metaflow-artifacts-model"
__version__ = "0.1.0"

__guard_decorators()
