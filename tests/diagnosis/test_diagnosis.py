"""What a diagnosis shows, tries and saves."""

import csv
import functools
import json
import math
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import initopt
from initopt.diagnosis import RULES, Row
from initopt.diagnosis.diagnosis import FORMAT
from initopt.diagnosis.rules.page import rules_page
from tests.diagnosis.sick import SICK, labelled, mlp
from tests.helpers import values


@pytest.fixture(scope="module")
def vanishing():
    torch.manual_seed(0)
    optimizer = functools.partial(torch.optim.SGD, lr=0.1)
    return initopt.diagnose(
        mlp(20, activation=nn.Tanh), labelled(), optimizer=optimizer, seed=0, tries=("orthogonal", "lsuv")
    )


def test_a_remedy_is_tried_on_a_copy_and_said_to_help(vanishing):
    best = vanishing.tried[0]
    assert best.better
    assert best.findings == ()
    assert best.steps > 0
    assert re.search(r"signal of the last layer \S+ to \S+; .*loss after \d+ steps at your learning rate", best.changes)
    assert vanishing.advice.startswith("Use initopt.")
    assert len(vanishing.tried) == 2


@pytest.mark.parametrize("depth", [10, 22, 32])
def test_of_relu_layers_without_signal_neither_their_units_nor_the_optimizer_are_to_blame(depth):
    torch.manual_seed(0)
    model = mlp(depth, activation=nn.ReLU)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    found = initopt.diagnose(model, labelled(), optimizer=optimizer, seed=0, tries=())
    assert [finding.rule for finding in found.findings if finding.severity != "note"] == ["A204"]


@pytest.mark.heavy
def test_the_model_stays_as_it_is_when_remedies_are_tried():
    torch.manual_seed(0)
    model, batches = mlp(24, activation=nn.Tanh), labelled()
    before, state = values(model), torch.get_rng_state()
    found = initopt.diagnose(model, batches, optimizer=torch.optim.Adam(model.parameters()), tries=("lsuv",))
    assert found.tried
    assert not found.tried[0].failure
    assert all(torch.equal(before[name], value) for name, value in values(model).items())
    assert torch.equal(state, torch.get_rng_state())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("optimizer", [None, functools.partial(torch.optim.SGD, lr=0.1)])
def test_remedies_are_not_tried_where_the_loss_is_not_that_of_a_copy(optimizer):
    torch.manual_seed(0)
    model = mlp(20, activation=nn.Tanh)

    def loss(given, batch):
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    found = initopt.diagnose(model, labelled(), loss, optimizer=optimizer, seed=0, tries=("orthogonal", "lsuv"))
    assert "A204" in {finding.rule for finding in found.findings}
    assert len(found.tried) == 2
    for trial in found.tried:
        assert trial.failure.startswith("could not be tried: ")
    assert any("the loss of another model" in trial.failure for trial in found.tried)


@pytest.mark.heavy
@pytest.mark.parametrize(("budget", "count"), [(0, 0), (2, 1), (5, 1), (200, 3)])
def test_a_budget_bounds_the_tries(budget, count):
    torch.manual_seed(0)
    found = initopt.diagnose(mlp(24, activation=nn.Tanh), labelled(), budget=budget)
    assert len(found.tried) == count
    assert bool(found.untried) == (count == 0)


def test_a_model_that_cannot_be_copied_is_diagnosed_all_the_same():
    class Odd(nn.Sequential):
        def __deepcopy__(self, memo):
            raise RuntimeError("no copies")

    found = initopt.diagnose(Odd(*mlp(24, activation=nn.Tanh)), labelled(), tries=("orthogonal",))
    assert found.tried[0].failure == "could not be tried: RuntimeError: no copies"
    assert not found.tried[0].better


def test_what_other_weights_do_not_cure_is_not_tried():
    sick = SICK["labels_that_are_all_the_same"].make()
    found = initopt.diagnose(sick.model, sick.batches)
    assert found.tried == ()
    assert found.untried == "other weights are not what helps"
    assert found.advice.startswith("First of all, for D403")


def test_a_healthy_network_has_a_sentence_with_three_numbers():
    torch.manual_seed(0)
    found = initopt.diagnose(mlp(), labelled(), seed=0)
    assert found.healthy
    assert len(re.findall(r"\d[\d.e-]*", str(found).partition("Healthy:")[2].partition("\n\n")[0])) >= 3
    assert len(str(found).splitlines()) < 8


def test_a_screen_is_enough(vanishing):
    lines = str(vanishing).splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 130
    assert any(line.startswith("layer ") for line in lines)
    assert "more" in vanishing.table(rows=6)
    assert len(vanishing.table("network").splitlines()) == 2 + len(vanishing.rows)
    with pytest.raises(ValueError, match="unknown order 'size'"):
        vanishing.table("size")


def test_rows_have_all_parameters_once():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.token = nn.Parameter(torch.zeros(16))
            self.inner = mlp()

        def forward(self, x):
            return self.inner(x + self.token)

    model = Own()
    found = initopt.diagnose(model, labelled(), seed=0)
    assert sum(row.parameters for row in found.rows) == sum(p.numel() for p in model.parameters())
    assert sum(row.gradient_share for row in found.rows if not math.isnan(row.gradient_share)) == pytest.approx(1)


def test_the_table_is_a_dataframe(vanishing):
    pytest.importorskip("pandas")
    frame = vanishing.to_dataframe()
    assert list(frame.columns) == list(Row.__dataclass_fields__)
    assert len(frame) == len(vanishing.rows)


def test_a_diagnosis_is_saved_whole_and_replaced(vanishing, tmp_path):
    folder = tmp_path / "found"
    page = vanishing.save(folder)
    assert {path.name for path in folder.iterdir()} == {"diagnosis.html", "diagnosis.json", "rows.csv"}
    text = page.read_text(encoding="utf-8")
    assert not re.search(r'(?:src|href)=["\']', text)
    assert "http" not in text
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text
    assert text.count("<tr>") == 1 + len(vanishing.rows)
    record = json.loads((folder / "diagnosis.json").read_text(encoding="utf-8"))
    assert record["format"] == FORMAT
    assert [finding["rule"] for finding in record["findings"]] == [finding.rule for finding in vanishing.findings]
    assert record["tried"][0]["better"] is True
    with (folder / "rows.csv").open(encoding="utf-8", newline="") as file:
        assert len(list(csv.DictReader(file))) == len(vanishing.rows)
    vanishing.save(folder)
    (folder / "mine.txt").write_text("x", encoding="utf-8")
    with pytest.raises(FileExistsError, match=r"mine\.txt"):
        vanishing.save(folder)


def test_names_are_escaped_on_the_page(tmp_path):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleDict({"<script>": nn.Linear(16, 4)})

        def forward(self, x):
            return self.layers["<script>"](x)

    text = initopt.diagnose(Odd(), labelled()).save(tmp_path / "x").read_text(encoding="utf-8")
    assert "<script>" not in text
    assert "&lt;script&gt;" in text


def test_the_picture_marks_the_findings(vanishing):
    figure = vanishing.plot()
    assert len(figure.axes) == 2
    labels = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert any(label.startswith("A204") for label in labels)
    assert all(len(axes.lines) >= 1 for axes in figure.axes)


def test_a_network_of_nan_is_shown_all_the_same(tmp_path):
    sick = SICK["a_weight_that_is_nan"].make()
    found = initopt.diagnose(sick.model, sick.batches, tries=("kaiming_normal",))
    assert "W101" in str(found)
    found.plot()
    found.save(tmp_path / "nan")
    assert found._repr_html_()
    assert found.tried[0].better


def test_every_rule_is_documented_in_itself():
    for code, rule in RULES.items():
        assert re.fullmatch(r"[WADGOS]\d{3}", code)
        assert rule.words.endswith(".")
        assert rule.threshold
        assert rule.source
        assert all(any(known.startswith(other) for known in RULES) for other in rule.explains)


def test_the_page_of_rules_is_that_of_the_rules():
    page = Path(__file__).parents[2] / "docs" / "rules.md"
    assert page.read_text(encoding="utf-8") == rules_page(), "write rules_page() into docs/rules.md"
