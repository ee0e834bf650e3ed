"""NIO on what Accelerate has prepared: python train_accelerate.py, or torchrun --nproc-per-node 2 train_accelerate.py."""

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader

import initopt
from initopt.integrations.accelerate import diagnose, optimize

if __name__ == "__main__":
    torch.manual_seed(0)
    accelerator = Accelerator(gradient_accumulation_steps=2)
    layers = [layer for _ in range(9) for layer in (nn.Linear(64, 64), nn.Tanh())]
    net = nn.Sequential(nn.Flatten(), *layers, nn.Linear(64, 10))
    loader = DataLoader(initopt.data.digits().train, batch_size=32, shuffle=True)
    model, optimizer, loader = accelerator.prepare(net, torch.optim.SGD(net.parameters(), 0.1, momentum=0.9), loader)

    result = optimize(accelerator, model, loader, method="nio", steps=50)
    accelerator.print(result)
    accelerator.print(diagnose(accelerator, model, loader, optimizer=optimizer, tries=()))

    for epoch in range(2):
        for images, labels in loader:
            with accelerator.accumulate(model):
                loss = nn.functional.cross_entropy(model(images), labels)
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
        accelerator.print(f"epoch {epoch}: loss of the last batch {loss.item():.3f}")
    accelerator.end_training()
