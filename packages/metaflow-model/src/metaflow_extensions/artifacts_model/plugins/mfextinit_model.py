"""Tells Metaflow which plugins this distribution adds."""

STEP_DECORATORS_DESC: list[tuple[str, str]] = [("model", ".model_deco.decorator.ModelDecorator")]

# An alias that `metaflow develop stubs` visits, to find there which types to write down.
__mf_promote_submodules__ = ["model_deco"]
