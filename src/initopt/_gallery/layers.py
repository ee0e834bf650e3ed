"""Convolutions, recurrences, attention, embeddings and complex numbers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from initopt._gallery.batches import images, sequences, signals, text, tokens, vectors
from initopt._gallery.entry import Entry


def pooled_convolutions() -> nn.Module:
    layers = [nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular"), nn.Tanh(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Conv2d(4, 3, 2), nn.Flatten(), nn.Linear(3, 4))


def depthwise() -> nn.Module:
    separable = [nn.Conv2d(4, 8, 3, groups=4, bias=False), nn.SiLU(), nn.Conv2d(8, 4, 1)]
    return nn.Sequential(nn.Conv2d(2, 4, 1), *separable, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def transposed() -> nn.Module:
    layers = [nn.Conv2d(2, 3, 3, stride=2), nn.Tanh(), nn.ConvTranspose2d(3, 4, 3, stride=2, output_padding=1)]
    return nn.Sequential(*layers, nn.Upsample(scale_factor=1.5, mode="bilinear"), nn.AvgPool2d(3), nn.Flatten(1, 1))


class MeanOverSpace(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x).mean((2, 3))


def dilated() -> nn.Module:
    return nn.Sequential(nn.Conv1d(2, 3, 2, dilation=2), nn.Softplus(), nn.Conv1d(3, 2, 2), nn.Flatten(), nn.Linear(8, 4))


class Recurrent(nn.Module):
    def __init__(self, kind: Callable[..., nn.RNNBase], bidirectional: bool = False) -> None:
        super().__init__()
        self.recurrent = kind(4, 3, num_layers=2, batch_first=True, bidirectional=bidirectional)
        self.head = nn.Linear(6 if bidirectional else 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.recurrent(x)[0][:, -1])


class CellLoop(nn.Module):
    """Its number of passes through one cell follows the length of the input."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTMCell(4, 3), nn.Linear(3, 3)
        self.start = nn.Parameter(torch.randn(3))

    def forward(self, x: Tensor) -> Tensor:
        state = (self.start.expand(len(x), -1), x.new_zeros(len(x), 3))
        for moment in x.unbind(1):
            state = self.cell(moment, state)
        return self.head(state[0])


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))


class ScaledDotProduct(nn.Module):
    def __init__(self, causal: bool, checkpointed: bool = False) -> None:
        super().__init__()
        self.project, self.head = nn.Linear(4, 12), nn.Linear(4, 3)
        self.causal, self.checkpointed = causal, checkpointed

    def attend(self, x: Tensor) -> Tensor:
        query, key, value = self.project(x).unflatten(-1, (3, 2, 2)).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(query, key, value, is_causal=self.causal).transpose(1, 2).flatten(2)

    def forward(self, x: Tensor) -> Tensor:
        attended = checkpoint(self.attend, x, use_reentrant=False) if self.checkpointed else self.attend(x)
        return self.head(x + attended).mean(1)


class Encoder(nn.Module):
    def __init__(self, norm_first: bool) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(4, 2, 6, activation="gelu", batch_first=True, norm_first=norm_first)
        self.encoder, self.head = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x).mean(1))


class LanguageModel(nn.Module):
    """Logits of shape (batch, length, vocabulary)."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.position = nn.Embedding(9, 4), nn.Parameter(torch.randn(5, 4) / 2)
        self.layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.1, activation="gelu", batch_first=True)
        self.head = nn.Linear(4, 9, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(5)
        hidden = self.embedding(tokens) + self.position
        return self.head(self.layer(hidden, src_mask=mask, is_causal=True))


def embedding(sparse: bool = False) -> nn.Module:
    return nn.Sequential(nn.Embedding(9, 4, padding_idx=0, sparse=sparse), nn.Flatten(), nn.Tanh(), nn.Linear(20, 4))


def embedding_bag(mode: str) -> nn.Module:
    return nn.Sequential(nn.EmbeddingBag(9, 5, mode=mode), nn.Tanh(), nn.Linear(5, 4))


class ComplexWeight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rotate = nn.Parameter(torch.randn(6, 5, dtype=torch.complex128) / 6)
        self.conjugated = nn.Parameter(torch.randn(5, dtype=torch.complex128))
        self.head = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(x.to(self.rotate.dtype) @ self.rotate) * self.conjugated.conj()
        return self.head(torch.view_as_real(hidden).flatten(1))


class ComplexLinear(nn.Module):
    """Ends in a conjugate, so that autograd hands out a lazily conjugated gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 4, dtype=torch.complex128)
        self.phase = nn.Parameter(torch.randn(4, dtype=torch.complex128))

    def forward(self, x: Tensor) -> Tensor:
        return (self.layer(x + 0.5j * x.flip(-1)) + self.phase.conj().expand(len(x), -1)).abs()


class Spectral(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.filter = nn.Parameter(torch.randn(4, dtype=torch.complex128))
        self.mix, self.head = nn.Linear(6, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        filtered = torch.fft.irfft(torch.fft.rfft(torch.tanh(self.mix(x))) * self.filter, n=6)
        return self.head(x + filtered)


ENTRIES = [
    Entry("convolutions_with_max_pooling", pooled_convolutions, images(), smooth=False),
    Entry("depthwise_convolution", depthwise, images()),
    Entry("transposed_convolution", lambda: MeanOverSpace(transposed()), images()),
    Entry("dilated_convolution_1d", dilated, signals()),
    Entry("rnn", lambda: Recurrent(nn.RNN), sequences()),
    Entry("lstm", lambda: Recurrent(nn.LSTM, bidirectional=True), sequences()),
    Entry("gru", lambda: Recurrent(nn.GRU), sequences()),
    Entry("lstm_cell_loop", CellLoop, sequences()),
    Entry("multihead_attention", Attention, sequences()),
    Entry("scaled_dot_product_attention", lambda: ScaledDotProduct(causal=False), sequences()),
    Entry("causal_attention", lambda: ScaledDotProduct(causal=True), sequences()),
    Entry("checkpointed_attention", lambda: ScaledDotProduct(causal=True, checkpointed=True), sequences()),
    Entry("encoder_post_norm", lambda: Encoder(norm_first=False), sequences()),
    Entry("encoder_pre_norm_training", lambda: Encoder(norm_first=True), sequences(), train_mode=True),
    Entry("language_model", LanguageModel, text()),
    Entry("embedding", embedding, tokens()),
    Entry("sparse_embedding", lambda: embedding(sparse=True), tokens()),
    Entry("embedding_bag_mean", lambda: embedding_bag("mean"), tokens(), double_backward=False),
    Entry("embedding_bag_sum", lambda: embedding_bag("sum"), tokens(), double_backward=False),
    Entry("complex_weight", ComplexWeight, vectors()),
    Entry("complex_linear", ComplexLinear, vectors()),
    Entry("fourier_filter", Spectral, vectors()),
]
