"""What is timed, through the public API of the decorators, so that any package with these decorators can run it.

python workload.py --datastore local run --payload DIR --out FILE
"""

import json
import os
import resource
import shutil
import time

from metaflow import FlowSpec, Parameter, checkpoint, current, model, step

SMALL_SAVES = 50


class Timer:
    def __init__(self):
        self.seconds = {}

    def __call__(self, name, call, /, *args, **kwargs):
        begin = time.perf_counter()
        result = call(*args, **kwargs)
        self.seconds[name] = time.perf_counter() - begin
        return result


def peak_mib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Workload(FlowSpec):
    payload = Parameter("payload", required=True)
    out = Parameter("out", required=True)

    @model
    @step
    def start(self):
        self.results = {}
        timer = Timer()
        self.references = {}
        for name in sorted(os.listdir(self.payload)):
            path = os.path.join(self.payload, name)
            self.references[name] = timer(f"{name}.save", current.model.save, path, label=name)
            timer(f"{name}.save_again", current.model.save, path, label=name)
        self.results.update(timer.seconds, **{"peak.save_mib": peak_mib()})
        self.next(self.load)

    @model
    @step
    def load(self):
        timer = Timer()
        for name, reference in self.references.items():
            # The second load gets the memory that the first one gave back, as the other programs' second loads do.
            for metric in (f"{name}.load", f"{name}.load_again"):
                shutil.rmtree(timer(metric, current.model.load, reference))
        self.results.update(timer.seconds, **{"peak.load_mib": peak_mib()})
        self.next(self.checkpoints)

    @checkpoint
    @step
    def checkpoints(self):
        timer = Timer()
        for name in sorted(os.listdir(self.payload)):
            path = os.path.join(self.payload, name)
            reference = timer(f"{name}.checkpoint_save", current.checkpoint.save, path, name=name.replace("_", ""))
            target = os.path.join(self.payload, os.pardir, "loaded")
            timer(f"{name}.checkpoint_load", current.checkpoint.load, reference, path=target)
            shutil.rmtree(target)
        each = []
        for number in range(SMALL_SAVES):
            with open(os.path.join(current.checkpoint.directory, "state.bin"), "wb") as file:
                file.write(os.urandom(4096))
            timer("small", current.checkpoint.save, metadata={"number": number})
            each.append(timer.seconds.pop("small"))
        timer("small.list", lambda: list(current.checkpoint.list()))
        self.results.update(timer.seconds, **{"small.save": sorted(each)[len(each) // 2]})
        self.next(self.end)

    @step
    def end(self):
        with open(self.out, "w") as file:
            json.dump(self.results, file)


if __name__ == "__main__":
    Workload()
