"""A tiny language model and transformers' Trainer: one line saves its checkpoints in the background and resumes."""

import tempfile
import time

import torch
from metaflow import FlowSpec, Parameter, checkpoint, retry, step
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments, set_seed

from metaflow_artifacts_checkpoint import TrainerCheckpoint


class Tell(TrainerCallback):
    def __init__(self, pause):
        self.pause = pause

    def on_step_end(self, args, state, control, **keywords):
        print(f"step {state.global_step}: epoch {state.epoch:.2f}")
        time.sleep(self.pause)


class TransformersFlow(FlowSpec):
    steps = Parameter("steps", default=36)
    pause = Parameter("pause", default=0.1, help="seconds that a step takes longer, so that you can kill it")

    @retry(times=2, minutes_between_retries=0)
    @checkpoint
    @step
    def start(self):
        set_seed(0)
        model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_positions=16, n_embd=16, n_layer=2, n_head=2))
        tokens = [(torch.arange(12) * (number % 7 + 1) + number) % 50 for number in range(80)]
        data = [{"input_ids": one, "labels": one} for one in tokens]
        with tempfile.TemporaryDirectory() as output:
            arguments = TrainingArguments(
                output,
                max_steps=self.steps,
                per_device_train_batch_size=8,
                eval_strategy="steps",
                eval_steps=4,
                save_steps=4,
                save_total_limit=2,
                load_best_model_at_end=True,
                report_to="none",
                disable_tqdm=True,
                use_cpu=True,
                seed=0,
            )
            trainer = Trainer(
                model, arguments, train_dataset=data, eval_dataset=data[:16], callbacks=[Tell(self.pause)]
            )
            TrainerCheckpoint().attach(trainer)
            trainer.train()
        self.result = [weights.tolist() for weights in model.state_dict().values()]
        self.next(self.end)

    @step
    def end(self):
        print("weights", self.result[0][0][:3])


if __name__ == "__main__":
    TransformersFlow()
