"""Tells Metaflow which plugins this distribution adds."""

import sys

STEP_DECORATORS_DESC: list[tuple[str, str]] = [("model", ".model_deco.decorator.ModelDecorator")]

# An alias that `metaflow develop stubs` visits, and nothing else. With it, every import in a process takes longer.
__mf_promote_submodules__ = ["model_stubs"] if "stubs" in sys.argv else []
