"""Steps with and without a card of the user, one of which cannot load, and one of which fails after it has loaded."""

import os

from metaflow import FlowSpec, card, catch, current, model, step
from metaflow.cards import Markdown

from metaflow_artifacts.testing.flows import emit


class CardsFlow(FlowSpec):
    @model
    @card(id="report")
    @step
    def start(self):
        current.card.append(Markdown("appended by the step"))
        os.makedirs("content")
        with open("content/weights", "w") as file:
            file.write("1 2 3")
        self.line = current.model.save("content", label="a <line>", metadata={"accuracy": 0.5, "kind": "linear"})
        emit("saved", self.line)
        self.next(self.plain)

    @model(load="line")
    @step
    def plain(self):
        emit("reports without a card", current.model.report is not None)
        current.model.save("content")
        self.next(self.hidden)

    @model(load="line", show_card=False)
    @card
    @step
    def hidden(self):
        self.next(self.absent)

    @catch(var="failure", print_exception=False)
    @model(load="typo")
    @card
    @step
    def absent(self):
        pass
        self.next(self.end)

    @card
    @model(load=[("line", "here")])
    @step
    def end(self):
        emit("loaded again", current.model.load(self.line["key"]))
        raise ValueError("the <reason>")


if __name__ == "__main__":
    CardsFlow()
