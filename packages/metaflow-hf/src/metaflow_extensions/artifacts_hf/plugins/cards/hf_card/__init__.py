"""The card of a step with `@huggingface_hub`: the repos that it asked for, and where their files came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from metaflow_artifacts.plugin import DecoratorCard

if TYPE_CHECKING:
    from metaflow_artifacts.plugin import Html

__all__ = ["HuggingfaceHubCard"]


class HuggingfaceHubCard(DecoratorCard):
    """Shows what `report.data_of` has collected."""

    type = "huggingface_hub"  # type: ignore[assignment]  # The base class has None here.
    title = "Hugging Face repos"

    def parts(self, data: Mapping[str, Any]) -> Sequence[Html]:
        # Every Metaflow process imports the cards of all packages; few of them render one.
        from ...hf_deco.report import content

        return content(data)


CARDS = [HuggingfaceHubCard]
