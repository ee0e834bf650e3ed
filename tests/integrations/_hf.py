"""A small language model of transformers, made from its configuration, and trainers that note what they see."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments


class Tokens(Dataset[dict[str, Tensor]]):
    """Sequences that count upwards."""

    def __init__(self, count: int = 96) -> None:
        generator = torch.Generator().manual_seed(0)
        self.tokens = (torch.randint(20, (count, 1), generator=generator) + torch.arange(8)) % 20

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.tokens[index], "labels": self.tokens[index]}


def llama() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=20, max_position_embeddings=16, pad_token_id=0, **sizes))


class Noting(Trainer):
    """Notes the batches of its training steps, counts the calls of its loss, and logs in them."""

    seen: tuple[int, ...] = ()
    calls = 0

    def training_step(self, model: nn.Module, inputs: Any, *args: Any, **options: Any) -> Tensor:
        self.seen = (*self.seen, int((inputs["input_ids"] * torch.arange(1, 9)).sum()))
        return super().training_step(model, inputs, *args, **options)

    def compute_loss(self, model: nn.Module, inputs: Any, *args: Any, **options: Any) -> Any:
        self.calls += 1
        self.figures = [*getattr(self, "figures", []), 1.0]
        self.log({"own": 1.0})
        return super().compute_loss(model, inputs, *args, **options)


def trainer(folder: Any, kind: type[Trainer] = Noting, model: nn.Module | None = None, **options: Any) -> Trainer:
    own = {name: options.pop(name) for name in ("compute_loss_func", "callbacks", "data_collator") if name in options}
    settings = {"report_to": [], "use_cpu": True, "disable_tqdm": True, "save_strategy": "no", "num_train_epochs": 1}
    arguments = TrainingArguments(str(folder), **settings | {"per_device_train_batch_size": 16} | options)
    return kind(llama() if model is None else model, arguments, train_dataset=Tokens(), **own)
