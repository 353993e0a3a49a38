"""Upkeep of a large store: gc, and a check of every chunk, in as many tasks as you like."""

from metaflow import FlowSpec, Parameter, card, current, retry, schedule, step
from metaflow.cards import Markdown, Table
from metaflow.metaflow_config import DATASTORE_SYSROOT_S3

from metaflow_artifacts import check_chunks, configured_store, finish_upkeep, survey_store, sweep_chunks

DAY = 24 * 3600


@schedule(weekly=True)
class UpkeepFlow(FlowSpec):
    root = Parameter("root", default=lambda context: DATASTORE_SYSROOT_S3, help="default: that of Metaflow in S3")
    execute = Parameter("execute", default=False, help="remove what gc finds; without this, only report")
    read = Parameter("read", default=False, help="also read and hash every chunk that an artifact needs")
    grace = Parameter("grace", default=7.0, help="days for which gc keeps what was written or needed")
    exclusive = Parameter("exclusive", default=False, help="nothing saves meanwhile; then any grace is safe")
    tasks = Parameter("tasks", default=16, help="how many tasks share the chunks, at most 256")

    @retry
    @step
    def start(self):
        self.survey = survey_store(
            configured_store(self.root),
            grace=self.grace * DAY,
            exclusive=self.exclusive,
            dry_run=not self.execute,
            whole=self.read,
        )
        self.shares = [self.survey.prefixes[number :: self.tasks] for number in range(min(self.tasks, 256))]
        self.next(self.sweep, foreach="shares")

    @retry
    @step
    def sweep(self):
        store = configured_store(self.root)
        self.swept = self.checked = None
        if self.survey.refusal is None:
            self.swept = sweep_chunks(store, self.survey, self.input)
        if self.read:
            self.checked = check_chunks(store, self.survey, self.input)
        self.next(self.report)

    @card(type="blank")
    @retry
    @step
    def report(self, inputs):
        self.survey = inputs[0].survey
        swept = [task.swept for task in inputs if task.swept is not None]
        checked = [task.checked for task in inputs if task.checked is not None]
        self.result = finish_upkeep(configured_store(self.root), self.survey, swept, checked)
        for component in components(self.root, self.result):
            current.card.append(component)
        self.next(self.end)

    @step
    def end(self):
        """Fails if something needs a person, so that the run is red; the card says what."""
        if self.result.refusal is not None:
            raise RuntimeError(self.result.refusal)
        if self.result.check is not None and not self.result.check.ok:
            raise RuntimeError(f"{len(self.result.check.problems)} problems; the card of the step `report` lists them")
        print("removed" if self.execute else "would remove", self.result.gc.removed, "chunks")


def components(root, result):
    """What the card shows."""
    yield Markdown(f"# Upkeep of `{root}`")
    if result.gc is None:
        yield Markdown(f"**gc has removed nothing.** {result.refusal}")
    else:
        gc = result.gc
        others = gc.temporary + gc.tombstones + gc.choices + gc.marks
        rows = [
            ["artifacts", gc.artifacts, ""],
            ["chunks before", gc.chunks, size(gc.stored)],
            ["chunks to remove" if gc.dry_run else "chunks removed", gc.removed, size(gc.freed)],
            ["needed again meanwhile", gc.spared, ""],
            ["needed by no artifact, within the grace period", gc.waiting.chunks, size(gc.waiting.size)],
            ["tombstones, marks and temporary objects", others, ""],
        ]
        yield Markdown("## gc" + (" (dry run)" if gc.dry_run else ""))
        yield Table(rows, headers=["", "number", "size"])
    if result.check is not None:
        check = result.check
        verdict = "whole" if check.ok else f"{len(check.problems)} problems"
        yield Markdown(f"## check: {verdict}")
        yield Table([["artifacts", check.artifacts, size(check.size)], ["chunks read", check.chunks, size(check.read)]])
        if check.problems:
            rows = [[problem.kind, problem.key, problem.detail] for problem in check.problems[:100]]
            yield Table(rows, headers=["problem", "artifact", "found"])


def size(count):
    power = min(max(count, 1).bit_length() - 1, 40) // 10
    return f"{count / 1024**power:.4g} {('bytes', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"


if __name__ == "__main__":
    UpkeepFlow()
