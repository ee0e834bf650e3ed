"""A loader that a test and the process that it starts both make."""

from __future__ import annotations

import torch
from torch.utils.data import DataLoader, TensorDataset


def make_loader() -> DataLoader:
    """A shuffled loader, nine batches an epoch, that draws from torch's global state."""
    torch.manual_seed(3)
    data = TensorDataset(torch.randn(144, 6), torch.randint(3, (144,)))
    torch.manual_seed(4)
    return DataLoader(data, batch_size=16, shuffle=True)
