"""Lightning in two processes: a script for ``tests/integrations/test_lightning.py``."""

import torch
from torch import distributed

from initopt.integrations.lightning import FindLearningRate, Initialize
from tests.integrations._lit import SEARCH, fit
from tests.integrations._two import found


def gathered(module):
    """Whether both processes have the same weights, to the bit."""
    weights = torch.cat([p.detach().flatten() for p in module.parameters()])
    both = [torch.zeros_like(weights) for _ in range(2)]
    distributed.all_gather(both, weights)
    return bool((both[0] == both[1]).all())


if __name__ == "__main__":
    plain, _ = fit([], strategy="ddp", devices=2)
    start = Initialize("nio", steps=4, measure_batches=2, on_harm="warn", progress=False)
    module, trainer = fit([start], strategy="ddp", devices=2)
    search = FindLearningRate(set_rate=True, **SEARCH)
    searched, after = fit([search], strategy="ddp", devices=2)
    found(
        equal=gathered(module),
        scales=start.result.scales,
        cosine=start.result.before.grad_cosine,
        order=module.seen == plain.seen,
        count=float(trainer.callback_metrics["count"]),
        searched=gathered(searched),
        suggested=search.result.suggested,
        losses=[run.losses for run in search.result.runs],
        rate=after.optimizers[0].param_groups[0]["lr"],
        order_after_search=searched.seen == plain.seen,
    )
