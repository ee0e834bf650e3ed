"""Lightning in two processes: a script for ``tests/integrations/test_lightning.py``."""

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.fsdp import fully_shard

from initopt.integrations.lightning import Diagnose, FindLearningRate, Initialize
from initopt.model.sharded import has_shards
from tests.integrations._lit import SEARCH, Lit, fit
from tests.integrations._two import found
from tests.processes import alike


class Sharded(Lit):
    """Has its weights in parts on both processes."""

    def configure_model(self):
        for part in (self.net[0], self.net[3], self.net):
            fully_shard(part, mesh=self.device_mesh["data_parallel"])


def sharded(*callbacks):
    torch.manual_seed(0)
    strategy = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
    return fit(list(callbacks), Sharded(), strategy=strategy, devices=2)


if __name__ == "__main__":
    plain, _ = fit([], strategy="ddp", devices=2)
    start, of_parts = (Initialize("nio", steps=4, measure_batches=2, on_harm="warn", progress=False) for _ in range(2))
    module, trainer = fit([start], strategy="ddp", devices=2)
    search = FindLearningRate(set_rate=True, **SEARCH)
    searched, after = fit([search], strategy="ddp", devices=2)
    look, search_of_parts = Diagnose(), FindLearningRate(**SEARCH)
    parts, _ = sharded(of_parts, look, search_of_parts)
    found(
        equal_parts=alike(parts),
        scales_of_parts=of_parts.result.scales,
        in_parts=has_shards(parts),
        order_of_parts=parts.seen == plain.seen,
        findings_of_parts=[finding.rule for finding in look.result.findings],
        losses_of_parts=[run.losses for run in search_of_parts.result.runs],
        equal=alike(module),
        scales=start.result.scales,
        cosine=start.result.before.grad_cosine,
        order=module.seen == plain.seen,
        count=float(trainer.callback_metrics["count"]),
        searched=alike(searched),
        suggested=search.result.suggested,
        losses=[run.losses for run in search.result.runs],
        rate=after.optimizers[0].param_groups[0]["lr"],
        order_after_search=searched.seen == plain.seen,
    )
