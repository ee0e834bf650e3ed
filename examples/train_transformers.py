"""NIO at the beginning of a training by the Trainer of transformers, with its own loss (label smoothing here)."""

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from initopt.integrations.transformers import Diagnose, Initialize


class Counting(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Sequences of numbers that count upwards, modulo 20."""

    def __len__(self) -> int:
        return 512

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        tokens = (index * 7 + torch.arange(12)) % 20
        return {"input_ids": tokens, "labels": tokens}


if __name__ == "__main__":
    torch.manual_seed(0)
    tokens = {"vocab_size": 20, "bos_token_id": 0, "eos_token_id": 0}
    model = GPT2LMHeadModel(GPT2Config(n_positions=16, n_embd=32, n_layer=2, n_head=2, **tokens))
    arguments = TrainingArguments(
        "initopt-example",
        num_train_epochs=2,
        per_device_train_batch_size=32,
        label_smoothing_factor=0.1,
        save_strategy="no",
        report_to=[],
        logging_steps=8,
    )
    trainer = Trainer(model, arguments, train_dataset=Counting())
    start = Initialize("nio", trainer=trainer, steps=20, measure_batches=4)
    trainer.add_callback(start)
    trainer.add_callback(Diagnose(trainer=trainer, tries=()))
    trainer.train()
    print(start.result.verdict)
