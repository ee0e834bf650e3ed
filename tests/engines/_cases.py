"""The gallery by engine: how exact each engine has to be, and what is beyond it."""

from __future__ import annotations

import functools
from typing import Any

from torch import Tensor

from initopt.engines import ENGINES, Evaluation
from initopt.model.problem import Problem
from initopt.testing import ENTRIES, INDEX, check_engine, relative_error

EXACT = 1e-9
"""The largest relative error of a derivative by an exact engine."""

INEXACT: dict[str, dict[str, Any]] = {"differences": {"derivatives": 1e-5, "double_backward": False}}
"""Engines that are less than exact, and how much less."""

BEYOND_GROUPS = {
    "complex_linear": "is used in linear",
    "complex_weight": "is used in matmul",
    "contrastive": "no loss for every sample",
    "dropout_training": "together and apart differ",
    "embedding_bag_mean": "is used in embedding_bag",
    "embedding_bag_sum": "is used in embedding_bag",
    "encoder_pre_norm_training": "is used in multi_head_attention_forward",
    "gradient_penalty": "together and apart differ",
    "gru": "is used in gru",
    "layer_drop_training": "together and apart differ",
    "linear_under_vmap": "together and apart differ",
    "loss_as_one_number": "is used in square",
    "loss_in_output": "no loss for every sample",
    "lstm": "is used in lstm",
    "lstm_cell_loop": "is used in expand",
    "made_weights": "is used in matmul",
    "matrix_products": "is used in addmm",
    "matrix_used_in_many_ways": "is used in matmul",
    "mixture_of_experts": "is used in linear",
    "module_dict_bilinear": "is used in bilinear",
    "moving_average_buffer": "together and apart differ",
    "noise_in_any_mode": "together and apart differ",
    "numpy_and_python_noise": "together and apart differ",
    "odd_convolutions": "is used in conv2d",
    "one_sample_at_a_time": "is used in conv1d",
    "orthogonal": "is used in tril",
    "parameter_dict": "is used in matmul",
    "parameter_list": "is used in matmul",
    "partly_frozen_layers": "is used in conv2d",
    "rnn": "is used in rnn_tanh",
    "root_parameter": "is used in matmul",
    "scalar_parameter": "is used in exp",
    "sparse_embedding": "is used in embedding",
    "spectral_norm": "is used in flatten",
    "spectral_norm_training": "is used in flatten",
    "weight_bias_and_input_at_once": "is used in linear",
    "weight_norm": "is used in norm_except_dim",
    "weight_norm_by_hook": "is used in norm_except_dim",
}
"""Architectures that the groups engine must refuse, never get wrong, and what it has to say of them."""

CASES = [(name, mode) for name, entry in ENTRIES.items() for mode in entry.modes]


def tolerance(engine: str) -> float:
    return INEXACT.get(engine, {}).get("derivatives", EXACT)


def engines_for(problem: Problem) -> list[str]:
    return [name for name, engine in ENGINES.items() if engine.refusal(problem) is None]


@functools.cache
def engines_for_entry(name: str, mode: str) -> list[str]:
    """The engines that are to work on an architecture; those beyond the groups engine have a test of their own."""
    working = engines_for(ENTRIES[name].problem(ENTRIES[name].model(), mode))
    return [engine for engine in working if engine != "groups" or name not in BEYOND_GROUPS]


def engine_cases(*engines: str) -> list[tuple[str, str, str]]:
    """Entry, mode and engine; of all engines by default."""
    chosen = engines or tuple(ENGINES)
    return [(name, mode, engine) for name, mode in CASES for engine in engines_for_entry(name, mode) if engine in chosen]


def check(name: str, mode: str, engine: str, **options: Any) -> None:
    """Hold an engine against the truth on one entry."""
    check_engine(engine, [name], batch_norms=[mode], **{**INEXACT.get(engine, {}), **options})


class Session:
    """A model of the gallery in the hands of an engine, as `initopt.optimize` does it."""

    def __init__(self, name: str, mode: str, engine: str) -> None:
        self.entry = ENTRIES[name]
        self.model = self.entry.model()
        self.problem = self.entry.problem(self.model, mode)
        self.engine = ENGINES[engine](self.problem)

    def evaluate(self, differentiate: bool = True) -> Evaluation:
        return self.engine.evaluate(self.problem.prepare(self.entry.batch(), INDEX), differentiate)


def assert_close(found: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    difference = relative_error(found, expected, 1e-13)
    assert difference <= tolerance, f"{what}: off by {difference:.2e}\nfound    {found}\nexpected {expected}"
