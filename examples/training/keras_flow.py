"""A network in Keras: one callback saves in the background and resumes; `fit` is called as without it."""

import os
import time

os.environ.setdefault("KERAS_BACKEND", "torch")

import keras
import numpy as np
from metaflow import FlowSpec, Parameter, checkpoint, retry, step

from metaflow_artifacts_checkpoint import KerasCheckpoint


class KerasFlow(FlowSpec):
    epochs = Parameter("epochs", default=12)
    pause = Parameter("pause", default=0.2, help="seconds that an epoch takes longer, so that you can kill it")

    @retry(times=2, minutes_between_retries=0)
    @checkpoint
    @step
    def start(self):
        keras.utils.set_random_seed(0)
        inputs = np.random.normal(size=(500, 16)).astype("float32")
        targets = np.sin(inputs).sum(axis=1, keepdims=True)
        model = keras.Sequential(
            [
                keras.layers.Input((16,)),
                keras.layers.Dense(32, activation="tanh"),
                keras.layers.Dropout(0.1),
                keras.layers.BatchNormalization(),
                keras.layers.Dense(1),
            ]
        )
        rate = keras.optimizers.schedules.ExponentialDecay(0.01, decay_steps=50, decay_rate=0.9)
        model.compile(keras.optimizers.Adam(rate), loss="mse")

        def tell(epoch, logs):
            print(f"epoch {epoch + 1}: loss {logs['loss']:.5f}")
            time.sleep(self.pause)

        history = model.fit(
            inputs,
            targets,
            epochs=self.epochs,
            batch_size=50,
            validation_split=0.2,
            verbose=0,
            callbacks=[KerasCheckpoint(), keras.callbacks.LambdaCallback(on_epoch_end=tell)],
        )
        self.history = [history.epoch, history.history]
        self.result = [[weights.tolist() for weights in model.get_weights()], self.history]
        self.next(self.end)

    @step
    def end(self):
        print("losses", self.history[1]["loss"][-3:])


if __name__ == "__main__":
    KerasFlow()
