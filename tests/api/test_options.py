"""An option is spelled once: the functions that spell some again say the same, and old names go on working."""

from __future__ import annotations

import inspect
import re
import textwrap
import warnings
from collections.abc import Callable
from dataclasses import MISSING, fields
from typing import Any, get_type_hints

import pytest
import torch

import initopt
from initopt import InitoptWarning, Measuring
from initopt.methods import LSUV, NIO, GradInit, MetaInit, Method
from tests.helpers import make_batches, make_model

OF_A_RUN = (
    "measure_batches",
    "seed",
    "progress",
    "callbacks",
    "checkpoint",
    "checkpoint_every",
    "on_harm",
    "allow_trained",
    "process_group",
    "share",
    "diagnose",
)


def documented(owner: Any) -> dict[str, str]:
    """What the docstring of a class, with those of its bases, or of a function says of each option."""
    found: dict[str, str] = {}
    for part in reversed(inspect.getmro(owner)) if inspect.isclass(owner) else [owner]:
        text = inspect.cleandoc(vars(part).get("__doc__") or "" if inspect.isclass(part) else part.__doc__)
        section = re.search(r"^(?:Args|Attributes):\n((?:    .*\n?)+)", text, re.MULTILINE)
        entries = re.split(r"^(?=\w+: )", textwrap.dedent(section[1]), flags=re.MULTILINE) if section is not None else []
        found |= {name: " ".join(words.split()) for name, _, words in (entry.partition(": ") for entry in entries if entry)}
    return found


def defaults(owner: type[Any]) -> dict[str, Any]:
    assert all(option.default is not MISSING for option in fields(owner))
    return {option.name: option.default for option in fields(owner)}


@pytest.mark.parametrize(("function", "owner", "others"), [
    (initopt.nio, NIO, OF_A_RUN),
    (initopt.measure, Measuring, ("num_batches", "train_mode", "centre", "seed", "progress", "process_group", "share")),
])  # fmt: skip
def test_a_function_with_all_options_spelled_out_is_as_its_class(
    function: Callable[..., Any], owner: type[Any], others: tuple[str, ...]
) -> None:
    parameters = dict(list(inspect.signature(function).parameters.items())[3:])
    assert all(parameter.kind is inspect.Parameter.KEYWORD_ONLY for parameter in parameters.values())
    options = {name: parameter.default for name, parameter in parameters.items() if name not in others}
    assert options == defaults(owner)
    assert set(parameters) == {*options, *others}
    types, own = get_type_hints(function), get_type_hints(owner)
    assert {name: types[name] for name in options} == {name: own[name] for name in options}
    said, wanted = documented(function), documented(owner)
    assert {name: said[name] for name in options} == {name: wanted[name] for name in options}
    assert set(said) == {"model", "batches", "loss_fn", *parameters}


def test_the_settings_of_a_run_are_those_of_optimize() -> None:
    nio, optimize = inspect.signature(initopt.nio).parameters, inspect.signature(initopt.optimize).parameters
    assert [(nio[name].default, nio[name].annotation) for name in OF_A_RUN] == [
        (optimize[name].default, optimize[name].annotation) for name in OF_A_RUN
    ]
    spelled = {name for name, parameter in optimize.items() if parameter.kind is inspect.Parameter.KEYWORD_ONLY}
    assert spelled == {*OF_A_RUN, "measuring"}


@pytest.mark.parametrize("method", [NIO, GradInit, MetaInit, LSUV])
def test_methods_document_their_options_and_declare_none_twice(method: type[Method]) -> None:
    assert set(documented(method)) == {option.name for option in fields(method)}
    above = {option.name: option.default for base in method.__bases__ for option in fields(base)}
    again = {name for name in inspect.get_annotations(method) if name in above and getattr(method, name) == above[name]}
    assert not again
    with pytest.raises(TypeError, match="takes 1 positional argument but 2 were given"):
        method(100)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("method", "function", "options"),
    [
        (NIO(steps=3, lr=0.1), initopt.nio, {"steps": 3, "lr": 0.1}),
        (GradInit(steps=3, eta=0.2), initopt.gradinit, {"steps": 3, "eta": 0.2}),
        (MetaInit(steps=2, inputs="random"), initopt.metainit, {"steps": 2, "inputs": "random"}),
        (LSUV(tolerance=0.2), initopt.lsuv, {"tolerance": 0.2}),
    ],
    ids=["nio", "gradinit", "metainit", "lsuv"],
)
def test_a_method_is_an_object_a_name_or_a_function(
    method: Method, function: Callable[..., Any], options: dict[str, Any]
) -> None:
    settings: dict[str, Any] = {"measure_batches": 1, "seed": 0, "on_harm": "warn", "progress": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InitoptWarning)  # whether it is for the better is not the question
        one = initopt.optimize(make_model(), make_batches(), None, method, **settings)
        other = initopt.optimize(make_model(), make_batches(), method=method.name, **settings, **options)
        third = function(make_model(), make_batches(), **settings, **options)
    assert one.scales == other.scales == third.scales
    assert one.options == other.options == third.options


class TestMeasuring:
    def test_it_configures_the_measurements(self) -> None:
        how = Measuring(num_subbatches=8, engine="graph", grad_params=weights)
        found = initopt.optimize(make_model(), make_batches(), method=LSUV(), measure_batches=2, measuring=how)
        assert found.after.gram.shape == (2, 8, 8)
        assert found.engine == "graph"
        assert found.options["measuring"]["num_subbatches"] == 8
        expected = initopt.measure(make_model(), make_batches()[1:3], num_subbatches=8, grad_params=weights)
        torch.testing.assert_close(found.before.gram, expected.gram, rtol=1e-3, atol=1e-3)  # by another engine

    def test_sub_batches_share_no_samples_unless_it_is_asked_for(self) -> None:
        for overlap in (0.0, 0.5):
            how = Measuring(overlap=overlap)
            found = initopt.lsuv(make_model(), make_batches(), measure_batches=2, measuring=how)
            assert found.after.small_batch == (4 * (1 + overlap),) * 2

    def test_a_method_with_options_of_its_own_has_the_say(self) -> None:
        with pytest.raises(
            TypeError, match="measuring= has num_subbatches, overlap, of which the method 'nio' has options"
        ):
            initopt.optimize(make_model(), make_batches(), measuring=Measuring(num_subbatches=8))
        with pytest.raises(TypeError, match="measuring= has grad_params, of which the method 'gradinit'"):
            initopt.gradinit(make_model(), make_batches(), measuring=Measuring(grad_params=weights))
        with pytest.raises(TypeError, match=r"measuring must be an initopt.Measuring; got dict"):
            initopt.lsuv(make_model(), make_batches(), measuring={"num_subbatches": 8})

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"num_subbatches": 1}, "num_subbatches must be an integer of 2 or more"),
            ({"engine": "warp"}, "unknown engine 'warp'"),
            ({"memory_budget": 0}, "memory_budget must be a number above 0"),
            ({"microbatch": 0}, "microbatch must be an integer of 1 or more"),
        ],
    )
    def test_it_checks_itself(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            Measuring(**options)


class TestOldNames:
    """Of before there was a method as an object; for a release."""

    @pytest.mark.parametrize(
        ("run", "options"),
        [
            (initopt.gradinit, {"num_subbatches": 8, "engine": "graph", "steps": 2}),
            (initopt.metainit, {"num_subbatches": 8, "steps": 2}),
            (initopt.lsuv, {"num_subbatches": 8, "grad_params": lambda name, parameter, module: "weight" in name}),
        ],
    )
    def test_what_configures_the_measurements(self, run: Callable[..., Any], options: dict[str, Any]) -> None:
        names = ", ".join(name for name in options if name != "steps")
        with pytest.warns(InitoptWarning, match=f"{names}: no option of the method '{run.__name__}'.*measuring=") as caught:
            found = run(make_model(), make_batches(), measure_batches=1, **options)
        assert caught[0].filename == __file__
        assert found.after.gram.shape == (1, 8, 8)
        with pytest.raises(TypeError, match="give it to Measuring"):
            run(make_model(), make_batches(), measuring=Measuring(), **options)

    @pytest.mark.heavy
    def test_measure_steps(self) -> None:
        for run in (initopt.nio, initopt.optimize, initopt.gradinit):
            with pytest.warns(InitoptWarning, match=r"'measure_steps' of \w+\(\) is called 'measure_batches'") as caught:
                found = run(make_model(), make_batches(), steps=2, measure_steps=3)
            assert caught[0].filename == __file__
            assert found.before.num_batches == found.options["measure_batches"] == 3
            with pytest.raises(TypeError, match="got 'measure_batches' and, beside it, its old name 'measure_steps'"):
                run(make_model(), make_batches(), measure_steps=3, measure_batches=3)

    def test_steps_of_a_measurement(self) -> None:
        with pytest.warns(InitoptWarning, match=r"'steps' of measure\(\) is called 'num_batches' now"):
            assert initopt.measure(make_model(), make_batches(), steps=3).num_batches == 3


def test_warnings_of_ours_can_be_silenced_alone() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.simplefilter("ignore", InitoptWarning)
        initopt.measure(make_model(), make_batches(2), num_batches=3)
    assert not caught
    with pytest.warns(InitoptWarning, match="fewer than num_batches=3 different batches"):
        initopt.measure(make_model(), make_batches(2), num_batches=3)


def weights(name: str, parameter: Any, module: Any) -> bool:
    return "weight" in name
