"""The card of a step with `@huggingface_hub`: the repos that it asked for, and where they came from."""

from __future__ import annotations

from typing import Any

from metaflow.plugins.cards.card_modules.card import MetaflowCard

__all__ = ["HuggingfaceHubCard"]


class HuggingfaceHubCard(MetaflowCard):
    """Shows what the task tells of its repos: see `report`.

    It takes no components of users: `current.card.append` would have to choose between it and their own card.
    """

    type = "huggingface_hub"  # type: ignore[assignment]  # None in the base class, which is none itself
    ALLOW_USER_COMPONENTS = False
    RUNTIME_UPDATABLE = True
    RELOAD_POLICY = MetaflowCard.RELOAD_POLICY_NEVER

    def render(self, task: Any) -> str:
        return self._page(task, self.runtime_data, live=False)

    def render_runtime(self, task: Any, data: Any) -> str:
        return self._page(task, data, live=True)

    def refresh(self, task: Any, data: Any) -> dict[str, str]:
        from ...hf_deco.report import content

        return {"content": "".join(content(_of(data)))}

    def _page(self, task: Any, data: Any, *, live: bool) -> str:
        # Every Metaflow process imports the cards of all packages.
        from metaflow_artifacts.plugin import page

        from ...hf_deco.report import content

        return page(f"Hugging Face repos of {task.pathspec}", content(_of(data)), live=live)


def _of(data: Any) -> dict[str, Any]:
    return (data or {}).get("user") or {}


CARDS = [HuggingfaceHubCard]
