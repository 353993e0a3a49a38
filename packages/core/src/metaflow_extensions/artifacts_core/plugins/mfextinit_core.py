"""Tells Metaflow which plugins this distribution adds."""

FLOW_DECORATORS_DESC: list[tuple[str, str]] = [("with_artifact_store", ".store_deco.decorator.ArtifactStoreDecorator")]
