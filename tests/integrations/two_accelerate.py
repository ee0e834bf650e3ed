"""Accelerate and Fabric in two processes: a script for ``tests/integrations/test_accelerate.py``."""

import torch
from accelerate import Accelerator
from lightning.fabric import Fabric
from torch import distributed

from initopt.integrations import accelerate, fabric
from tests.integrations._small import loader, net, order
from tests.integrations._two import found

SHORT = {"steps": 4, "measure_batches": 1, "on_harm": "warn", "progress": False, "seed": 0}


def same(model: torch.nn.Module) -> bool:
    """Whether both processes have the same weights, to the bit."""
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    both = [torch.zeros_like(weights) for _ in range(2)]
    distributed.all_gather(both, weights)
    return bool((both[0] == both[1]).all())


if __name__ == "__main__":
    accelerator = Accelerator(cpu=True)
    model, batches = accelerator.prepare(net(), loader())
    result = accelerate.optimize(accelerator, model, batches, **SHORT)
    first = {
        "equal": same(model),
        "scales": result.scales,
        "order": order(batches) == order(accelerator.prepare(loader())),
        "measured": accelerate.measure(accelerator, model, batches, progress=False).grad_cosine,
        "found": len(accelerate.diagnose(accelerator, model, batches, tries=(), progress=False).findings) >= 0,
    }
    lit = Fabric(accelerator="cpu", devices=2, strategy="ddp")
    lit.launch()
    wrapped, loaded = lit.setup(net()), lit.setup_dataloaders(loader())
    result = fabric.optimize(lit, wrapped, loaded, **SHORT)
    second = {
        "equal": same(wrapped),
        "scales": result.scales,
        "order": order(loaded) == order(lit.setup_dataloaders(loader())),
        "measured": fabric.measure(lit, wrapped, loaded, progress=False).grad_cosine,
    }
    found(accelerate=first, fabric=second)
    distributed.destroy_process_group()
