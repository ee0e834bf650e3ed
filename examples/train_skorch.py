"""NIO before the first step of a skorch net, and a look at what it leaves."""

import numpy as np
import torch
from skorch import NeuralNetClassifier
from torch import nn

import initopt
from initopt.integrations.skorch import Diagnose, Initialize


class Net(nn.Module):
    """Ten tanh layers."""

    def __init__(self) -> None:
        super().__init__()
        layers = [layer for _ in range(9) for layer in (nn.Linear(64, 64), nn.Tanh())]
        self.layers = nn.Sequential(nn.Flatten(), *layers, nn.Linear(64, 10))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images)


if __name__ == "__main__":
    torch.manual_seed(0)
    digits = initopt.data.digits().train
    images, labels = np.stack([image for image, _ in digits]), np.array([int(label) for _, label in digits])
    start, look = Initialize("nio", steps=50), Diagnose(tries=())
    options = {"criterion": nn.CrossEntropyLoss, "lr": 0.1, "optimizer__momentum": 0.9, "iterator_train__shuffle": True}
    net = NeuralNetClassifier(Net, **options, max_epochs=3, batch_size=64, callbacks=[start, look])
    net.fit(images, labels)
    print(f"accuracy on the training set {net.score(images, labels):.3f}")
