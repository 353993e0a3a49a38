"""Tells Metaflow which plugins this distribution adds."""

STEP_DECORATORS_DESC: list[tuple[str, str]] = [("model", ".model_deco.decorator.ModelDecorator")]

# An alias that `metaflow develop stubs` visits, and nothing else.
__mf_promote_submodules__ = ["model_stubs"]
