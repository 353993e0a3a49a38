"""One step that resumes from the checkpoint of any run, and adds a file to it."""

import os

from metaflow import FlowSpec, checkpoint, current, retry, step

from metaflow_artifacts.testing.flows import emit


class SharedFlow(FlowSpec):
    @retry(times=1, minutes_between_retries=0)
    @checkpoint(load_policy="eager")
    @step
    def start(self):
        emit("began with", sorted(os.listdir(current.checkpoint.directory)))
        me = os.environ["WHO"]
        with open(os.path.join(current.checkpoint.directory, f"{me} {current.retry_count}"), "w") as file:
            file.write(me)
        current.checkpoint.save()
        if os.environ.get("WAIT_FOR") and current.retry_count == 0:
            # The other run saves meanwhile, at the same place.
            with open(f"saved by {me}", "w") as file:
                file.write(me)
            while not os.path.exists(os.environ["WAIT_FOR"]):
                pass
            raise RuntimeError("once")
        emit("own", len(current.checkpoint.list()))
        emit("place", len(current.checkpoint.list(full_namespace=True)))
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    SharedFlow()
