"""Accelerate and Fabric in two processes: a script for ``tests/integrations/test_accelerate.py``."""

import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.utils import DistributedType
from lightning.fabric import Fabric
from lightning.fabric.strategies import ModelParallelStrategy
from torch import distributed, nn
from torch.distributed.fsdp import fully_shard

from initopt.integrations import accelerate, fabric
from initopt.model.sharded import has_shards
from tests.integrations._small import loader, net, order
from tests.integrations._two import found
from tests.processes import alike

SHORT = {"steps": 4, "measure_batches": 1, "on_harm": "warn", "progress": False, "seed": 0}


def trains(model, batches, optimizer, backward):
    """Whether a training step moves the weights."""
    before = [p.detach().clone() for p in model.parameters()]
    inputs, targets = next(iter(batches))
    backward(nn.functional.cross_entropy(model(inputs), targets))
    optimizer.step()
    return all(not bool((p == old).all()) for p, old in zip(model.parameters(), before, strict=True))


def adamw(model):
    return torch.optim.AdamW(model.parameters(), lr=0.01)


def what_is_found(module, prepared, which, prepare, backward):
    """What both frameworks are asked for."""
    model, optimizer, batches = prepared
    result = module.optimize(which, model, batches, **SHORT)
    return {
        "equal": alike(model),
        "scales": result.scales,
        "order": order(batches) == order(prepare(loader())),
        "measured": module.measure(which, model, batches, progress=False).grad_cosine,
        "found": len(module.diagnose(which, model, batches, optimizer=optimizer, progress=False).findings),
        "sharded": has_shards(model),
        "trains": trains(model, batches, optimizer, backward),
    }


def accelerated(sharded):
    accelerator = Accelerator(cpu=True)
    if sharded:  # for which Accelerate itself wants a GPU; what follows is its own way
        accelerator.state.distributed_type = DistributedType.FSDP
        options = {"auto_wrap_policy": "size_based_wrap", "min_num_params": 10}
        accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(fsdp_version=2, **options)
    model = net()
    prepared = accelerator.prepare(model, adamw(model), loader())
    return what_is_found(accelerate, prepared, accelerator, accelerator.prepare, accelerator.backward)


def by_fabric(sharded):
    strategy = ModelParallelStrategy(in_parts, data_parallel_size=2, tensor_parallel_size=1) if sharded else "ddp"
    lit = Fabric(accelerator="cpu", devices=2, strategy=strategy)
    lit.launch()
    model = lit.setup(net())
    prepared = model, lit.setup_optimizers(adamw(model)), lit.setup_dataloaders(loader())
    return what_is_found(fabric, prepared, lit, lit.setup_dataloaders, lit.backward)


def in_parts(model, mesh):
    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh["data_parallel"])
    return fully_shard(model, mesh=mesh["data_parallel"])


if __name__ == "__main__":
    results = {"accelerate": accelerated(False), "accelerate, sharded": accelerated(True)}
    results |= {"fabric": by_fabric(False), "fabric, sharded": by_fabric(True)}
    found(**results)
    distributed.destroy_process_group()
