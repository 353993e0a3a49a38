"""Steps with and without a card of the user."""

import os

from metaflow import Config, FlowSpec, card, catch, checkpoint, current, step
from metaflow.cards import Markdown

from metaflow_artifacts.testing.flows import emit


class CardsFlow(FlowSpec):
    # A file of the configuration is what all cards of a step share, until the last one is made.
    settings = Config("settings", default_value='{"rate": 0.5}')

    @checkpoint
    @step
    def start(self):
        emit("has a card", "card" in current)
        current.checkpoint.save()
        self.next(self.with_id)

    @checkpoint(load_policy="eager")
    @card(id="report")
    @step
    def with_id(self):
        current.card.append(Markdown("appended by the step"))
        with open(os.path.join(current.checkpoint.directory, "x"), "w") as file:
            file.write("x" * 1000)
        emit("saved", current.checkpoint.save(name="with <id>", metadata={"rate": self.settings.rate}))
        self.next(self.two_cards)

    @catch(var="failure", print_exception=False)
    @card(type="blank")
    @checkpoint(load_policy="none")
    @card(id="other", type="blank")
    @step
    def two_cards(self):
        current.card.append(Markdown("appended to the first"))
        current.card["other"].append(Markdown("appended to the other"))
        emit("cards of the step", len(current.card.get(type="checkpoint")))
        raise RuntimeError("no <luck>")
        self.next(self.end)

    @checkpoint(show_card=False)
    @card
    @step
    def end(self):
        current.checkpoint.save()


if __name__ == "__main__":
    CardsFlow()
