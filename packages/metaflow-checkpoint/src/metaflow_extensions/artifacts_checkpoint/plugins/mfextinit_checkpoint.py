"""Tells Metaflow which plugins this distribution adds."""

STEP_DECORATORS_DESC = [("checkpoint", ".checkpoint_deco.decorator.CheckpointDecorator")]
