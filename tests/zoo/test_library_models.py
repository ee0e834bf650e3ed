"""Networks of other libraries by name: our part of it on imitations, and the libraries themselves where these are there."""

import functools
import importlib.machinery
import importlib.util
import pickle
import sys
import types

import pytest
import torch
import yaml
from torch import nn

import initopt
from initopt.cli import main
from initopt.zoo import library_model


class Net(nn.Sequential):
    """Stands for any network of a library."""

    def __init__(self, num_classes=1000, width=4, **unknown):
        if unknown:
            raise TypeError(f"Net.__init__() got an unexpected keyword argument {next(iter(unknown))!r}")
        super().__init__(nn.Flatten(), nn.LazyLinear(width), nn.ReLU(), nn.Linear(width, num_classes))
        self.width = width
        self(torch.zeros(1, 1, 8, 8))


class Config:
    """As of transformers: keeps fields that it does not know."""

    def __init__(self, hidden_size=8, **others):
        self.hidden_size = hidden_size
        self.num_labels = others.pop("num_labels", 2)
        self.__dict__ |= others

    @classmethod
    def from_pretrained(cls, name):
        if name != "known":
            raise OSError(f"We couldn't connect to the hub to load {name}")
        return cls(hidden_size=16)


class FakeModel(Net):
    config_class = Config

    def __init__(self, config):
        super().__init__(config.num_labels, config.hidden_size)


class FakeAutoModel:
    from_config = staticmethod(FakeModel)


def _module(monkeypatch, name, **contents):
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    module.__dict__.update(contents)
    monkeypatch.setitem(sys.modules, name, module)
    return module


CALLS = []


@pytest.fixture
def timm(monkeypatch):
    def create_model(name, pretrained=False, **arguments):
        CALLS.append((name, pretrained))
        return Net(**arguments)

    known = ["resnet18", "resnet50", "swin_tiny_patch4_window7_224"]
    return _module(
        monkeypatch,
        "timm",
        create_model=create_model,
        is_model=lambda name: name.partition(".")[0] in known,
        list_models=lambda: known,
    )


@pytest.fixture
def torchvision(monkeypatch):
    def resnet18(*, weights=None, **arguments):
        return Net(**arguments)

    def detector(*, weights=None, weights_backbone="ImageNet", **arguments):
        CALLS.append((weights, weights_backbone))
        return Net(**arguments)

    builders = {"resnet18": resnet18, "detector": detector}
    models = _module(
        monkeypatch,
        "torchvision.models",
        list_models=lambda: list(builders),
        get_model_builder=builders.__getitem__,
        get_model=lambda name, **arguments: builders[name](**arguments),
    )
    return _module(monkeypatch, "torchvision", models=models)


@pytest.fixture
def transformers(monkeypatch):
    contents = {"FakeForClassification": FakeModel, "AutoModelForFakes": FakeAutoModel, "AutoConfig": Config}
    return _module(monkeypatch, "transformers", **contents)


@pytest.fixture
def without_libraries(monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        sys.modules["initopt.zoo.library_models"],
        "find_spec",
        lambda name: None if name in ("timm", "torchvision", "transformers") else find_spec(name),
    )


@pytest.fixture
def cli(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(line):
        with pytest.raises(SystemExit) as ended:
            main(line.split())
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return run


class TestTimm:
    def test_its_function_makes_the_network_without_pretrained_weights(self, timm):
        CALLS.clear()
        model = library_model("timm:resnet50", num_classes=10)
        assert isinstance(model, Net)
        assert model[-1].out_features == 10
        library_model("timm:resnet50.a1_in1k")
        library_model("timm:resnet50", pretrained=True)
        assert CALLS == [("resnet50", False), ("resnet50.a1_in1k", False), ("resnet50", True)]

    def test_refuses(self, timm):
        with pytest.raises(ValueError, match=r"timm has no network 'resnet5'; near are resnet50, resnet18"):
            library_model("timm:resnet5")
        with pytest.raises(ValueError, match="timm has no network 'qqq'; an example is timm:resnet50"):
            library_model("timm:qqq")
        with pytest.raises(ValueError, match=r"timm:resnet50 refuses the arguments \{'clases': 3\}: .*argument 'clases'"):
            library_model("timm:resnet50", clases=3)


class TestTorchvision:
    def test_no_part_is_pretrained(self, torchvision):
        CALLS.clear()
        assert library_model("torchvision:resnet18", num_classes=3)[-1].out_features == 3
        library_model("torchvision:detector")
        library_model("torchvision:detector", weights_backbone="mine")
        assert CALLS == [(None, None), (None, "mine")]

    def test_refuses(self, torchvision):
        with pytest.raises(ValueError, match="torchvision has no network 'resnet81'; near are resnet18"):
            library_model("torchvision:resnet81")


class TestTransformers:
    def test_arguments_are_fields_of_the_configuration(self, transformers):
        model = library_model("transformers:FakeForClassification", num_labels=5)
        assert (model.width, model[-1].out_features) == (8, 5)

    def test_a_configuration_of_the_hub(self, transformers):
        model = library_model("transformers:AutoModelForFakes", config="known", num_labels=5)
        assert (model.width, model[-1].out_features) == (16, 5)

    @pytest.mark.parametrize(
        ("name", "arguments", "error", "message"),
        [
            ("FakeForClass", {}, ValueError, "transformers has no network 'FakeForClass'; near are FakeForClassification"),
            ("AutoConfig", {}, ValueError, "transformers has no network 'AutoConfig'"),
            (
                "FakeForClassification",
                {"num_lables": 5},
                ValueError,
                "Config has no field 'num_lables'; near are num_labels",
            ),
            ("AutoModelForFakes", {}, ValueError, "FakeAutoModel needs the argument config: the name of a config"),
            ("AutoModelForFakes", {"config": "known", "size": 1}, ValueError, "Config has no field 'size'"),
            (
                "AutoModelForFakes",
                {"config": "org/net"},
                OSError,
                "the configuration 'org/net' is not to be had .We couldn't connect.*; offline, give a folder",
            ),
        ],
    )
    def test_refuses(self, transformers, name, arguments, error, message):
        with pytest.raises(error, match=message):
            library_model(f"transformers:{name}", **arguments)


class TestMissing:
    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("timm:resnet50", r"timm:resnet50 needs timm: pip install 'initopt\[timm\]'; torchvision fits one .* 5.5 GB"),
            ("torchvision:resnet50", "needs torchvision: pip install torchvision; torchvision fits one"),
            ("transformers:GPT2Model", r"needs transformers: pip install 'initopt\[transformers\]'$"),
        ],
    )
    def test_says_what_to_install(self, without_libraries, name, message):
        with pytest.raises(ImportError, match=message):
            library_model(name)

    def test_a_library_that_does_not_fit_torch(self, tmp_path, monkeypatch):
        (tmp_path / "timm.py").write_text(
            'raise RuntimeError("operator torchvision::nms does not exist")\n', encoding="utf-8"
        )
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "timm", raising=False)
        with pytest.raises(ImportError, match=r"timm is installed, but cannot be imported \(operator torchvision::nms"):
            library_model("timm:resnet50")

    @pytest.mark.parametrize("name", ["resnet50", "timm:", "tim:resnet50", ":resnet50"])
    def test_a_name_of_no_library(self, name):
        with pytest.raises(ValueError, match="one of timm:NAME, torchvision:NAME, transformers:NAME; got"):
            library_model(name)

    def test_a_library_with_a_typo(self):
        with pytest.raises(ValueError, match="did you mean timm:resnet50"):
            library_model("tim:resnet50")


class TestCommands:
    @pytest.mark.heavy
    def test_measure_and_run(self, cli, timm, tmp_path):
        status, out, err = cli(
            "measure --model timm:resnet50 --model.num_classes 10 --data digits --data.batch_size 16 --seed 3 "
            "--num_batches 2"
        )
        assert (status, err) == (0, "")
        assert "GradCosine" in out
        status, _, err = cli(
            "run --model timm:resnet50 --model.num_classes=10 --model.width 6 --data digits --steps 2 --measure_batches 0 "
            "--out o"
        )
        assert (status, err) == (0, "")
        described = yaml.safe_load((tmp_path / "o" / "config.yaml").read_text(encoding="utf-8"))
        assert described["model"] == {"class_path": "timm:resnet50", "init_args": {"num_classes": 10, "width": 6}}
        status, _, err = cli("run --config o/config.yaml --model.width 5 --out p")
        assert (status, err) == (0, "")
        assert initopt.Result.load(tmp_path / "p").scales.keys() == initopt.Result.load(tmp_path / "o").scales.keys()

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ("measure --model timm:resnet5 --data digits", "timm has no network 'resnet5'; near are resnet50"),
            ("measure --model timm:resnet50 --model.clases 3 --data digits", "refuses the arguments {'clases': 3}"),
            ("compare --models.x timm:resnet5 --initializations [default] --out o", "timm has no network 'resnet5'"),
            ("measure --model tim:resnet50 --data digits", "did you mean timm:resnet50?"),
        ],
    )
    def test_refuses(self, cli, timm, line, message):
        status, _, err = cli(line)
        assert status == 2
        assert message in err
        assert "Traceback" not in err

    def test_missing(self, cli, without_libraries):
        status, _, err = cli("compare --models.x timm:resnet50 --initializations [default] --out o")
        assert status == 2
        assert "timm:resnet50 needs timm: pip install 'initopt[timm]'" in err

    def test_help_says_that_its_arguments_are_those_of_the_library(self, cli, timm):
        status, out, _ = cli("measure --model timm:resnet50 --data digits --help")
        assert status == 0
        assert "arguments of --model timm:resnet50" in out
        assert "those that the library has for it" in out

    @pytest.mark.heavy
    def test_compare(self, cli, timm, tmp_path):
        spec = {
            "models": {"net": {"class_path": "timm:resnet50", "init_args": {"num_classes": 10}}, "wide": "timm:resnet18"},
            "initializations": ["default"],
            "recipe": {"epochs": 1},
            "seeds": 1,
            "report": False,
        }
        (tmp_path / "spec.yaml").write_text(yaml.safe_dump(spec), encoding="utf-8")
        status, _, err = cli("compare --experiment spec.yaml --out o")
        assert (status, err) == (0, "")
        runs = initopt.comparison.load_comparison(tmp_path / "o").runs
        assert [run.status for run in runs] == ["done", "done"]
        networks = initopt.comparison.load_comparison(tmp_path / "o").details["networks"]
        assert networks["net"]["model"] == {
            "class_path": "initopt.zoo.library_models.library_model",
            "init_args": {"": ["timm:resnet50"], "num_classes": 10},
        }


def test_factories_can_be_sent_to_workers(timm):
    factory = functools.partial(library_model, "timm:resnet50", num_classes=3)
    assert pickle.loads(pickle.dumps(factory))()[-1].out_features == 3


class TestReal:
    """Where the libraries are installed: `make test-zoo` has an environment with them."""

    @pytest.mark.parametrize(
        ("library", "name", "arguments", "shape"),
        [
            ("timm", "timm:resnet10t", {"num_classes": 10}, (8, 3, 32, 32)),
            ("timm", "timm:test_vit", {"num_classes": 10, "img_size": 32}, (8, 3, 32, 32)),
            ("torchvision", "torchvision:resnet18", {"num_classes": 10}, (8, 3, 32, 32)),
            (
                "transformers",
                "transformers:ViTForImageClassification",
                {"num_labels": 10, "image_size": 32, "patch_size": 8, "hidden_size": 16, "num_hidden_layers": 1}
                | {"num_attention_heads": 2, "intermediate_size": 16},
                (8, 3, 32, 32),
            ),
        ],
    )
    def test_nio_on_it(self, library, name, arguments, shape):
        pytest.importorskip(library, exc_type=(ImportError, RuntimeError))
        model = library_model(name, **arguments)
        batch = torch.randn(shape), torch.arange(shape[0])
        result = initopt.nio(model, [batch], steps=1, num_subbatches=2, measure_batches=0)
        assert len(result.history) == 1

    def test_an_unknown_field_of_transformers(self):
        pytest.importorskip("transformers")
        with pytest.raises(ValueError, match="GPT2Config has no field 'n_layerz'; near are n_layer"):
            library_model("transformers:GPT2LMHeadModel", n_layerz=1)
