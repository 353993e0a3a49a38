"""Tells the identity of its tasks: nested foreach over awkward values, joins, @parallel, a step that
repeats."""

import dataclasses
import subprocess
import sys
from datetime import date

from metaflow import FlowSpec, current, parallel, step
from metaflow._vendor import click

from metaflow_artifacts._mf.artifact_store import running_flow_datastore
from metaflow_artifacts._mf.task import TaskIdentity
from metaflow_artifacts.testing.flows import emit

CHILD = """
from metaflow_artifacts._mf.stores import default_store
from metaflow_artifacts._mf.artifact_store import running_flow_datastore
from metaflow_artifacts._mf.task import TaskIdentity
identity = TaskIdentity.from_environment()
print(identity.pathspec, identity.attempt, identity.id, identity.scope, identity.place, default_store().root)
"""


@dataclasses.dataclass
class Setting:
    rate: float
    day: date
    words: set


class Opaque:
    def __reduce__(self):
        return Opaque, ()


def tell(flow, name, inputs=(), ubf_context=None, per_node=False):
    identity = TaskIdentity.of_running(flow, running_flow_datastore(), ubf_context, inputs, per_node)
    emit("identity", [name, identity.pathspec, identity.scope, identity.place, identity.id])
    return identity


class IdentityFlow(FlowSpec):
    @step
    def start(self):
        identity = tell(self, "start")
        identity.export()
        identity.register(click.get_current_context().obj.metadata)
        emit("decoded", TaskIdentity.from_environment() == identity)
        emit("client", TaskIdentity.of_task(current.task) == identity)
        child = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, check=True)
        emit("child", child.stdout.split())
        self.outer = ["x" * 500 + "1", "x" * 500 + "2"]
        self.next(self.middle, foreach="outer")

    @step
    def middle(self):
        tell(self, "middle")
        self.inner = [{"setting": Setting(0.1, date(2026, 1, 1), {"one", "two", "three"})}, Opaque()]
        self.next(self.leaf, foreach="inner")

    @step
    def leaf(self):
        tell(self, "leaf")
        self.next(self.join_leaves)

    @step
    def join_leaves(self, inputs):
        tell(self, "join_leaves", inputs)
        self.next(self.after)

    @step
    def after(self):
        # The artifact that was split over ended in the join.
        tell(self, "after")
        self.next(self.join)

    @step
    def join(self, inputs):
        tell(self, "join", inputs)
        self.next(self.split)

    @step
    def split(self):
        self.next(self.nodes, num_parallel=2)

    @parallel
    @step
    def nodes(self):
        node = current.parallel.node_index
        context = "ubf_task" if node else "ubf_control"
        tell(self, f"node {node}", ubf_context=context, per_node=True)
        identity = tell(self, "gang", ubf_context=context)
        emit("gang", [identity.pathspec, identity.gang])
        self.next(self.join_nodes)

    @step
    def join_nodes(self, inputs):
        self.rounds = 0
        self.next(self.repeat)

    @step
    def repeat(self):
        tell(self, "repeat")
        self.rounds += 1
        self.more = "yes" if self.rounds < 2 else "no"
        self.next({"yes": self.repeat, "no": self.end}, condition="more")

    @step
    def end(self):
        pass


if __name__ == "__main__":
    IdentityFlow()
