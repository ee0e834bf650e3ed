"""Starts of low-rank adapters, compared: PEFT's default, PiSSA, and LoRA-GA, which looks at batches."""

import sys

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

import initopt
from initopt.integrations.peft import start


def adapted() -> nn.Module:
    """A network with adapters of rank 4; the weights stand in for pretrained ones, and are the same for every seed."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    return get_peft_model(net, LoraConfig(r=4, target_modules=["1"], modules_to_save=["3"]))


if __name__ == "__main__":
    found = initopt.compare(
        {"adapted": adapted},
        "digits",
        ["default", start("pissa"), start("lora_ga", num_batches=4)],
        seeds=2,
        recipe={"epochs": 2},
        out=sys.argv[1] if len(sys.argv) > 1 else "initopt-peft",
        workers=1,
    )
    for run in found.runs:
        print(f"{run.initialization:<14} seed {run.seed}: test accuracy {run.curve[-1].accuracy:.3f}")
