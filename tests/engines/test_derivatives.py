"""Every engine on every architecture of the gallery, against the definition."""

from __future__ import annotations

from collections import defaultdict

import pytest
import torch
from torch import Tensor

from initopt import objectives
from initopt.engines import ENGINES, Evaluation
from initopt.engines.stacked.operations import NotCoveredError
from initopt.model.modes import measuring
from initopt.model.preserve import preserved
from initopt.model.problem import Problem
from tests.gallery import ENTRIES
from tests.truth import INDEX, NORM_WEIGHT, PHI, Truth, as_real, gradients, gram_of, prepared, truth

GRAM_TOLERANCE: defaultdict[str, float] = defaultdict(lambda: 1e-11)
DERIVATIVE_TOLERANCE: defaultdict[str, float] = defaultdict(lambda: 1e-9, differences=1e-5)
"""Relative to the largest entry, by engine; engines that are less than exact say how much less here."""

WITHOUT_DOUBLE_BACKWARD: set[str] = {"differences"}
"""The engines that need no second derivative from torch, and where a gradient is the gradient of nothing, see none."""

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


def engines_for(problem: Problem) -> list[str]:
    return [name for name, engine in ENGINES.items() if engine.refusal(problem) is None]


def engines_for_entry(name: str, mode: str) -> list[str]:
    """The engines that are to work on an architecture; those beyond the groups engine have a test of their own."""
    working = engines_for(ENTRIES[name].problem(ENTRIES[name].model(), mode))
    return [engine for engine in working if engine != "groups" or name not in BEYOND_GROUPS]


def engine_cases() -> list[tuple[str, str, str]]:
    return [(name, mode, engine) for name, mode in CASES for engine in engines_for_entry(name, mode)]


def as_vector(values: dict[str, float]) -> Tensor:
    return torch.tensor(list(values.values()), dtype=torch.float64)


def assert_close(found: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    difference = float((found - expected).abs().max())
    assert difference <= tolerance * float(expected.abs().max()) + 1e-13, (
        f"{what}: off by {difference:.2e}\nfound    {found}\nexpected {expected}"
    )


class Session:
    """A model of the gallery in the hands of an engine, as `initopt.optimize` does it."""

    def __init__(self, name: str, mode: str, engine: str) -> None:
        self.entry = ENTRIES[name]
        self.model = self.entry.model()
        self.problem = self.entry.problem(self.model, mode)
        self.engine = ENGINES[engine](self.problem)

    def evaluate(self, differentiate: bool = True) -> Evaluation:
        return self.engine.evaluate(self.problem.prepare(self.entry.batch(), INDEX), differentiate)

    def derivatives(self, phi: objectives.Objective) -> dict[str, float]:
        evaluation = self.evaluate()
        gram = evaluation.gram.requires_grad_()
        (gram_derivative,) = torch.autograd.grad(phi(gram), gram)
        values = evaluation.scale_derivatives(gram_derivative)
        return dict(zip([p.name for p in self.problem.scale_params], values.tolist(), strict=True))


def public_objective(name: str) -> objectives.Objective:
    return objectives.grad_norm if name == "grad_norm" else objectives.get(name, NORM_WEIGHT)


def assert_derivatives(session: Session, expected: Truth, engine: str) -> None:
    for objective in PHI:
        found = session.derivatives(public_objective(objective))
        want = (expected.along_weights or expected.central)[objective]
        assert list(found) == list(want)
        tolerance = DERIVATIVE_TOLERANCE[engine] if expected.along_weights else 1e-6
        assert_close(as_vector(found), as_vector(want), tolerance, f"{engine}, {objective}")


@pytest.mark.parametrize(("name", "mode"), CASES)
def test_the_truth_agrees_with_central_differences(name: str, mode: str) -> None:
    expected = truth(name, mode)
    for objective in expected.along_weights if ENTRIES[name].conservative else ():
        double_backward, central = (as_vector(v[objective]) for v in (expected.along_weights, expected.central))
        assert_close(double_backward, central, 1e-7, objective)


@pytest.mark.parametrize(("name", "mode", "engine"), engine_cases())
def test_gram_and_derivatives(name: str, mode: str, engine: str) -> None:
    expected = truth(name, mode)
    session = Session(name, mode, engine)
    with preserved(session.model), measuring(session.model, session.entry.train_mode):
        gram = session.evaluate(differentiate=False).gram
        assert gram.dtype == torch.float64
        assert_close(gram, expected.gram, GRAM_TOLERANCE[engine], "gram")
        if not session.entry.conservative and engine in WITHOUT_DOUBLE_BACKWARD:
            return
        if session.entry.double_backward or engine in WITHOUT_DOUBLE_BACKWARD:
            assert_derivatives(session, expected, engine)
        else:
            with pytest.raises((NotImplementedError, RuntimeError), match="derivative"):
                session.derivatives(public_objective("cosine"))


@pytest.mark.parametrize(("name", "message"), BEYOND_GROUPS.items())
def test_the_groups_engine_refuses_what_is_beyond_it(name: str, message: str) -> None:
    session = Session(name, "subbatch", "groups")
    refused = pytest.raises(NotCoveredError, match=message)
    with preserved(session.model), measuring(session.model, session.entry.train_mode), refused:
        session.evaluate()


@pytest.mark.parametrize("mode", ["subbatch", "batch"])
@pytest.mark.parametrize("name", ["mlp", "batch_norm_residual", "mixture_of_experts", "complex_weight"])
def test_derivatives_of_one_entry_of_an_asymmetric_gram_derivative(name: str, mode: str) -> None:
    """phi(K) = K[0, 1], whose derivative has one nonzero entry: needs the sum with its transpose."""
    expected = truth_of_entry(name, mode)
    for engine in engines_for_entry(name, mode):
        session = Session(name, mode, engine)
        with preserved(session.model), measuring(session.model):
            found = as_vector(session.derivatives(lambda gram: gram[0, 1]))
        assert_close(found, expected, DERIVATIVE_TOLERANCE[engine], engine)


def truth_of_entry(name: str, mode: str) -> Tensor:
    entry, model, batch = prepared(name)
    gram = gram_of(gradients(entry, model, batch, mode, create_graph=True))
    weights = [p for p in model.parameters() if p.requires_grad]
    derivatives = torch.autograd.grad(gram[0, 1], weights, materialize_grads=True, allow_unused=True)
    products = [(as_real(g) * as_real(w.detach())).sum() for g, w in zip(derivatives, weights, strict=True)]
    return torch.stack(products)
