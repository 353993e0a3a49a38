"""Imported by `metaflow develop stubs` alone: where the type of `current.huggingface_hub` is."""

_addl_stubgen_modules = ["metaflow_extensions.artifacts_hf.plugins.hf_deco.current_hub"]
