"""Imported by `metaflow develop stubs` alone: where the type of `current.model` is, which it writes down too."""

_addl_stubgen_modules = ["metaflow_extensions.artifacts_model.plugins.model_deco.current_model"]
