"""Tells Metaflow which plugins this distribution adds."""

STEP_DECORATORS_DESC: list[tuple[str, str]] = [("huggingface_hub", ".hf_deco.decorator.HuggingfaceHubDecorator")]

# An alias that `metaflow develop stubs` visits, and nothing else.
__mf_promote_submodules__ = ["hf_stubs"]
