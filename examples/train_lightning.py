"""NIO, a diagnosis of its start and a learning rate, in three callbacks of Lightning's Trainer."""

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import initopt
from initopt.integrations.lightning import Diagnose, FindLearningRate, Initialize


class Digits(pl.LightningModule):
    """Ten tanh layers, which PyTorch's default weights do not suit."""

    def __init__(self) -> None:
        super().__init__()
        layers = [layer for _ in range(9) for layer in (nn.Linear(64, 64), nn.Tanh())]
        self.net = nn.Sequential(nn.Flatten(), *layers, nn.Linear(64, 10))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The loss, which is all that the callbacks need to know."""
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain SGD."""
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


if __name__ == "__main__":
    pl.seed_everything(0)
    start = Initialize("nio", steps=50)
    rate = FindLearningRate(seeds=1, steps=20, warmup_steps=0, budget=600, set_rate=True)
    trainer = pl.Trainer(
        max_epochs=2, callbacks=[start, Diagnose(tries=()), rate], logger=False, enable_checkpointing=False
    )
    trainer.fit(Digits(), DataLoader(initopt.data.digits().train, batch_size=64, shuffle=True))
    print(f"{start.result.verdict}; loss of the last batch {float(trainer.callback_metrics['loss']):.3f}")
