"""A network in Lightning: one line saves it in the background and resumes it."""

import time

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import EarlyStopping, LambdaCallback
from metaflow import FlowSpec, Parameter, checkpoint, retry, step
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from metaflow_artifacts_checkpoint import LightningCheckpoint


class Network(LightningModule):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Dropout(0.1), nn.Linear(32, 1))

    def training_step(self, batch, number):
        inputs, targets = batch
        return nn.functional.mse_loss(self.layers(inputs), targets)

    def validation_step(self, batch, number):
        inputs, targets = batch
        self.log("loss", nn.functional.mse_loss(self.layers(inputs), targets))

    def configure_optimizers(self):
        optimiser = torch.optim.Adam(self.parameters(), lr=0.01)
        return [optimiser], [torch.optim.lr_scheduler.StepLR(optimiser, 3, gamma=0.5)]


class LightningFlow(FlowSpec):
    epochs = Parameter("epochs", default=12)
    pause = Parameter("pause", default=0.2, help="seconds that an epoch takes longer, so that you can kill it")

    @retry(times=2, minutes_between_retries=0)
    @checkpoint
    @step
    def start(self):
        seed_everything(0)
        inputs = torch.randn(500, 16)
        data = TensorDataset(inputs, torch.sin(inputs).sum(dim=1, keepdim=True))
        model = Network()

        def tell(trainer, module):
            print(f"epoch {trainer.current_epoch + 1}: loss {trainer.callback_metrics['loss']:.5f}")
            time.sleep(self.pause)

        trainer = Trainer(
            max_epochs=self.epochs,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[LambdaCallback(on_train_epoch_end=tell), EarlyStopping("loss", patience=5)],
        )
        LightningCheckpoint().attach(trainer)
        trainer.fit(model, DataLoader(data, 50, shuffle=True), DataLoader(data, 100))
        self.result = [weights.tolist() for weights in model.state_dict().values()]
        self.next(self.end)

    @step
    def end(self):
        print("weights", self.result[0][0][:3])


if __name__ == "__main__":
    LightningFlow()
