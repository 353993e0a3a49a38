"""`@model`: models saved in one step and loaded in any other."""

# What `metaflow develop stubs` writes down besides: the type of `current.model`.
_addl_stubgen_modules = ["metaflow_extensions.artifacts_model.plugins.model_deco.current_model"]
