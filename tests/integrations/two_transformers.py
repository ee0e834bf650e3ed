"""The Trainer in two processes: a script for ``tests/integrations/test_transformers.py``."""

import sys

from accelerate import FullyShardedDataParallelPlugin
from accelerate.utils import DistributedType
from torch import distributed

from initopt.integrations.transformers import Diagnose, FindLearningRate, Initialize
from initopt.model.sharded import has_shards
from tests.integrations._hf import trainer
from tests.integrations._two import found
from tests.processes import alike

SHORT = {"steps": 4, "measure_batches": 1, "on_harm": "warn", "progress": False}


def sharded(folder):
    """A trainer of version 2 of FSDP, for which Accelerate itself wants a GPU; what follows is its own way."""
    made = trainer(folder)
    state = made.accelerator.state
    state.distributed_type = DistributedType.FSDP
    options = {"auto_wrap_policy": "transformer_based_wrap", "transformer_cls_names_to_wrap": ["LlamaDecoderLayer"]}
    state.fsdp_plugin = FullyShardedDataParallelPlugin(fsdp_version=2, **options)
    made.is_fsdp_enabled = True
    made.args.fsdp = ["full_shard"]
    return made


if __name__ == "__main__":
    plain = trainer(sys.argv[1])
    plain.train()
    made = trainer(sys.argv[1], gradient_accumulation_steps=2)
    start = Initialize("nio", trainer=made, **SHORT)
    made.add_callback(start)
    made.train()
    seeking = trainer(sys.argv[1])
    search = FindLearningRate(trainer=seeking, budget=520, seeds=1, steps=10, warmup_steps=0, progress=False)
    seeking.add_callback(search)
    seeking.train()
    parts = sharded(sys.argv[1])
    of_parts, look = Initialize("nio", trainer=parts, **SHORT), Diagnose(trainer=parts)
    parts.add_callback(of_parts)
    parts.add_callback(look)
    parts.train()
    found(
        in_parts=has_shards(parts.model),
        scales_of_parts=of_parts.result.scales,
        order_of_parts=parts.seen == plain.seen,
        findings_of_parts=[finding.rule for finding in look.result.findings],
        equal=alike(made.model),
        scales=start.result.scales,
        order=made.seen == plain.seen,
        steps=len(made.seen),
        suggested=search.result.suggested,
        losses=[run.losses for run in search.result.runs],
        order_after_search=seeking.seen == plain.seen,
    )
    distributed.destroy_process_group()
