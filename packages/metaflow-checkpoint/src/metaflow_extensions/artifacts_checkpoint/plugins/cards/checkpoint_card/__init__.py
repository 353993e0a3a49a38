"""The card of a step with `@checkpoint`: what was loaded and why, and every save."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from metaflow_artifacts.plugin import DecoratorCard

if TYPE_CHECKING:
    from metaflow_artifacts.plugin import Html

__all__ = ["CheckpointCard"]


class CheckpointCard(DecoratorCard):
    """Shows what `report.Report` has collected."""

    type = "checkpoint"  # type: ignore[assignment]  # The base class has None here.
    title = "Checkpoints"

    def parts(self, data: Mapping[str, Any]) -> Sequence[Html]:
        # Every Metaflow process imports the cards of all packages; few of them render one.
        from ...checkpoint_deco.report import content

        return content(data)


CARDS = [CheckpointCard]
