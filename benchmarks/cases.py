"""What is measured: a network, its batch norm's statistics and a number of sub-batches at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["SUITES", "Case"]


@dataclass(frozen=True)
class Case:
    """One comparison of all contenders.

    Attributes:
        network: a key of ``networks.NETWORKS``.
        num_subbatches: D.
        batch_norm: whose statistics normalize.
        batch_size: B.
        overlap: overlap ratio of the sub-batches.
        memory: whether memory is measured, too; not where it drowns in that of the process.
        precision: of the computation; ``"bf16"`` is autocast, with weights in float32.
        channels_last: whether weights and images have the channels last in memory.
    """

    network: str
    num_subbatches: int = 4
    batch_norm: str = "subbatch"
    batch_size: int = 64
    overlap: float = 0.0
    memory: bool = True
    precision: Literal["float32", "bf16"] = "float32"
    channels_last: bool = False

    @property
    def key(self) -> str:
        """Its name in the results."""
        overlap = f" overlap={self.overlap:g}" if self.overlap else ""
        precision = "" if self.precision == "float32" else f" {self.precision}"
        layout = " channels last" if self.channels_last else ""
        return f"{self.network} {self.batch_norm} B={self.batch_size} D={self.num_subbatches}{overlap}{precision}{layout}"


def against_d(network: str, batch_size: int = 64, memory: bool = True) -> tuple[Case, ...]:
    """D = 2, 4, 8, 32 and B."""
    counts = [d for d in (2, 4, 8, 32) if d < batch_size] + [batch_size]
    return tuple(Case(network, d, batch_size=batch_size, memory=memory) for d in counts)


def both_modes(network: str, batch_size: int = 64) -> tuple[Case, ...]:
    return tuple(Case(network, batch_norm=mode, batch_size=batch_size) for mode in ("subbatch", "batch"))


_AT_FOUR = (
    Case("resnet56"),
    *both_modes("resnet56-bn"),
    Case("vit"),
    Case("gpt"),
    Case("resnet110"),
    Case("resnet56", overlap=0.2, memory=False),
)
_OTHERS = tuple(case for case in against_d("resnet56") if case not in _AT_FOUR)

SUITES: dict[str, tuple[Case, ...]] = {
    "smoke": (
        *against_d("tiny-resnet", batch_size=8),
        *both_modes("tiny-resnet-bn", batch_size=8),
        Case("tiny-vit", batch_size=8, overlap=0.25),
        Case("tiny-gpt", batch_size=8),
    ),
    "cpu": (*_AT_FOUR, Case("wrn-16-4"), *against_d("mlp", memory=False), *_OTHERS),
    "cuda": (*_AT_FOUR, *both_modes("wrn-28-10-bn"), *_OTHERS),
    "imagenet-smoke": (Case("resnet50-bn", 2, batch_size=4, memory=False), Case("vit-b-16", 2, batch_size=2, memory=False)),
    "imagenet": (*both_modes("resnet50-bn"), Case("vit-b-16")),
}
"""Suites by name, the most telling cases first."""
