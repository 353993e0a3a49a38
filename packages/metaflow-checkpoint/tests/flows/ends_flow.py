"""Steps that are ended by an error that is caught, and by a timeout."""

import os
import signal

from metaflow import FlowSpec, catch, checkpoint, current, retry, step, timeout

from metaflow_artifacts.testing.flows import emit


def count():
    path = os.path.join(current.checkpoint.directory, "count")
    number = 0
    if os.path.exists(path):
        with open(path) as file:
            number = int(file.read())
    with open(path, "w") as file:
        file.write(str(number + 1))
    return number


class EndsFlow(FlowSpec):
    @catch(var="failure", print_exception=False)
    @retry(times=1, minutes_between_retries=0)
    @checkpoint
    @step
    def start(self):
        emit("caught begins", count())
        self.kept = current.checkpoint.save()
        if self.kept:
            raise RuntimeError("always")
        self.next(self.slow)

    @timeout(seconds=600)
    @retry(times=1, minutes_between_retries=0)
    @checkpoint
    @step
    def slow(self):
        emit("slow begins", count())
        current.checkpoint.save()
        if current.retry_count == 0:
            # Its time is over now, and not before the checkpoint was saved, however busy the machine is.
            signal.raise_signal(signal.SIGALRM)
        self.next(self.end)

    @checkpoint
    @step
    def end(self):
        emit("failure", str(self.failure.exception))
        found = current.checkpoint.list(task=f"EndsFlow/{current.run_id}/start/1", attempt=1)
        emit("kept", [one["attempt"] for one in found])
        emit("begins", count())


if __name__ == "__main__":
    EndsFlow()
