"""The comparisons that come with the package: that each is what its name says, and that it can be run."""

import importlib.machinery
import importlib.util
import re
import sys
import types
from pathlib import Path

import pytest
import torch
import yaml

import initopt
from initopt.cli import main
from initopt.cli.commands.compare import _network
from initopt.cli.files import describe_experiment, read_experiment
from initopt.comparison import load_comparison
from initopt.comparison.spec.hardware import Hardware
from initopt.comparison.spec.plan import Plan
from initopt.recipes import RECIPES
from tests.image_files import work_offline, write_split

CIFAR = re.compile(r"(cifar100?)-(vgg|resnet|densenet|wrn)([0-9-]+)-(bn|nobn)")
FUNCTIONS = {"vgg": "vgg", "resnet": "cifar_resnet", "densenet": "densenet", "wrn": "wide_resnet"}
TITLES = {"vgg": "VGG", "resnet": "ResNet", "densenet": "DenseNet", "wrn": "WRN"}
STARTS = ["default", "default, warm-up", "metainit", "gradinit", "nio"]
PUBLISHED = "GradInit's start"
STARTS_OF_GRADINIT = [*STARTS[:2], PUBLISHED, *(f"{PUBLISHED} + {method}" for method in STARTS[2:]), "nio"]
CIFAR_RECIPES = [name for name in RECIPES if CIFAR.fullmatch(name)]
IMAGENET_RECIPES = [name for name in RECIPES if name.startswith("imagenet")]
ROOT = Path(__file__).parents[2]


class Imitation(torch.nn.Sequential):
    def __init__(self, **arguments):
        super().__init__(torch.nn.Flatten(), torch.nn.LazyLinear(1000))


@pytest.fixture
def timm(monkeypatch):
    """The real one, or else one that knows the names and makes something else."""
    if importlib.util.find_spec("timm") is None:
        module = types.ModuleType("timm")
        module.__spec__ = importlib.machinery.ModuleSpec("timm", None)
        module.is_model = lambda name: True
        module.create_model = lambda name, **arguments: Imitation(**arguments)
        monkeypatch.setitem(sys.modules, "timm", module)


@pytest.fixture(autouse=True)
def no_network_and_a_cache_of_its_own(monkeypatch, tmp_path_factory):
    work_offline(monkeypatch, tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder in the layout of each data set."""
    root = tmp_path_factory.mktemp("pictures")
    for name, columns, test in (
        ("cifar10", ("img", "label"), "test"),
        ("cifar100", ("img", "fine_label"), "test"),
        ("imagenet", ("image", "label"), "validation"),
    ):
        write_split(root / name, "train", 40, columns=columns)
        write_split(root / name, test, 16, columns=columns)
    return root


def command(line, capsys):
    with pytest.raises(SystemExit) as ended:
        main(line.split())
    captured = capsys.readouterr()
    return int(ended.value.code or 0), captured.out, captured.err


def planned(values):
    return Plan.create(
        {name: _network(name, value) for name, value in values["models"].items()},
        "digits",
        values["initializations"],
        loss_fn=None,
        recipe=values["recipe"],
        seeds=values["seeds"],
        selection_seeds=values.get("selection_seeds", 2),
        hardware=Hardware(),
    )


def test_every_row_of_the_papers_tables_has_a_recipe():
    networks = ("vgg19", "resnet110", "densenet100", "wrn28-10")
    rows = {f"{data}-{net}-{norm}" for data in ("cifar10", "cifar100") for net in networks for norm in ("bn", "nobn")}
    assert rows | {"digits", "digits-vit", "imagenet-resnet50", "imagenet-swin-t", "imagenet-vit-s"} <= set(RECIPES)


@pytest.mark.gallery
@pytest.mark.parametrize("scale", [None, "small"])
@pytest.mark.parametrize("name", CIFAR_RECIPES)
def test_a_recipe_for_cifar_is_what_its_name_says(name, scale):
    data, family, sizes, norm = CIFAR.fullmatch(name).groups()
    values = read_experiment(RECIPES[name], scale)
    text, scales = describe_experiment(RECIPES[name])
    ((title, model),) = values["models"].items()
    arguments = model["init_args"]
    assert model["class_path"] == FUNCTIONS[family]
    assert arguments["norm"] == {"bn": "batch", "nobn": "none"}[norm]
    assert arguments.get("num_classes", 10) == {"cifar10": 10, "cifar100": 100}[data]
    assert values["data"]["class_path"] == data
    if family == "wrn":
        assert title.startswith(f"WRN-{arguments['depth']}-{arguments['width']}, ")
    else:
        assert title.startswith(f"{TITLES[family]}-{arguments['depth']}, ")
    assert title.endswith({"bn": "batch norm", "nobn": "no norm"}[norm])
    if scale is None:
        assert title.split(",")[0].lower().replace("-", "") == f"{family}{sizes}".replace("-", "")
    plan = planned(values)
    assert list(plan.initializations) == (STARTS if family == "wrn" else STARTS_OF_GRADINIT)
    assert text.endswith(f"from {'five' if family == 'wrn' else 'seven'} starts")
    warm = plan.recipe_of(title, "default, warm-up").warmup_steps
    ours = plan.recipe_of(title, "default")
    samples = values["data"]["init_args"].get("train_samples", 50_000)
    assert warm == (5 if scale is None else 1) * (samples // ours.batch_size)
    assert ours.epochs == 200 if scale is None else ours.epochs <= 8
    assert ours.clip_grad_norm == (1.0 if norm == "nobn" and family != "densenet" else None)
    assert (ours.optimizer_options, ours.no_decay) == ({"momentum": 0.9, "weight_decay": 1e-4}, "norms")
    assert ours.bias_lr == (0.1 if family == "resnet" and norm == "nobn" else 1.0)
    assert scales == ("small",)
    assert text.startswith(f"{data.upper().replace('CIFAR', 'CIFAR-')}, {TITLES[family]}-{sizes} with")
    assert ("without batch norm" in text) == (norm == "nobn")


@pytest.mark.parametrize(
    ("name", "classifier"), [("vgg19-nobn", 0.01), ("resnet110-bn", 64**-0.5), ("densenet100-nobn", None)]
)
def test_the_start_of_the_published_scripts(name, classifier):
    """Convolutions by fan_out, biases 0, and a classifier that is not Kaiming's."""
    plan = planned(read_experiment(RECIPES[f"cifar10-{name}"], "small"))
    (network,) = plan.networks.values()
    torch.manual_seed(0)
    model = network.make()
    *_, last = model.modules()
    before = last.weight.detach().clone()
    for step in plan.initializations[PUBLISHED].steps:
        initopt.schemes.apply_(model, step.scheme, params=step.params, seed=0)
    convolutions = [module for module in model.modules() if isinstance(module, torch.nn.Conv2d)]
    for conv in convolutions:
        expected = (2 / (conv.out_channels * conv.kernel_size[0] ** 2)) ** 0.5
        assert float(conv.weight.detach().std()) == pytest.approx(expected, rel=0.25)
    assert not any(module.bias.detach().any() for module in [last, *convolutions] if module.bias is not None)
    if classifier == 0.01:
        assert float(last.weight.detach().std()) == pytest.approx(0.01, rel=0.2)
    else:
        assert torch.equal(last.weight, before)
        assert float(last.weight.detach().abs().max()) <= last.in_features**-0.5


@pytest.mark.gallery
@pytest.mark.parametrize("name", CIFAR_RECIPES)
def test_the_networks_of_a_recipe_have_the_outputs_that_its_data_need(name):
    for scale in (None, "small"):
        with torch.device("meta"):
            (network,) = planned(read_experiment(RECIPES[name], scale)).networks.values()
            *_, last = network.make()
        assert last.out_features == {"cifar10": 10, "cifar100": 100}[name.split("-")[0]]


@pytest.mark.parametrize("scale", [None, "small"])
@pytest.mark.parametrize("name", IMAGENET_RECIPES)
def test_a_recipe_for_imagenet_is_what_its_name_says(name, scale, timm):
    values = read_experiment(RECIPES[name], scale)
    assert values["data"]["class_path"] == "imagenet"
    ((title, model),) = values["models"].items()
    path = model if isinstance(model, str) else model["class_path"]
    family = {"imagenet-resnet50": "resnet", "imagenet-swin-t": "swin", "imagenet-vit-s": "vit"}[name]
    assert family in path
    assert title.lower().replace("-", "").endswith(name.split("-", 1)[1].replace("-", "")) or scale == "small"
    plan = planned(values)
    if family == "resnet":
        assert list(plan.initializations) == STARTS
    else:
        assert list(plan.initializations) == ["default", "default, warm-up", "gradinit", "nio", "nio, warm-up"]
        assert [plan.recipe_of(title, start).warmup_steps > 0 for start in plan.initializations] == [0, 1, 0, 0, 1]
        assert plan.recipe.optimizer == "adamw"
    assert plan.recipe.epochs == ({"resnet": 100}.get(family, 300) if scale is None else 3)


def test_nio_on_imagenet_is_as_published(timm):
    nio = planned(read_experiment(RECIPES["imagenet-resnet50"])).initializations["nio"]
    (method,) = nio.steps
    assert nio.batch_size == 64
    published = {"num_subbatches": 4, "overlap": 0.2, "lr": 0.003, "max_grad_norm": 10.0, "steps": 100, "norm_weight": 1.0}
    published |= {"objective": "cosine+norm", "split": "published", "batch_norm": "batch", "min_scale": 0.01}
    assert {option: getattr(method, option) for option in published} == published


def shrunk(values, path):
    """A recipe on a few images, with few and small batches, and one step of each method."""
    values["data"]["init_args"] |= {"path": str(path), "train_samples": 24, "test_samples": 8}
    values["recipe"] |= {"epochs": 1, "batch_size": 8, "measure_batches": 1}
    values |= {"seeds": 1, "accelerator": "cpu", "report": False}
    for start in values["initializations"]:
        if isinstance(start, dict) and "method" in start:
            for part in start["method"] if isinstance(start["method"], list) else [start]:
                if isinstance(part, dict) and "method" in part:
                    part["options"] = part.get("options", {}) | {"steps": 1}
            start["batch_size"] = min(4, start.get("batch_size", 8))
    return values


def trained(values, tmp_path, capsys, networks=1):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    status, _, err = command(f"compare --experiment {tmp_path / 'recipe.yaml'} --out {tmp_path / 'out'}", capsys)
    assert (status, err) == (0, "")
    found = load_comparison(tmp_path / "out")
    assert [run.error for run in found.runs] == [None] * len(values["initializations"]) * networks
    assert {run.status for run in found.runs} == {"done"}
    return found


QUICKEST = "cifar10-resnet110-bn"
"""Of the recipes for CIFAR."""


@pytest.mark.heavy
@pytest.mark.training
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == QUICKEST else pytest.mark.slow) for name in CIFAR_RECIPES]
)
def test_a_recipe_for_cifar_trains(name, pictures, tmp_path, capsys):
    """The small scale as it is; of the other, the same with the small network. CIFAR-10 takes one, CIFAR-100 the other."""
    full, small = (read_experiment(RECIPES[name], scale) for scale in (None, "small"))
    values = small if name.startswith("cifar100") else full | {"models": small["models"]}
    found = trained(shrunk(values, pictures / name.split("-")[0]), tmp_path, capsys)
    assert all(run.before is not None for run in found.runs)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in RECIPES if name.startswith("cifar10-evidence")])
def test_a_recipe_of_the_evidence_trains(name, pictures, tmp_path, capsys):
    values = read_experiment(RECIPES[name])
    values["initializations"] = [
        {"name": start, "method": start, "options": {}} if start in ("metainit", "nio") else start
        for start in values["initializations"]
    ]
    for start in values["initializations"]:
        if isinstance(start, dict) and "method" in start:
            start.setdefault("options", {})
    values["data"]["init_args"]["validation_samples"] = 8
    trained(shrunk(values, pictures / "cifar10"), tmp_path, capsys, networks=len(values["models"]))


@pytest.mark.training
@pytest.mark.parametrize("name", IMAGENET_RECIPES)
def test_a_recipe_for_imagenet_trains(name, pictures, tmp_path, capsys):
    pytest.importorskip("timm", exc_type=ImportError)
    trained(shrunk(read_experiment(RECIPES[name], "small"), pictures / "imagenet"), tmp_path, capsys)


def test_the_documentation_has_every_recipe():
    text = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    for name in RECIPES:
        assert f"`{name}`" in text or f"`{re.sub('^cifar100?-', 'cifar10[0]-', name)}`" in text, name


class TestCommand:
    def test_the_list(self, capsys):
        status, out, err = command("compare --list_experiments", capsys)
        assert (status, err) == (0, "")
        assert [line.split()[0] for line in out.splitlines()] == list(RECIPES)
        assert "CIFAR-100, WRN-28-10 without batch norm, from five starts  (--scale small)" in out

    def test_a_scale_and_what_the_command_line_changes_of_it(self, capsys):
        line = (
            "compare --experiment cifar10-vgg19-nobn --scale small --data.path x --data.train_samples 20 --recipe.epochs 2"
        )
        status, out, _ = command(f"{line} --print_config", capsys)
        assert status == 0
        found = yaml.safe_load(out)
        assert list(found["models"]) == ["VGG-11, no norm"]
        assert found["data"]["init_args"]["path"] == "x"
        assert found["data"]["init_args"]["train_samples"] == 20
        assert found["data"]["init_args"]["test_samples"] == 1000
        assert (found["recipe"]["epochs"], found["recipe"]["clip_grad_norm"]) == (2, 1.0)

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ("--experiment cifar10-vgg19-nobn --scale tiny", "has no such scale; it has small"),
            ("--experiment digits --scale small", "has no such scale; it has none"),
            ("--scale small", "--scale small is of an --experiment, and there is none"),
            (
                "--experiment cifar10-vgg19",
                "no such file; by name there are cifar10-vgg19-bn, cifar100-vgg19-bn",
            ),
        ],
    )
    def test_refuses(self, line, message, capsys):
        status, _, err = command(f"compare {line} --out o", capsys)
        assert status == 2
        assert message in err


class TestFile:
    def write(self, folder, **files):
        for name, text in files.items():
            (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
        return folder / "a.yaml"

    def test_changes_of_a_base(self, tmp_path):
        path = self.write(
            tmp_path,
            a="{base: b.yaml, description: mine, data: two, recipe: {lr: 1, epochs: 2}, seeds: 2}",
            b="{data: {class_path: one, init_args: {path: p}}, recipe: {lr: 3, batch_size: 4}, initializations: [nio]}",
        )
        assert read_experiment(path) == {
            "data": {"class_path": "two", "init_args": {"path": "p"}},
            "recipe": {"lr": 1, "batch_size": 4, "epochs": 2},
            "initializations": ["nio"],
            "seeds": 2,
        }
        assert describe_experiment(path) == ("mine", ())

    def test_a_base_may_be_a_recipe_by_name(self, tmp_path):
        path = self.write(tmp_path, a="{base: digits, seeds: 2}")
        assert read_experiment(path) == read_experiment(RECIPES["digits"]) | {"seeds": 2}

    def test_scales_of_a_file_and_of_its_base(self, tmp_path):
        path = self.write(
            tmp_path,
            a="{base: b.yaml, recipe: {lr: 1}, scales: {small: {models: {m: n}, recipe: {epochs: 2}}, other: {seeds: 1}}}",
            b="{seeds: 5, scales: {small: {seeds: 3, recipe: {lr: 9, epochs: 8}, data: {init_args: {path: p}}}}}",
        )
        assert read_experiment(path) == {"seeds": 5, "recipe": {"lr": 1}}
        assert read_experiment(path, "other") == {"seeds": 1, "recipe": {"lr": 1}}
        assert read_experiment(path, "small") == {
            "seeds": 3,
            "recipe": {"lr": 9, "epochs": 2},
            "models": {"m": "n"},
            "data": {"init_args": {"path": "p"}},
        }

    @pytest.mark.parametrize(
        ("files", "message"),
        [
            ({"a": "base: b.yaml"}, "a.yaml: its base b.yaml is neither a file beside it nor an experiment"),
            ({"a": "base: b.yaml", "b": "base: a.yaml"}, "is its own base"),
            ({"a": "recipe: 3"}, "recipe must be a mapping; got 3"),
            ({"a": "scales: [small]"}, "scales must be a mapping; got"),
            ({"a": "scales: {small: 3}"}, "scale small must be a mapping of options; got 3"),
            ({"a": "[1]"}, "a.yaml must hold options"),
        ],
    )
    def test_refuses(self, tmp_path, files, message):
        with pytest.raises(ValueError, match=message):
            read_experiment(self.write(tmp_path, **files))
