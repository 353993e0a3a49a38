"""Saves without end, until it is killed."""

import os
import time

from metaflow import FlowSpec, checkpoint, current, step


class EndlessFlow(FlowSpec):
    @checkpoint
    @step
    def start(self):
        number = 0
        while True:
            with open(os.path.join(current.checkpoint.directory, "number"), "w") as file:
                file.write(str(number))
            current.checkpoint.save(name="even" if number % 2 == 0 else "odd", metadata={"number": number})
            number += 1
            time.sleep(0.05)
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    EndlessFlow()
