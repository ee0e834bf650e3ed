"""The Trainer in two processes: a script for ``tests/integrations/test_transformers.py``."""

import sys

import torch
from torch import distributed

from initopt.integrations.transformers import FindLearningRate, Initialize
from tests.integrations._hf import trainer
from tests.integrations._two import found

if __name__ == "__main__":
    plain = trainer(sys.argv[1])
    plain.train()
    made = trainer(sys.argv[1], gradient_accumulation_steps=2)
    start = Initialize("nio", trainer=made, steps=4, measure_batches=1, on_harm="warn", progress=False)
    made.add_callback(start)
    made.train()
    seeking = trainer(sys.argv[1])
    search = FindLearningRate(trainer=seeking, budget=520, seeds=1, steps=10, warmup_steps=0, progress=False)
    seeking.add_callback(search)
    seeking.train()
    weights = torch.cat([p.detach().flatten() for p in made.model.parameters()])
    both = [torch.zeros_like(weights) for _ in range(2)]
    distributed.all_gather(both, weights)
    found(
        equal=bool((both[0] == both[1]).all()),
        scales=start.result.scales,
        order=made.seen == plain.seen,
        steps=len(made.seen),
        suggested=search.result.suggested,
        losses=[run.losses for run in search.result.runs],
        order_after_search=seeking.seen == plain.seen,
    )
    distributed.destroy_process_group()
