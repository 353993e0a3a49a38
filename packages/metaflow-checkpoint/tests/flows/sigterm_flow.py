"""A training that gets SIGTERM: it saves and leaves where it is given time, and else it ends as it would have."""

import json
import os
import signal
import time

from metaflow import FlowSpec, Parameter, checkpoint, current, retry, step

from metaflow_artifacts.testing.flows import emit

EPOCHS = 30
# Large enough for the process that stores.
BIG = 5_000_000


def state(epoch):
    return {"state.json": json.dumps(epoch).encode(), "weights": os.urandom(BIG)}


class SigtermFlow(FlowSpec):
    twice = Parameter("twice", default=False)

    @retry(times=1, minutes_between_retries=0)
    @checkpoint(preempt_grace=30)
    @step
    def start(self):
        """Saves only when it is preempted."""
        first = 0
        if current.checkpoint.is_loaded:
            with open(os.path.join(current.checkpoint.directory, "state.json")) as file:
                first = json.load(file)
            emit("grace resumes", [first, current.checkpoint.info.metadata["epoch"]])
        for epoch in range(first, EPOCHS):
            if current.retry_count == 0 and epoch == 7:
                os.kill(os.getpid(), signal.SIGTERM)
            if current.checkpoint.preempted:
                current.checkpoint.save_async(state(epoch), metadata={"epoch": epoch})
                raise RuntimeError("preempted")
        emit("grace ends", [first, current.checkpoint.preempted])
        self.next(self.pending)

    @retry(times=1, minutes_between_retries=0)
    @checkpoint
    @step
    def pending(self):
        """Has no time to save; what it has handed over is stored."""
        if current.retry_count:
            emit("stored", sorted(one["metadata"]["epoch"] for one in current.checkpoint.list()))
        else:
            for epoch in range(4):
                current.checkpoint.save_async(state(epoch), metadata={"epoch": epoch})
                emit("handed over", epoch)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
            emit("went on", True)
        self.next(self.second)

    @retry(times=1, minutes_between_retries=0)
    @checkpoint(preempt_grace=60)
    @step
    def second(self):
        """A second signal ends it at once."""
        if current.retry_count == 0:
            os.kill(os.getpid(), signal.SIGTERM)
            # Nothing is printed now: the log has a line of the signal.
            preempted = current.checkpoint.preempted
            if preempted:
                os.kill(os.getpid(), signal.SIGTERM)
            emit("went on", preempted)
        self.next(self.own_handler)

    @checkpoint
    @step
    def own_handler(self):
        """A handler that was there before is called, when all is stored."""
        called = []
        signal.signal(signal.SIGTERM, lambda *_: called.append(pending.done()))
        pending = current.checkpoint.save_async(state(0))
        os.kill(os.getpid(), signal.SIGTERM)
        deadline = time.monotonic() + 60
        while not called and time.monotonic() < deadline:
            time.sleep(0.01)
        # It is taken over again after that.
        again = current.checkpoint.save_async(state(1)).result()["version_id"]
        emit("own handler", [called, again, current.checkpoint.preempted])
        self.next(self.late)

    @retry(times=1, minutes_between_retries=0)
    @checkpoint
    @step
    def late(self):
        """The step's code ends before what is pending is stored: the process ends all the same."""
        if current.retry_count:
            emit("late", len(current.checkpoint.list()))
        else:
            current.checkpoint.save_async(state(0))
            os.kill(os.getpid(), signal.SIGTERM)
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    SigtermFlow()
