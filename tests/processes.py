"""Groups of processes on this machine, for tests of what several devices do together."""

from __future__ import annotations

import faulthandler
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from initopt.batches.nested import batch_size, take
from tests.forks import forking


def in_processes(function: Callable[..., Any], size: int, *arguments: Any) -> list[Any]:
    """What a function of a test module returns in each of ``size`` processes, which form a group; by rank.

    If one of them ends otherwise, what they have written to standard error is in the notes of the exception.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            method = forking().get_start_method()
            mp.start_processes(_in_group, (size, folder, function, arguments), nprocs=size, start_method=method)
        except (mp.ProcessExitedException, mp.ProcessRaisedException) as error:
            for rank in range(size):
                place = Path(folder)
                ended = "has" if (place / str(rank)).exists() else "has no"
                said = place / f"stderr {rank}"
                error.add_note(f"rank {rank}, which {ended} result, wrote: {said.read_text() if said.exists() else ''}")
            raise
        return [torch.load(Path(folder) / str(rank), weights_only=False) for rank in range(size)]


def _in_group(rank: int, size: int, folder: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    os.dup2(os.open(f"{folder}/stderr {rank}", os.O_WRONLY | os.O_CREAT), 2)  # of C++ and signals, too
    faulthandler.enable()
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(f"{folder}/store", size), rank=rank, world_size=size)
    found = function(*arguments)
    torch.save(found, Path(folder) / f"{rank}.part")
    (Path(folder) / f"{rank}.part").rename(Path(folder) / str(rank))
    # Not by a barrier, which one rank may leave, and close its connections, while another is still in it. If one fails,
    # the others are ended.
    while not all((Path(folder) / str(other)).exists() for other in range(size)):
        time.sleep(0.01)
    # What is tested is over. An interpreter that ends while exceptions still hold the group, and with it threads of gloo,
    # has been aborted, rarely.
    os._exit(0)


def share_of(batch: Any, count: int, rank: int, size: int) -> Any:
    """The samples of a batch that one of ``size`` ranks has: of each of ``count`` sub-batches, a part."""
    samples = batch_size(batch)
    windows = torch.arange(samples)[: samples // count * count].view(count, -1)
    return take(batch, torch.cat([window.tensor_split(size)[rank] for window in windows]), samples)


def whole(model: nn.Module) -> dict[str, Tensor]:
    """The parameters of a model, gathered where they are in parts on several processes."""
    return {name: getattr(p, "full_tensor", lambda p=p: p)().detach().clone() for name, p in model.named_parameters()}


def alike(model: nn.Module) -> bool:
    """Whether all processes have the same weights, to the bit."""
    weights = torch.cat([value.flatten() for value in whole(model).values()])
    found = [torch.zeros_like(weights) for _ in range(dist.get_world_size())]
    dist.all_gather(found, weights)
    return all(torch.equal(other, weights) for other in found)


class OneByOne(nn.Module):
    """A model that runs the shares of ranks one after the other, as ranks do at a time: batch norms see a share."""

    def __init__(self, model: nn.Module, size: int) -> None:
        super().__init__()
        self.model = model
        self.size = size

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.cat([self.model(part) for part in inputs.tensor_split(self.size)])
