"""Names that this distribution adds to `metaflow`: all here that do not start with two underscores."""

__mf_extensions__ = "metaflow-artifacts-hf"
__version__ = "0.1.0"
