"""Tells Metaflow which plugins this distribution adds."""

STEP_DECORATORS_DESC: list[tuple[str, str]] = [("huggingface_hub", ".hf_deco.decorator.HuggingfaceHubDecorator")]
