"""Tells Metaflow which plugins this distribution adds."""

STEP_DECORATORS_DESC: list[tuple[str, str]] = [("model", ".model_deco.decorator.ModelDecorator")]
