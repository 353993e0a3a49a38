"""The card of a step with `@checkpoint`: what was loaded and why, and every save."""

from __future__ import annotations

from typing import Any

from metaflow.plugins.cards.card_modules.card import MetaflowCard

__all__ = ["CheckpointCard"]


class CheckpointCard(MetaflowCard):
    """Shows the data that the task keeps up to date: see `report`.

    Users add nothing to it: a card that takes components would take part in the choice of the one that
    `current.card.append` means.
    """

    type = "checkpoint"  # type: ignore[assignment]  # None in the base class, which is none itself
    ALLOW_USER_COMPONENTS = False
    RUNTIME_UPDATABLE = True
    RELOAD_POLICY = MetaflowCard.RELOAD_POLICY_NEVER

    def render(self, task: Any) -> str:
        return self._page(task, self.runtime_data, live=False)

    def render_runtime(self, task: Any, data: Any) -> str:
        return self._page(task, data, live=True)

    def refresh(self, task: Any, data: Any) -> dict[str, str]:
        from ...checkpoint_deco.report import content

        return {"content": "".join(content(_of(data)))}

    def _page(self, task: Any, data: Any, *, live: bool) -> str:
        # Every Metaflow process imports the cards of all packages.
        from metaflow_artifacts.plugin import page

        from ...checkpoint_deco.report import content

        return page(f"Checkpoints of {task.pathspec}", content(_of(data)), live=live)


def _of(data: Any) -> dict[str, Any]:
    return (data or {}).get("user") or {}


CARDS = [CheckpointCard]
