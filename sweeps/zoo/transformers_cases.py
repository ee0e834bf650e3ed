"""Small configurations of architectures of transformers."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from initopt.model.losses import LossFunction
from sweeps.zoo.case import BATCH_SIZE, NUM_CLASSES, Case

__all__ = ["CASES"]

_VOCABULARY = 40
_LENGTH = 8

_TEXT = {"vocab_size": _VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_WIDE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
_RWKV = {"hidden_size": 32, "num_hidden_layers": 2, "context_length": 16}
_GROUPED = {**_TEXT, **_WIDE, "num_key_value_heads": 2, "head_dim": 8}


def _tokens() -> Tensor:
    return torch.randint(3, _VOCABULARY, (BATCH_SIZE, _LENGTH))


def _causal() -> dict[str, Tensor]:
    tokens = _tokens()
    return {"input_ids": tokens, "labels": tokens}


def _padded() -> dict[str, Tensor]:
    """Masked words to guess, in sentences of different lengths."""
    tokens, labels = _tokens(), _tokens()
    lengths = torch.arange(BATCH_SIZE) % 3 + _LENGTH - 2
    mask = (torch.arange(_LENGTH) < lengths[:, None]).long()
    labels[mask == 0] = -100
    return {"input_ids": tokens * mask, "attention_mask": mask, "labels": labels}


def _classes() -> dict[str, Tensor]:
    return {**_padded(), "labels": torch.randint(NUM_CLASSES, (BATCH_SIZE,))}


def _detection() -> dict[str, Tensor]:
    """For every token, whether it was replaced."""
    return {**_padded(), "labels": torch.randint(2, (BATCH_SIZE, _LENGTH))}


def _translation() -> dict[str, Tensor]:
    return {"input_ids": _tokens(), "labels": _tokens()}


def _images() -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(BATCH_SIZE, 3, 32, 32), "labels": torch.randint(NUM_CLASSES, (BATCH_SIZE,))}


def _speech() -> dict[str, Tensor]:
    return {"input_features": torch.randn(BATCH_SIZE, 8, 32), "labels": _tokens()}


def _waves() -> dict[str, Tensor]:
    return {"input_values": torch.randn(BATCH_SIZE, 640), "labels": torch.randint(NUM_CLASSES, (BATCH_SIZE,))}


def _captions() -> dict[str, Tensor]:
    return {"input_ids": _tokens(), "pixel_values": torch.randn(BATCH_SIZE, 3, 32, 32)}


def _contrastive(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return model(**batch, return_loss=True).loss


def _squares(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """A loss for models that are no more than a body."""
    return model(**batch).last_hidden_state.square().mean()


def _build(model: str, config: str, options: dict[str, Any]) -> nn.Module:
    return getattr(transformers, model)(getattr(transformers, config)(**options))


def _entry(
    model: str,
    config: str,
    draw: Callable[[], Any],
    loss_fn: LossFunction | None = None,
    title: str = "",
    refusal: str = "",
    **options: Any,
) -> Case:
    return Case(
        name=title or model,
        family=config.removesuffix("Config"),
        library="transformers",
        note="own loss" if loss_fn else "the model's .loss",
        build=functools.partial(_build, model, config, options),
        draw=draw,
        loss_fn=loss_fn,
        refusal=refusal,
    )


CASES = (
    _entry("GPT2LMHeadModel", "GPT2Config", _causal, **_TEXT, n_embd=32, n_layer=2, n_head=4, n_positions=16),
    _entry("GPTNeoXForCausalLM", "GPTNeoXConfig", _causal, **_TEXT, **_WIDE),
    _entry("GPTJForCausalLM", "GPTJConfig", _causal, **_TEXT, n_embd=32, n_layer=2, n_head=4, rotary_dim=4),
    _entry("OPTForCausalLM", "OPTConfig", _causal, **_TEXT, **_WIDE, ffn_dim=64, word_embed_proj_dim=32),
    _entry("BloomForCausalLM", "BloomConfig", _causal, **_TEXT, hidden_size=32, n_layer=2, n_head=4),
    _entry("FalconForCausalLM", "FalconConfig", _causal, **_TEXT, **_WIDE),
    _entry("LlamaForCausalLM", "LlamaConfig", _causal, **_GROUPED),
    _entry("MistralForCausalLM", "MistralConfig", _causal, **_GROUPED, sliding_window=4),
    _entry("MixtralForCausalLM", "MixtralConfig", _causal, **_GROUPED, num_local_experts=4, output_router_logits=True),
    _entry("Qwen2ForCausalLM", "Qwen2Config", _causal, **_GROUPED),
    _entry("Qwen3ForCausalLM", "Qwen3Config", _causal, **_GROUPED),
    _entry("GemmaForCausalLM", "GemmaConfig", _causal, **_GROUPED),
    _entry("Gemma2ForCausalLM", "Gemma2Config", _causal, **_GROUPED),
    _entry("PhiForCausalLM", "PhiConfig", _causal, **_TEXT, **_WIDE),
    _entry("MambaForCausalLM", "MambaConfig", _causal, **_TEXT, hidden_size=32, num_hidden_layers=2, state_size=4),
    _entry(
        "Mamba2ForCausalLM",
        "Mamba2Config",
        _causal,
        **_TEXT,
        hidden_size=32,
        num_hidden_layers=2,
        state_size=4,
        num_heads=8,
        head_dim=8,
        n_groups=1,
        chunk_size=4,
    ),
    _entry("RwkvForCausalLM", "RwkvConfig", _causal, **_TEXT, **_RWKV, use_cache=False),
    # In evaluation mode it writes its state in place.
    _entry(
        "RwkvForCausalLM",
        "RwkvConfig",
        _causal,
        title="RwkvForCausalLM with its cache",
        refusal="train_mode=True",
        **_TEXT,
        **_RWKV,
    ),
    _entry("BertForMaskedLM", "BertConfig", _padded, **_TEXT, **_WIDE),
    _entry("RobertaForMaskedLM", "RobertaConfig", _padded, **_TEXT, **_WIDE),
    _entry(
        "DistilBertForMaskedLM",
        "DistilBertConfig",
        _padded,
        vocab_size=_VOCABULARY,
        dim=32,
        n_layers=2,
        n_heads=4,
        hidden_dim=64,
    ),
    _entry("ElectraForPreTraining", "ElectraConfig", _detection, **_TEXT, **_WIDE, embedding_size=16),
    _entry(
        "DebertaV2ForSequenceClassification",
        "DebertaV2Config",
        _classes,
        **_TEXT,
        **_WIDE,
        num_labels=NUM_CLASSES,
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
        max_relative_positions=8,
    ),
    _entry("AlbertForMaskedLM", "AlbertConfig", _padded, **_TEXT, **_WIDE, embedding_size=16),
    _entry("ModernBertForMaskedLM", "ModernBertConfig", _padded, **_TEXT, **_WIDE, cls_token_id=1, sep_token_id=2),
    _entry(
        "T5ForConditionalGeneration",
        "T5Config",
        _translation,
        vocab_size=_VOCABULARY,
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=0,
    ),
    _entry(
        "BartForConditionalGeneration",
        "BartConfig",
        _translation,
        **_TEXT,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        decoder_start_token_id=2,
    ),
    _entry(
        "WhisperForConditionalGeneration",
        "WhisperConfig",
        _speech,
        **_TEXT,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        num_mel_bins=8,
        max_source_positions=16,
        max_target_positions=16,
        decoder_start_token_id=1,
    ),
    _entry(
        "Wav2Vec2ForSequenceClassification",
        "Wav2Vec2Config",
        _waves,
        **_WIDE,
        num_labels=NUM_CLASSES,
        conv_dim=(16, 16, 16),
        conv_kernel=(8, 4, 2),
        conv_stride=(4, 4, 2),
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
        classifier_proj_size=16,
    ),
    _entry("ViTForImageClassification", "ViTConfig", _images, **_WIDE, image_size=32, patch_size=8, num_labels=NUM_CLASSES),
    _entry(
        "SwinForImageClassification",
        "SwinConfig",
        _images,
        image_size=32,
        patch_size=4,
        embed_dim=16,
        depths=[2, 2],
        num_heads=[2, 4],
        window_size=4,
        num_labels=NUM_CLASSES,
    ),
    _entry(
        "ConvNextForImageClassification",
        "ConvNextConfig",
        _images,
        hidden_sizes=[8, 16, 16, 32],
        depths=[1, 1, 1, 1],
        num_labels=NUM_CLASSES,
    ),
    _entry(
        "ResNetForImageClassification",
        "ResNetConfig",
        _images,
        embedding_size=8,
        hidden_sizes=[8, 16, 16, 32],
        depths=[1, 1, 1, 1],
        num_labels=NUM_CLASSES,
    ),
    _entry(
        "Dinov2Model",
        "Dinov2Config",
        lambda: {"pixel_values": torch.randn(BATCH_SIZE, 3, 32, 32)},
        _squares,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=32,
        patch_size=8,
    ),
    _entry(
        "CLIPModel",
        "CLIPConfig",
        _captions,
        _contrastive,
        text_config={**_TEXT, **_WIDE, "max_position_embeddings": _LENGTH},
        vision_config={**_WIDE, "image_size": 32, "patch_size": 8},
        projection_dim=16,
    ),
)
"""Architectures of language, then of sound, images and both."""
