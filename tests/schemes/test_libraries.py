"""Attention and branches in the real models of timm and transformers, where these are installed."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import nn

from initopt import schemes
from initopt.schemes import attention
from initopt.schemes.attention import find_attention

IDS = torch.randint(50, (4, 8), generator=torch.Generator().manual_seed(0))
WORDS = {"input_ids": IDS, "labels": IDS}
SENTENCES = {"input_ids": IDS, "labels": torch.tensor([0, 1, 0, 1])}
SIZES = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
GROUPED = SIZES | {"num_key_value_heads": 2}
GPT2 = {"vocab_size": 50, "n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 4, "bos_token_id": 0, "eos_token_id": 0}
IMAGES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32, "image_size": 16}


@pytest.mark.parametrize(
    ("kind", "model", "options", "batch", "attentions", "heads", "ends"),
    [
        ("GPT2", "LMHeadModel", GPT2, WORDS, 2, (4, 4), ["attn.c_proj", "mlp.c_proj"]),
        ("Llama", "ForCausalLM", GROUPED, WORDS, 2, (4, 2), ["self_attn.o_proj", "mlp.down_proj"]),
        ("Qwen3", "ForCausalLM", GROUPED | {"head_dim": 8}, WORDS, 2, (4, 2), ["self_attn.o_proj", "mlp.down_proj"]),
        ("Bert", "ForSequenceClassification", SIZES, SENTENCES, 2, (4, 4), ["attention.output.dense", "output.dense"]),
        (
            "ViT",
            "ForImageClassification",
            IMAGES | {"patch_size": 4},
            {"pixel_values": torch.randn(4, 3, 16, 16), "labels": SENTENCES["labels"]},
            2,
            (4, 4),
            None,
        ),
        ("GPTNeoX", "ForCausalLM", SIZES, WORDS, 0, None, ["mlp.dense_4h_to_h", "attention.dense"]),
    ],
)
def test_transformers(
    kind: str, model: str, options: dict[str, Any], batch: Any, attentions: int, heads: Any, ends: list[str] | None
) -> None:
    library = pytest.importorskip("transformers")
    network: nn.Module = getattr(library, kind + model)(getattr(library, f"{kind}Config")(**options))
    found, refused = find_attention(network)
    assert [(each.heads, each.key_heads) for each in found] == attentions * [heads]
    assert bool(refused) == (not attentions)
    applied = schemes.apply_(network, "scaled_branches", batch, seed=0)
    assert len(applied.roles) == 4
    if ends is not None:
        assert all(any(name.endswith(f"{end}.weight") for end in ends) for name in applied.roles)
    for name in ("gpt2", "llama_depth", "small_init"):
        left = schemes.apply_(network, name, batch, seed=0).left
        assert all("norm" in each.lower() or "ln_" in each or "cls_token" in each for each in left)
    if attentions:
        assert len(schemes.apply_(network, "mimetic", seed=0).roles) in (4, 8)


SPECIAL = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}
MPT = {"d_model": 16, "n_heads": 4, "n_layers": 2, "vocab_size": 50, "max_seq_len": 16}


@pytest.mark.parametrize(
    ("kind", "options", "heads"),
    [
        ("GPT2LMHeadModel", GPT2, (4, 4)),
        ("Phi3ForCausalLM", GROUPED | SPECIAL, (4, 2)),
        ("MptForCausalLM", MPT, (4, 4)),
        ("ModernBertForMaskedLM", SIZES | SPECIAL | {"cls_token_id": 0, "sep_token_id": 0}, (4, 4)),
        ("ImageGPTForCausalImageModeling", GPT2, (4, 4)),
        ("GPTBigCodeForCausalLM", GPT2 | {"multi_query": True}, (4, 1)),
        ("GPTBigCodeForCausalLM", GPT2 | {"multi_query": False}, None),
        ("CodeGenForCausalLM", GPT2 | {"rotary_dim": 4}, None),
        ("DebertaForMaskedLM", SIZES, None),
        ("MiniMaxForCausalLM", SIZES | {"num_local_experts": 2, "layer_types": 2 * ["linear_attention"]}, None),
    ],
)
def test_orders_of_fused_projections(
    kind: str, options: dict[str, Any], heads: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Right ones are tried and set; others are refused, by what they have, and also by how they run."""
    library = pytest.importorskip("transformers")
    configuration = re.sub("(For|LMHead|LMHeadModel).*", "Config", kind)
    network: nn.Module = getattr(library, kind)(getattr(library, configuration)(**options))
    if heads is not None:
        assert [(each.heads, each.key_heads, each.is_fused) for each in find_attention(network)[0]] == 2 * [(*heads, True)]
        assert len(schemes.apply_(network, "mimetic", WORDS, seed=0).roles) == 4
        return
    with pytest.raises(ValueError, match="its fused projection is not ordered as queries, keys, values"):
        schemes.apply_(network, "mimetic", seed=0)
    monkeypatch.setattr(attention, "_other_order", lambda module: None)
    with pytest.raises(
        ValueError, match="is not ordered as queries, keys, values: as it runs, queries matter where the keys"
    ):
        schemes.apply_(network, "mimetic", WORDS, seed=0)


@pytest.mark.parametrize(
    ("name", "options", "attentions", "branches", "end"),
    [
        (
            "vit_tiny_patch16_224",
            {"img_size": 32, "patch_size": 8, "depth": 2},
            2,
            4,
            ("attn.proj.weight", "mlp.fc2.weight"),
        ),
        ("deit3_small_patch16_224", {"img_size": 32, "depth": 2}, 2, 4, ("ls1.gamma", "ls2.gamma")),
        ("resnet18", {}, 0, 8, ("bn2.weight",)),
        ("resnet50", {}, 0, 16, ("bn3.weight",)),
        ("convnext_atto", {}, 0, 12, ("gamma",)),
        ("efficientnet_b0", {}, 0, 9, ("bn3.weight",)),
    ],
)
def test_timm(name: str, options: dict[str, Any], attentions: int, branches: int, end: tuple[str, ...]) -> None:
    library = pytest.importorskip("timm")
    network: nn.Module = library.create_model(name, num_classes=10, **options)
    assert len(find_attention(network)[0]) == attentions
    applied = schemes.apply_(network, "zero_branches", (torch.randn(2, 3, 32, 32), torch.tensor([0, 1])), seed=0)
    assert len(applied.roles) == branches
    assert all(each.endswith(end) for each in applied.roles)
