"""What the cards of the decorators cost a task: seconds of its process, with and without them.

nox -s installed -- python benchmarks/cards.py [--rounds 15] [--s3]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from metaflow_artifacts.testing.flows import FlowRunner
from metaflow_artifacts.testing.seaweedfs import seaweedfs

# A task that saves a small model and a checkpoint, where it has the decorators.
FLOW = """
import os
from metaflow import FlowSpec, card, checkpoint, current, model, step

def when(condition, decorator):
    return decorator if condition else lambda function: function

OURS = os.environ["OURS"]

class CardsFlow(FlowSpec):
    @when(OURS, model(show_card=OURS == "cards"))
    @when(OURS, checkpoint(show_card=OURS == "cards"))
    @when(os.environ["CARD"], card)
    @step
    def start(self):
        with open("file", "w") as file:
            file.write("1 2 3")
        if OURS:
            self.saved = current.model.save("file")
            current.model.load(self.saved)
            current.checkpoint.save("file")
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    CardsFlow()
"""
CASES = {
    "no decorator": ("", ""),
    "@model and @checkpoint": ("", "cards"),
    "@card": ("yes", ""),
    "@card, @model and @checkpoint with show_card=False": ("yes", "no cards"),
    "@card, @model and @checkpoint": ("yes", "cards"),
}


def run(runner: FlowRunner, flow: Path, *arguments: str) -> tuple[float, float]:
    """Run a command as Metaflow's scheduler does; the seconds that passed, and those of the processor."""
    command = [sys.executable, str(flow), "--quiet", "--metadata", "local", *arguments]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    begin = time.perf_counter()
    subprocess.run(command, cwd=runner.work, env=runner.variables(), check=True, capture_output=True)
    passed = time.perf_counter() - begin
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return passed, after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def measure(runner: FlowRunner, flow: Path, rounds: int) -> dict[str, list[tuple[float, float]]]:
    results: dict[str, list[tuple[float, float]]] = {name: [] for name in CASES}
    for number in range(rounds + 1):
        for index, name in list(enumerate(CASES))[:: -1 if number % 2 else 1]:
            has_card, ours = CASES[name]
            here = runner.with_environment(CARD=has_card, OURS=ours)
            task = f"{number}{index}"
            run(here, flow, "init", "--run-id", task, "--task-id", "p")
            took = run(
                here,
                flow,
                "step",
                "start",
                "--run-id",
                task,
                "--task-id",
                "1",
                "--input-paths",
                f"{task}/_parameters/p",
            )
            # In the first round nothing is in the page cache.
            if number:
                results[name].append(took)
    return results


def show(results: Mapping[str, list[tuple[float, float]]], rounds: int) -> None:
    medians = {
        name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in results.items()
    }
    print(f"medians of {rounds} rounds; load {', '.join(f'{one:.1f}' for one in os.getloadavg())}")
    print("| a step with | seconds | of the processor |\n| --- | --- | --- |")
    for name, (passed, used) in medians.items():
        print(f"| {name} | {passed:.3f} | {used:.3f} |")
    whole, hidden, card = list(results)[4], list(results)[3], list(results)[2]
    for what, one, other in (("their cards alone", whole, hidden), ("the decorators and their cards", whole, card)):
        # Within a round, so that what else runs on the machine counts for both.
        pairs = [[a - b for a, b in zip(x, y, strict=True)] for x, y in zip(results[one], results[other], strict=True)]
        passed, used = (statistics.median(column) for column in zip(*pairs, strict=True))
        print(f"more for {what}: {passed:+.3f} s, {used:+.3f} s of the processor")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--s3", action="store_true", help="with an S3 server on this machine as the datastore")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work, contextlib.ExitStack() as stack:
        runner = FlowRunner(Path(work, "runs"))
        if options.s3:
            server = stack.enter_context(seaweedfs(Path(work, "server")))
            variables = {**server.environment(), "METAFLOW_DEFAULT_DATASTORE": "s3"}
            runner = runner.with_environment(**variables)
        flow = Path(work, "flow.py")
        flow.write_text(FLOW)
        show(measure(runner, flow, options.rounds), options.rounds)


if __name__ == "__main__":
    main()
