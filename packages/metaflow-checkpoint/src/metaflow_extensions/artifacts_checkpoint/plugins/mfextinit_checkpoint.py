"""Tells Metaflow which plugins this distribution adds."""

STEP_DECORATORS_DESC = [("checkpoint", ".checkpoint_deco.decorator.CheckpointDecorator")]

# An alias that `metaflow develop stubs` visits, and nothing else.
__mf_promote_submodules__ = ["checkpoint_stubs"]
