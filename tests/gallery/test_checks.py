"""The checks for authors of engines and methods find what is wrong, and say where."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from initopt.engines import Evaluation
from initopt.engines.per_subbatch import GraphEngine, PlainEngine
from initopt.engines.stacked.engine import GroupsEngine
from initopt.methods import NIO, GradInit
from initopt.methods.base import MethodRun
from initopt.model.problem import Batch, Problem
from initopt.testing import ENTRIES, Entry, check_engine, check_method, evaluate


class Stretched(PlainEngine):
    """An engine with right Gram matrices and wrong derivatives."""

    def evaluate(self, batch: Batch, differentiate: bool) -> Evaluation:
        evaluation = super().evaluate(batch, differentiate)
        right = evaluation.scale_derivatives
        evaluation.scale_derivatives = lambda slope: 1.001 * right(slope)  # type: ignore[method-assign]
        return evaluation


class TestEngines:
    def test_a_right_engine_passes_by_name_by_class_and_by_a_function(self) -> None:
        for engine in ("graph", GraphEngine, lambda problem: GraphEngine(problem)):
            worst = check_engine(engine, ["mlp", "batch_norm_1d"], batch_norms=["subbatch"])
            assert worst.keys() == {"gram", "derivatives"}
            assert max(worst.values()) < 1e-9
        assert check_engine("auto", ["mlp"])["gram"] < 1e-11

    def test_every_entry_that_is_wrong_is_named(self) -> None:
        with pytest.raises(AssertionError, match=r"(?s)wrong on 2 of 2:.*mlp, .*derivatives are off by 1.0e-03.*\ngru, "):
            check_engine(Stretched, ["mlp", "gru"])
        assert check_engine(Stretched, ["mlp"], derivatives=0.01)["derivatives"] == pytest.approx(1e-3, rel=1e-3)

    def test_what_has_no_second_derivative_is_not_made_up(self) -> None:
        class Silent(PlainEngine):
            def evaluate(self, batch: Batch, differentiate: bool) -> Evaluation:
                evaluation = super().evaluate(batch, False)
                zeros = torch.zeros(len(self.problem.scale_params))
                evaluation.scale_derivatives = lambda slope: zeros  # type: ignore[method-assign]
                return evaluation

        with pytest.raises(AssertionError, match="not refused, which was to say 'derivative'"):
            check_engine(Silent, ["embedding_bag_mean"])
        with pytest.raises(AssertionError, match=r"off central differences by 1.0e\+00"):
            check_engine(Silent, ["embedding_bag_mean"], double_backward=False)

    def test_what_is_beyond_an_engine_has_to_be_refused(self) -> None:
        assert check_engine(GroupsEngine, ["gru", "mlp"], beyond={"gru": "is used in gru"})["gram"] < 1e-11
        with pytest.raises(AssertionError, match="refused, but it says .*gru.*, without 'lstm'"):
            check_engine(GroupsEngine, ["gru"], beyond={"gru": "lstm"})
        with pytest.raises(AssertionError, match="mlp, .*not refused, which was to say 'gru'"):
            check_engine(GroupsEngine, ["mlp"], beyond={"mlp": "gru"})

    def test_entries_of_ones_own(self) -> None:
        odd = Entry("own", lambda: torch.nn.Linear(3, 2), lambda: (torch.randn(6, 3), torch.randint(2, (6,))))
        assert check_engine("graph", [odd])["gram"] < 1e-11

    def test_bad_arguments(self) -> None:
        with pytest.raises(ValueError, match=r"unknown entry 'mpl'; initopt.testing.ENTRIES has \d+, such as 'mlp'"):
            check_engine("graph", ["mpl"])
        with pytest.raises(ValueError, match="'coupled' refuses all of these entries, so there is nothing to check"):
            check_engine("coupled", ["mlp"], batch_norms=["subbatch"])
        with pytest.raises(ValueError, match="unknown engine 'warp'"):
            evaluate("warp", ENTRIES["mlp"])
        with pytest.raises(ValueError, match="CoupledEngine|cannot be used here"):
            evaluate("coupled", ENTRIES["mlp"], "subbatch")


class Broken(NIO):
    """A method with a fault that its run commits."""

    fault: ClassVar[str] = ""

    def start(self, problem: Problem, engine: Any, originals: Any) -> MethodRun:
        run = super().start(problem, engine, originals)
        step, fault = run.step, self.fault

        def faulty(number: int, batches: Iterator[Any]) -> Any:
            records = step(number, batches)
            if fault == "weights":
                with torch.no_grad():
                    problem.scale_params[0].value.add_(1)
            elif fault == "records":
                return []
            elif fault == "hook":
                problem.model.register_forward_hook(lambda *_: None)
            return records

        run.step = faulty  # type: ignore[method-assign]
        if fault == "state":
            run.state = lambda: {"centring": torch.tensor(list(b"null"), dtype=torch.uint8)}  # type: ignore[method-assign]
            run.load_state = lambda state: None  # type: ignore[method-assign]
        return run


class TestMethods:
    def test_right_methods_pass(self) -> None:
        assert check_method("lsuv", ["mlp"], resume=False) == 1
        assert check_method(lambda entry: GradInit(steps=2, train_mode=entry.train_mode), ["mlp", "dropout_training"]) == 2

    @pytest.mark.parametrize(
        ("fault", "message"),
        [
            ("weights", "'0.weight' is not what it was, times its scale"),
            ("records", "IndexError|records"),
            ("hook", "a hook has stayed behind"),
            ("state", "a resumed run has other"),
        ],
    )
    def test_faults_are_found(self, fault: str, message: str) -> None:
        kind = type("Faulty", (Broken,), {"fault": fault})
        with pytest.raises(AssertionError, match=f"(?s)wrong on 1 of 1:\nmlp: .*({message})"):
            check_method(kind(steps=3), ["mlp"])

    def test_what_is_beyond_a_method_has_to_be_refused(self) -> None:
        message = "output_padding"
        assert check_method("metainit", ["transposed_convolution"], beyond={"transposed_convolution": message}) == 0
        with pytest.raises(AssertionError, match="mlp: AssertionError: not refused"):
            check_method(NIO(steps=1), ["mlp"], beyond={"mlp": "anything"})


def test_figures_say_what_they_are_of() -> None:
    figures = evaluate("graph", ENTRIES["mlp"], functions=["cosine"])
    assert isinstance(figures.gram, Tensor)
    assert list(figures.derivatives["cosine"]) == [f"{i}.{kind}" for i in (0, 2, 4) for kind in ("weight", "bias")]
