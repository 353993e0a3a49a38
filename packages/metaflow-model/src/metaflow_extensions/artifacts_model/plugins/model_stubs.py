"""Imported by `metaflow develop stubs` alone: where the type of `current.model` is."""

_addl_stubgen_modules = ["metaflow_extensions.artifacts_model.plugins.model_deco.current_model"]
