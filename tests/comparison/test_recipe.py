"""What a comparison is told to do, and what is refused before any work."""

import dataclasses
import functools
import itertools
from importlib.metadata import EntryPoint, EntryPoints

import pytest
import torch
import yaml
from torch import nn

import initopt
import initopt.zoo
from initopt.comparison import Initialization, Network, Recipe
from initopt.comparison.spec.hardware import Hardware
from initopt.comparison.spec.initialization import as_initialization
from initopt.comparison.spec.network import described
from initopt.comparison.spec.plan import Plan
from initopt.comparison.spec.recipe import OPTIMIZERS, lr_factor
from initopt.data import Splits
from initopt.methods import NIO as NIO_OBJECT
from initopt.methods import registry
from initopt.recipes import RECIPES
from initopt.schemes import Normal, ScaledBranches
from tests.comparing import NIO, RECIPE, TIMES, blobs, compare, residual, small, small_linear
from tests.forks import python


class TestRecipe:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"optimizer": "lion"}, "optimizer must be one of 'sgd', 'adam', 'adamw'; got 'lion'"),
            ({"schedule": "step"}, "schedule must be one of 'constant', 'cosine', 'linear'; got 'step'"),
            ({"precision": "8-true"}, "precision must be one of '32-true', .*; got '8-true'"),
            ({"lr": 0}, "lr must be a number above 0; got 0"),
            ({"lr": []}, "lr is an empty list"),
            ({"lr": [0.1, 0.1]}, r"lr has a value twice: \[0.1, 0.1\]"),
            ({"lr": [0.1, "big"]}, "lr must be a number above 0; got 'big'"),
            ({"epochs": 0}, "epochs must be an integer of 1 or more; got 0"),
            ({"batch_size": 1.5}, "batch_size must be an integer of 1 or more; got 1.5"),
            ({"looks_per_epoch": 0}, "looks_per_epoch must be an integer of 1 or more"),
            ({"warmup_steps": -1}, "warmup_steps must be an integer of 0 or more; got -1"),
            ({"measure_batches": -1}, "measure_batches must be an integer of 0 or more; got -1"),
            ({"label_smoothing": 1}, "label_smoothing must be a number 0 or more and below 1; got 1"),
            ({"clip_grad_norm": 0}, "clip_grad_norm must be a number above 0; got 0"),
            ({"epochs": 9000, "looks_per_epoch": 90}, "make a curve of more than 1,000,000 points, which is the most"),
            ({"optimizer_options": {"momentun": 0.9}}, "'sgd' has no option 'momentun'; it has momentum, dampening"),
            ({"optimizer_options": {"lr": 0.9}}, "no option 'lr'; it has .*; the learning rate is the recipe's lr"),
            ({"optimizer_options": {"momentum": -1}}, "'sgd' refuses {'momentum': -1}: Invalid momentum value"),
            ({"optimizer_options": 0.9}, "optimizer_options must be a dict, .* got 0.9"),
        ],
    )
    def test_refuses(self, changes, message):
        with pytest.raises(ValueError, match=message):
            Recipe(**changes)

    def test_an_unknown_field_is_named_with_the_one_that_was_meant(self):
        with pytest.raises(ValueError, match="recipe has no field 'epoch'; did you mean 'epochs'"):
            Recipe().changed({"epoch": 3})

    def test_lists_of_a_file_become_pairs(self):
        recipe = Recipe(optimizer="adam", optimizer_options={"betas": [0.8, 0.9]})
        optimizer = recipe.create_optimizer(nn.Linear(1, 1), 0.1)
        assert optimizer.param_groups[0]["betas"] == (0.8, 0.9)


class TestSchedule:
    @pytest.mark.parametrize("schedule", ["constant", "cosine", "linear"])
    def test_a_warm_up_rises_to_the_peak_once(self, schedule):
        factors = [lr_factor(step, 20, schedule, 5) for step in range(20)]
        assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
        assert factors[5] == 1.0
        assert all(0 < after <= before for before, after in itertools.pairwise(factors[5:]))

    def test_cosine_is_that_of_torch(self):
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10)
        for step in range(10):
            assert lr_factor(step, 10, "cosine", 0) == pytest.approx(scheduler.get_last_lr()[0])
            optimizer.step()
            scheduler.step()

    def test_a_warm_up_longer_than_the_run(self):
        assert [lr_factor(step, 2, "linear", 4) for step in range(2)] == [0.25, 0.5]


class TestInitialization:
    def test_names(self):
        assert Initialization().name == "default"
        assert Initialization(scheme="default", method="nio").name == "nio"

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"method": "noi"}, "unknown method 'noi'; known are .*'nio'.*; did you mean 'nio'"),
            ({"scheme": "kaimng"}, "unknown scheme 'kaimng'; known are 'default'"),
            ({"method": "nio", "options": {"step": 3}}, "initialization 'nio': method 'nio' has no option 'step'"),
            ({"method": "nio", "options": {"steps": 0}}, "initialization 'nio': steps must be an integer of 1 or more"),
            ({"scheme": "normal", "scheme_options": {"gain": 3}}, "'normal': scheme 'normal' has no option 'gain'"),
            ({"scheme": "normal", "scheme_options": {"params": "liner"}}, "'normal': unknown params 'liner'"),
            ({"scheme": Normal(), "scheme_options": {"std": 3}}, "'normal': std: give the options to Normal"),
            ({"scheme": Normal}, "'Normal': scheme is the class Normal; pass an instance"),
            ({"scheme": "normal", "batch_size": 3}, "'normal' has a preset or a batch_size, but no method"),
            ({"options": {"steps": 3}}, "initialization 'default' has options, but no method"),
            ({"scheme_options": {"gain": 3}}, "initialization 'default' has scheme_options, but no scheme"),
            ({"recipe": 3}, "recipe of initialization 'default' must be a dict; got 3"),
        ],
    )
    def test_refuses(self, arguments, message):
        with pytest.raises((ValueError, TypeError), match=message):
            Initialization(**arguments)


class TestNetwork:
    def test_is_known_again_by_its_factory_and_arguments(self):
        assert described(functools.partial(small, width=4)) == {
            "class_path": "tests.comparing.small",
            "init_args": {"width": 4},
        }
        assert described(object()) == "builtins.object"  # and not by an address

    @pytest.mark.training
    def test_a_factory_that_returns_something_else(self, tmp_path):
        found = compare(tmp_path / "out", models={"list": list}, seeds=1, initializations=["default"])
        assert found.runs[0].status == "failed"
        assert "the factory builtins.list returned list; it must return an nn.Module" in found.runs[0].error


def _no_length():
    return Splits(iter([]), None, blobs().test)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"models": small}, "models must be a dict from names to factories"),
        ({"models": {}}, "models is empty"),
        ({"models": {"net": nn.Linear(2, 2)}}, r"models\['net'\] is a module, and every run needs a new one"),
        ({"models": {"net": 3}}, r"models\['net'\] must be a class or function that returns an nn.Module; got 3"),
        ({"models": {"net": nn.Linear}}, r"models\['net'\] is called without arguments, but missing a required argument"),
        ({"models": {"a/b": small}}, "network 'a/b': a folder gets this name, and it has '/'"),
        ({"models": {".net": small}}, "network '.net': a folder gets this name, and it begins with a dot"),
        ({"models": {"": small}}, "the name of a network must be a string of some length; got ''"),
        ({"models": {"net": Network(small, {"epoch": 1})}}, "the recipe of network 'net' has no field 'epoch'"),
        ({"models": {"net": Network(small, {"precision": "64-true"})}}, "has a precision; it is the same for all networks"),
        ({"initializations": "default"}, r"initializations must be a list, such as \['default', 'nio'\]; got 'default'"),
        ({"initializations": []}, "initializations is empty"),
        (
            {"initializations": ["default", "nil"]},
            "unknown initialization 'nil'; known are 'default',.*; did you mean 'nio'",
        ),
        ({"initializations": ["nio", NIO]}, "two initializations are called 'nio'"),
        ({"initializations": [{"metod": "nio"}]}, "an initialization has no 'metod'; did you mean 'method'"),
        ({"initializations": [3]}, "an initialization is a name, a dict .*; got 3"),
        (
            {"initializations": [{"recipe": {"epochs": 9}}]},
            "the recipe of initialization 'default' changes epochs, which has to be the same for all initializations",
        ),
        ({"recipe": 3}, "recipe must be a dict of fields of the recipe"),
        ({"recipe": {"batch_size": 64}}, "the training set has 96 samples, which is less than 9 batches of 64"),
        ({"seeds": 0}, "seeds must be an integer of 1 or more; got 0"),
        ({"seeds": []}, "seeds is empty"),
        ({"seeds": [1, 1]}, r"seeds has a seed twice: \[1, 1\]"),
        ({"seeds": "12"}, "seeds must be a number of seeds or a list of seeds; got '12'"),
        ({"seeds": [2**32]}, r"seeds must be below 2\*\*32; got 4294967296"),
        ({"recipe": {"lr": [0.1, 1.0]}, "selection_seeds": [1]}, r"seeds and selection_seeds share \[1\]"),
        ({"data": "mnist"}, "unknown data 'mnist'; known are 'digits', 'cifar10'"),
        (
            {"data": lambda: [1]},
            "data must have the attributes train, validation and test, .* list has no train and no test",
        ),
        ({"data": _no_length}, "data.train must be a data set of samples with a length"),
        (
            {"data": Splits(blobs().train, None, blobs().test), "recipe": {"lr": [0.1, 1.0], "batch_size": 8}},
            "several learning rates to choose from, but data has no validation split",
        ),
        ({"loss_fn": 3}, "loss_fn must be None, a criterion"),
        (
            {"loss_fn": nn.CrossEntropyLoss(), "recipe": {"label_smoothing": 0.1}},
            "label_smoothing is of the built-in cross-entropy",
        ),
        ({"threads": 0}, "threads must be an integer of 1 or more; got 0"),
        ({"workers": 0}, "workers must be an integer of 1 or more; got 0"),
        ({"loaders": -1}, "loaders must be an integer of 0 or more; got -1"),
        ({"accelerator": "abacus"}, "Lightning Fabric does not run with accelerator='abacus'"),
        ({"devices": 2, "workers": 2}, "workers=2 do one run each, on one device; with devices=2, use workers=1"),
        ({"devices": 3, "strategy": "ddp"}, "batch_size is 16, which 3 devices cannot share equally"),
        ({"workers": 2, "models": {"net": lambda: small()}}, r"models\['net'\] cannot be sent to other processes"),
    ],
)
def test_refuses_before_any_work(tmp_path, changes, message):
    with pytest.raises((ValueError, TypeError), match=message):
        compare(tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists()


def test_a_report_that_cannot_be_written_is_refused_before_any_work(monkeypatch, tmp_path):
    monkeypatch.setattr("initopt._support.checks.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"a report needs jinja2: pip install 'initopt\[compare\]'"):
        compare(tmp_path / "out", report=True)
    assert not (tmp_path / "out").exists()


WITHOUT = """
import sys, warnings
sys.modules |= dict.fromkeys(("jinja2", "lightning_fabric", "pandas", "pyarrow", "tensorboard"))
from initopt.comparison.analysis.summary import summarize
from tests.comparing import RECIPE, compare
out = sys.argv[1]
found = compare(out, recipe=RECIPE | {"lr": [0.01, 0.1], "clip_grad_norm": 1.0})
assert [run.status for run in [*found.runs, *found.selection]] == ["done"] * 12, found
assert not found.problems
assert summarize(found).networks[0].entries[1].final_difference.p is not None
assert compare(out, recipe=RECIPE | {"lr": [0.01, 0.1], "clip_grad_norm": 1.0}) == found
for call, words in (
    (lambda: compare(out, recipe=RECIPE | {"precision": "bf16-mixed"}), "precision='bf16-mixed' needs Lightning Fabric"),
    (lambda: compare(out + "2", devices=2), "devices=2, .* needs Lightning Fabric: pip install 'initopt.compare.'"),
    (lambda: found.to_dataframe(), "needs pandas: pip install 'initopt.pandas.'"),
):
    try:
        call()
    except ImportError as error:
        import re
        assert re.search(words, str(error)), error
    else:
        raise AssertionError(words)
"""


@pytest.mark.heavy
@pytest.mark.processes
def test_a_comparison_without_the_packages_of_any_extra(tmp_path):
    ended = python(WITHOUT, str(tmp_path / "out"))
    assert ended.returncode == 0, ended.stderr


@pytest.mark.heavy
@pytest.mark.training
def test_one_device_gives_what_fabric_gives(tmp_path, monkeypatch):
    recipe = {"lr": [0.01, 0.1], "clip_grad_norm": 0.1, "optimizer": "adamw", "mixup": 0.2, "epochs": 2, "batch_size": 16}
    recipe["measure_batches"] = 2
    ours = table_of(compare(tmp_path / "one", recipe=recipe, models={"net": functools.partial(small, dropout=0.3)}))
    monkeypatch.setattr(Hardware, "_device", lambda self: None)
    fabric = compare(tmp_path / "fabric", recipe=recipe, models={"net": functools.partial(small, dropout=0.3)})
    assert "lightning-fabric" in fabric.versions
    assert table_of(fabric) == ours


def table_of(found):
    """What a comparison found but for times and versions."""
    runs = [dataclasses.replace(run, versions={}, **dict.fromkeys(TIMES)) for run in [*found.runs, *found.selection]]
    return sorted(map(repr, runs))


def test_a_device_that_is_not_there():
    with pytest.raises(ValueError, match=r"Lightning Fabric does not run with accelerator='cuda', devices=\[77\]"):
        Hardware("cuda", [77]).fabric("32-true")


def test_the_comparison_of_the_digits_is_one():
    described = yaml.safe_load(RECIPES["digits"].read_text(encoding="utf-8"))
    models = {}
    for name, value in described["models"].items():
        factory = functools.partial(getattr(initopt.zoo, value["class_path"]), **value["init_args"])
        models[name] = Network(factory, value["recipe"])
        assert factory()(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    plan = Plan.create(
        models,
        described["data"],
        described["initializations"],
        loss_fn=None,
        recipe=described["recipe"],
        seeds=described["seeds"],
        selection_seeds=described["selection_seeds"],
        hardware=Hardware(),
    )
    plan.load_data()
    assert len(plan.seeds) == 5
    assert all(len(plan.recipe_of(name, "default").lrs) >= 3 for name in models)


class TestBatchSizeOfAnInitialization:
    @pytest.mark.heavy
    @pytest.mark.training
    def test_the_method_sees_batches_of_its_own_size(self, tmp_path, monkeypatch):
        sizes = []
        optimize = initopt.optimize

        def watched(model, batches, *arguments, **options):
            seen = list(batches)
            sizes.append({len(inputs) for inputs, _ in seen})
            return optimize(model, seen, *arguments, **options)

        monkeypatch.setattr(initopt, "optimize", watched)
        starts = [
            {"method": "nio", "options": {"steps": 1}, "batch_size": size, "name": str(size)} for size in (8, None, 32)
        ]
        found = compare(tmp_path / "out", initializations=starts, seeds=1)
        assert sizes == [{8}, {16}, {32}]
        described = [found.details["initializations"][str(size)] for size in (8, None, 32)]
        assert [value.get("batch_size") for value in described] == [8, None, 32]
        assert "batch_size" not in described[1]  # as in folders from before there was such a choice
        assert len({run.before["grad_cosine"] for run in found.runs}) == 1  # the batches held back are those of training

    @pytest.mark.parametrize(
        ("start", "message"),
        [
            (
                {"method": "nio", "batch_size": 0},
                "batch_size of initialization 'nio' must be an integer of 1 or more",
            ),
            ({"batch_size": 4}, "initialization 'default' has a preset or a batch_size, but no method"),
            ({"method": "nio", "batch_size": 90}, "'nio' has a batch_size of 90, and network 'mlp' leaves it 64 samples"),
        ],
    )
    def test_refuses(self, tmp_path, start, message):
        with pytest.raises(ValueError, match=message):
            compare(tmp_path / "out", initializations=[start], models={"mlp": small})

    def test_a_preset_gives_options(self):
        start = Initialization(method="nio", preset="published", options={"batch_norm": "subbatch"})
        (method,) = start.steps
        assert (method.split, method.batch_norm) == ("published", "subbatch")
        assert method.grad_params is initopt.presets.published["grad_params"]
        with pytest.raises(ValueError, match="unknown preset 'publishd'; known are 'published'"):
            Initialization(method="nio", preset="publishd")
        with pytest.raises(TypeError, match="initialization 'gradinit': method 'gradinit' has no option 'split'"):
            Initialization(method="gradinit", preset="published")


def halved(model, batches, loss_fn, factor=0.5):
    """An initialization of the user's own."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(factor)


@dataclasses.dataclass(frozen=True)
class Scaled:
    factor: float

    def __call__(self, model, batches, loss_fn):
        halved(model, batches, loss_fn, self.factor)


def within():
    def inner(model, batches, loss_fn):
        halved(model, batches, loss_fn)

    return inner


class TestAnyInitialization:
    @pytest.mark.parametrize(
        ("value", "name", "steps"),
        [
            ("orthogonal", "orthogonal", [{"scheme": "orthogonal", "options": {}}]),
            (Normal(std=0.5), "normal", [{"scheme": "normal", "options": {"std": 0.5}}]),
            (
                {"scheme": Normal(), "scheme_options": {"params": ["linear"]}},
                "normal",
                [{"scheme": "normal", "options": {"params": ["linear"]}}],
            ),
            (halved, "halved", [{"function": f"{__name__}.halved"}]),
            (
                functools.partial(halved, factor=2.0),
                "halved",
                [{"function": {"class_path": f"{__name__}.halved", "init_args": {"factor": 2.0}}}],
            ),
            (Scaled(3.0), "Scaled", [{"function": {"class_path": f"{__name__}.Scaled", "init_args": {"factor": 3.0}}}]),
            (
                functools.partial(initopt.nio, steps=3),
                "nio",
                [{"function": {"class_path": "initopt._api.nio", "init_args": {"steps": 3}}}],
            ),
            ({"name": "mine", "method": lambda model, batches, loss_fn: None}, "mine", [{"function": {"name": "mine"}}]),
            ({"name": "mine", "method": within()}, "mine", [{"function": {"name": "mine"}}]),
            (
                ["default", {"scheme": "orthogonal", "scheme_options": {"gain": 2.0}}, halved],
                "default + orthogonal + halved",
                [{"scheme": "orthogonal", "options": {"gain": 2.0}}, {"function": f"{__name__}.halved"}],
            ),
            (
                {
                    "scheme": "orthogonal",
                    "method": [halved, {"name": "twice", "method": lambda model, batches, loss_fn: None}],
                },
                "orthogonal + halved + twice",
                [
                    {"scheme": "orthogonal", "options": {}},
                    {"function": f"{__name__}.halved"},
                    {"function": {"name": "twice"}},
                ],
            ),
        ],
    )
    def test_name_and_identity(self, value, name, steps):
        found = as_initialization(value)
        assert found.name == name
        assert found.describe() == {"steps": steps, "recipe": {}}

    def test_a_method_is_the_same_by_name_and_as_an_object(self):
        ways = [{"method": "nio", "options": {"steps": 3}}, NIO_OBJECT(steps=3), [NIO_OBJECT(steps=3)]]
        first, *others = [as_initialization(way) for way in ways]
        assert {other.name for other in others} == {"nio"} == {first.name}
        assert all(other.describe() == first.describe() for other in others)
        (step,) = first.describe()["steps"]
        assert (step["method"], step["options"]["steps"]) == ("nio", 3)

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            (
                lambda model, batches, loss_fn: None,
                "initialization '<lambda>' cannot be known again by an import path .* say what it is called",
            ),
            (within(), "initialization 'inner' cannot be known again by an import path"),
            (
                functools.partial(halved, factor=lambda: 2),
                "initialization 'halved' cannot be known again by an import path",
            ),
            ([within()], "initialization 'inner' cannot be known again"),
            (
                small,
                r"initialization 'small' is called with \(model, batches, loss_fn\), but too many positional arguments",
            ),
            ([], "initialization 'default' is an empty list"),
            (["orthogonal", "default"], "part 'default' of initialization 'orthogonal .*' is the model's own start"),
            (["orthogonal", {"recipe": {"lr": 1}, "method": "nio"}], "part 'nio' of .* has a recipe or a batch_size"),
            (["orthogonal", "noi"], "unknown initialization 'noi'; known are .*; did you mean 'nio'"),
            ({"method": [halved], "options": {"steps": 3}}, "initialization 'halved' has options or a preset"),
            ({"method": halved, "preset": "published"}, "initialization 'halved' has options or a preset"),
            ({"method": NIO_OBJECT(), "options": {"steps": 3}}, "initialization 'nio' has options or a preset"),
            (NIO_OBJECT, "initialization 'NIO': method is the class NIO; pass an instance"),
            ({"method": 3}, "the method of an initialization is a name, a Method, a function .*; got 3"),
        ],
    )
    def test_refuses(self, value, message):
        with pytest.raises((ValueError, TypeError), match=message):
            as_initialization(value)

    @pytest.mark.heavy
    @pytest.mark.training
    def test_schemes_that_see_the_model_run(self, tmp_path):
        """Found by running on a batch, of a size of its own if one is given; by name and as an object."""
        starts = [
            "default",
            "zero_branches",
            {"name": "large batch", "scheme": "zero_branches", "batch_size": 48},
            {"name": "then nio", "scheme": ScaledBranches(scale=0.5), "method": [NIO]},
        ]
        found = compare(tmp_path / "out", initializations=starts, seeds=1, models={"residual": residual})
        runs = {run.initialization: run for run in found.runs}
        assert not [run.error for run in found.runs if run.status != "done"]
        assert runs["zero_branches"].after != runs["default"].after
        assert runs["large batch"].curve == runs["zero_branches"].curve
        assert runs["then nio"].scales is not None

    @pytest.mark.heavy
    @pytest.mark.training
    def test_one_after_the_other(self, tmp_path):
        starts = [
            "default",
            halved,
            NIO,
            {"name": "halved, then nio", "method": [halved, NIO]},
            {"name": "nio, then halved", "method": [NIO, halved]},
            {"name": "nothing", "method": lambda model, batches, loss_fn: None},
            {"name": "nio by hand", "method": functools.partial(initopt.nio, steps=3, measure_batches=0, progress=False)},
            {"name": "nio twice", "method": [NIO, NIO]},
        ]
        found = compare(tmp_path / "out", initializations=starts, seeds=1, models={"linear": small_linear})
        runs = {run.initialization: run for run in found.runs}
        assert {run.status for run in found.runs} == {"done"}
        assert runs["nothing"].after == runs["default"].after
        assert runs["nothing"].curve == runs["default"].curve
        assert runs["halved"].after != runs["default"].after
        assert runs["nio by hand"].after["grad_norm"] == pytest.approx(runs["nio"].after["grad_norm"], rel=1e-6)
        assert runs["halved, then nio"].scales is not None
        assert runs["nio, then halved"].scales is None
        assert runs["nio twice"].scales["0.weight"] != runs["nio"].scales["0.weight"] != 1
        assert runs["nio, then halved"].curve != runs["halved, then nio"].curve
        compare(tmp_path / "out", initializations=starts, seeds=1, models={"linear": small_linear})  # the same, known again
        starts[1] = {"name": "halved", "method": functools.partial(halved, factor=0.25)}
        with pytest.raises(initopt.MismatchError, match="initializations.halved"):
            compare(tmp_path / "out", initializations=starts, seeds=1, models={"linear": small_linear})

    @pytest.mark.heavy
    @pytest.mark.training
    def test_what_a_function_draws_follows_from_the_seed(self, tmp_path):
        torch.manual_seed(1)
        first = compare(tmp_path / "a", initializations=[noisy], seeds=2)
        torch.manual_seed(2)
        again = compare(tmp_path / "b", initializations=["default", noisy], seeds=2)
        assert [run.curve for run in first.runs] == [run.curve for run in again.runs[2:]]
        assert first.runs[0].after != first.runs[1].after

    @pytest.mark.training
    def test_a_function_that_fails_or_returns_a_model_fails_its_run(self, tmp_path):
        found = compare(tmp_path / "out", initializations=[another, raises], seeds=1)
        assert [run.status for run in found.runs] == ["failed", "failed"]
        assert "another returned a Linear; it has to change the model in place" in found.runs[0].error
        assert found.runs[1].error.startswith("ZeroDivisionError")

    def test_what_cannot_be_sent_to_workers(self, tmp_path):
        start = {"name": "mine", "method": lambda model, batches, loss_fn: None}
        with pytest.raises(ValueError, match="initialization 'mine' cannot be sent to other processes"):
            compare(tmp_path / "out", initializations=[start], workers=2)

    @pytest.mark.heavy
    @pytest.mark.training
    def test_a_method_of_another_package(self, tmp_path, monkeypatch):
        entry = EntryPoint("sleepy", f"{__name__}:Sleepy", "initopt.methods")
        monkeypatch.setattr(
            registry, "entry_points", lambda group, name=None: EntryPoints([entry] * (name in (None, "sleepy")))
        )
        found = compare(tmp_path / "out", initializations=["sleepy"], seeds=1)
        assert [(run.initialization, run.status) for run in found.runs] == [("sleepy", "done")]
        described = found.details["initializations"]["sleepy"]["steps"][0]
        assert (described["method"], described["class_path"]) == ("sleepy", f"{__name__}.Sleepy")
        assert as_initialization(Sleepy(steps=2)).describe()["steps"][0]["options"]["steps"] == 2
        with pytest.raises(TypeError, match="initialization 'sleepy': method 'sleepy' has no option 'step'"):
            Initialization(method="sleepy", options={"step": 3})


def noisy(model, batches, loss_fn):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))


def another(model, batches, loss_fn):
    return nn.Linear(6, 3)


def raises(model, batches, loss_fn):
    raise ZeroDivisionError


@dataclasses.dataclass(frozen=True)
class Sleepy(initopt.methods.NIO):
    """A method of another package, which does as NIO."""

    name = "sleepy"


class TestParameterGroups:
    def model(self):
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))

    def groups(self, **options):
        recipe = Recipe(optimizer_options={"weight_decay": 0.1, "momentum": 0.9}, **options)
        model = self.model()
        names = {parameter: name for name, parameter in model.named_parameters()}
        made = recipe.create_optimizer(model, 0.5).param_groups
        return {(group["lr"], group["weight_decay"]): {names[parameter] for parameter in group["params"]} for group in made}

    def test_one_group_by_default(self):
        assert set(self.groups()) == {(0.5, 0.1)}

    def test_norms_do_not_decay(self):
        found = self.groups(no_decay="norms")
        assert found[0.5, 0.0] == {"1.weight", "1.bias"}
        assert found[0.5, 0.1] == {"0.weight", "0.bias", "3.weight", "3.bias"}

    def test_biases_at_a_tenth(self):
        found = self.groups(bias_lr=0.1, no_decay=["norms", "biases"])
        assert found == {
            (0.5, 0.1): {"0.weight", "3.weight"},
            (0.5, 0.0): {"1.weight"},
            (0.05, 0.0): {"0.bias", "1.bias", "3.bias"},
        }

    def test_a_function(self):
        found = self.groups(no_decay=lambda name, parameter, module: parameter.ndim == 1)
        assert found[0.5, 0.0] == {"0.bias", "1.weight", "1.bias", "3.bias"}

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"no_decay": "norm"}, "unknown no_decay 'norm'; known are 'biases'"),
            ({"bias_lr": 0.0}, "bias_lr must be a number above 0; got 0.0"),
        ],
    )
    def test_refuses(self, options, message):
        with pytest.raises(ValueError, match=message):
            Recipe(**options)

    @pytest.mark.training
    def test_rates_follow_the_schedule_each_from_its_own_peak(self, tmp_path, monkeypatch):
        seen = []

        class Spy(torch.optim.SGD):
            def step(self, closure=None):
                seen.append([group["lr"] for group in self.param_groups])
                return super().step(closure)

        monkeypatch.setitem(OPTIMIZERS, "sgd", Spy)
        recipe = RECIPE | {"lr": 0.1, "bias_lr": 0.5, "schedule": "linear", "epochs": 1}
        compare(tmp_path / "out", initializations=["default"], seeds=1, recipe=recipe)
        assert len(seen) > 2
        assert all(bias == pytest.approx(weight / 2) for weight, bias in seen)
        assert seen[0] == pytest.approx([0.1, 0.05])
        assert seen[-1][0] < seen[0][0]
