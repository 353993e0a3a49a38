"""`@huggingface_hub`: repos of the Hugging Face Hub, stored in the datastore."""

# What `metaflow develop stubs` writes down besides: the type of `current.huggingface_hub`.
_addl_stubgen_modules = ["metaflow_extensions.artifacts_hf.plugins.hf_deco.current_hub"]
