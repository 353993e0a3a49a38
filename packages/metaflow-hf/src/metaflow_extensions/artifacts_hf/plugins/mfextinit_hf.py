"""Tells Metaflow which plugins this distribution adds."""

import sys

STEP_DECORATORS_DESC: list[tuple[str, str]] = [("huggingface_hub", ".hf_deco.decorator.HuggingfaceHubDecorator")]

# An alias that `metaflow develop stubs` visits, and nothing else. With it, every import in a process takes longer.
__mf_promote_submodules__ = ["hf_stubs"] if "stubs" in sys.argv else []
