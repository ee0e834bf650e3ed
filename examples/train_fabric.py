"""NIO on what Lightning Fabric has set up, in any of its precisions."""

import torch
from lightning.fabric import Fabric
from torch import nn
from torch.utils.data import DataLoader

import initopt
from initopt.integrations.fabric import optimize

if __name__ == "__main__":
    fabric = Fabric(precision="bf16-mixed")
    fabric.launch()
    fabric.seed_everything(0)
    layers = [layer for _ in range(9) for layer in (nn.Linear(64, 64), nn.Tanh())]
    net = nn.Sequential(nn.Flatten(), *layers, nn.Linear(64, 10))
    model, optimizer = fabric.setup(net, torch.optim.SGD(net.parameters(), 0.1, momentum=0.9))
    loader = fabric.setup_dataloaders(DataLoader(initopt.data.digits().train, batch_size=64, shuffle=True))

    fabric.print(optimize(fabric, model, loader, method="nio", steps=50))

    for epoch in range(2):
        for images, labels in loader:
            loss = nn.functional.cross_entropy(model(images), labels)
            fabric.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
        fabric.print(f"epoch {epoch}: loss of the last batch {loss.item():.3f}")
