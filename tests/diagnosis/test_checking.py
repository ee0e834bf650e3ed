"""``check`` and ``assert_healthy``, and the rules that need no data or other processes."""

import pytest
import torch
from torch import distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor, Shard, distribute_tensor, init_device_mesh

import initopt
from initopt.diagnosis import RULES, assert_healthy
from initopt.diagnosis.rules.base import chosen_rules
from initopt.diagnosis.rules.state import fingerprints, unlike
from initopt.diagnosis.weights import weights_of
from tests.diagnosis.sick import SICK, labelled, mlp
from tests.forks import python
from tests.processes import in_processes

WEIGHTS = [name for name, case in SICK.items() if all(RULES[code].needs == "weights" for code in case.named)]


def codes(findings):
    return {finding.rule for finding in findings if finding.severity != "note"}


@pytest.mark.parametrize("name", WEIGHTS)
def test_what_the_weights_show_needs_no_data(name):
    torch.manual_seed(0)
    assert codes(initopt.check(SICK[name].make().model)) == SICK[name].named


@pytest.mark.parametrize("name", ["relus_that_are_dead", "labels_that_count_from_one", "a_router_by_argmax"])
def test_a_batch_shows_more(name):
    torch.manual_seed(0)
    sick = SICK[name].make()
    assert initopt.check(sick.model) == []
    assert codes(initopt.check(sick.model, sick.batches[0], sick.loss_fn)) == SICK[name].named


def test_tensors_without_values_are_named():
    with torch.device("meta"):
        model = mlp()
    found = initopt.check(model, labelled()[0])
    assert [finding.rule for finding in found] == ["S603"]
    assert found[0].place == "0,2...6.weight, 0,2...6.bias"
    assert [f.rule for f in initopt.check(nn.Sequential(nn.LazyLinear(3)))] == ["S603"]


def test_a_model_of_which_nothing_trains():
    assert codes(initopt.check(mlp().requires_grad_(False))) == {"S604"}
    assert codes(initopt.check(nn.Tanh())) == {"S604"}


def test_rules_are_selected_and_ignored():
    model = SICK["weights_of_one_number"].make().model
    assert codes(initopt.check(model, select=["W1"])) == {"W106"}
    assert initopt.check(model, select=["W105", "A"]) == []
    assert initopt.check(model, ignore=["W106"]) == []
    assert initopt.check(model, select="W", ignore="W106") == []
    for argument in ("select", "ignore"):
        with pytest.raises(ValueError, match=f"{argument}: there is no rule 'X1'"):
            initopt.check(model, **{argument: ["X1"]})
    assert chosen_rules(None, None) == list(RULES)


def test_bad_arguments_are_refused():
    with pytest.raises(TypeError, match=r"torch\.nn\.Module; got int"):
        initopt.check(3)
    with pytest.raises(TypeError, match="did you mean 'select'"):
        initopt.check(mlp(), selct=["W"])
    with pytest.raises(ValueError, match="unknown remedy 'magic'; known are"):
        initopt.diagnose(mlp(), labelled(), tries=["magic"])
    with pytest.raises(ValueError, match="budget must be an integer of 0 or more"):
        initopt.diagnose(mlp(), labelled(), budget=-1)
    with pytest.raises(initopt.LoaderError, match="empty"):
        initopt.diagnose(mlp(), iter(()))


def test_assert_healthy_raises_with_every_finding():
    assert_healthy(mlp(), labelled()[0])
    model = SICK["weights_of_one_number"].make().model
    with pytest.raises(AssertionError, match=r"W106 error: 2\.weight: all its entries are 0\.1\. Draw it at random\."):
        assert_healthy(model)
    assert_healthy(model, ignore=["W106"])


def test_findings_fold_their_places():
    torch.manual_seed(0)
    (found,) = initopt.check(SICK["blocks_that_are_copies"].make().model)
    assert found.where == ("1.0.weight", "2.0.weight", "3.0.weight")
    assert found.place == "1-3.0.weight"


def test_a_target_network_may_be_a_frozen_copy():
    class Agent(nn.Module):
        def __init__(self):
            super().__init__()
            self.online, self.target = mlp(), mlp()
            self.target.load_state_dict(self.online.state_dict())
            self.target.requires_grad_(False)

    assert initopt.check(Agent()) == []


def test_fingerprints_tell_permutations_apart():
    one, other = nn.Linear(4, 4), nn.Linear(4, 4)
    other.weight.data.copy_(one.weight.data.flip(0))
    other.bias.data.copy_(one.bias.data)
    found = [fingerprints(weights_of(model)) for model in (one, other)]
    assert unlike(["weight", "bias"], found) == ["weight"]


def what_ranks_find():
    """Checks of replicas that differ and of shards that do not, on each rank; the codes and places that they find."""
    rank = dist.get_rank()
    torch.manual_seed(0)
    same = nn.Linear(4, 3)
    found = {"same": initopt.check(same, select=["S601"])}
    torch.manual_seed(rank)
    found["other"] = initopt.check(nn.Linear(4, 3), select=["S601"])
    wrapped = nn.parallel.DistributedDataParallel(nn.Linear(4, 3))
    found["wrapped"] = initopt.check(wrapped)
    with torch.no_grad():
        wrapped.module.bias.add_(rank)
    found["wrapped, changed"] = initopt.check(wrapped)
    if rank == 0:
        found["alone, of its own model"] = initopt.check(same)
    mesh = init_device_mesh("cpu", (2,))
    layer = nn.Linear(4, 4, bias=False)
    for name, seed in (("equal shards", 0), ("shards", rank)):
        torch.manual_seed(seed)
        layer.weight = nn.Parameter(DTensor.from_local(torch.randn(4, 4), mesh, [Shard(0)]))
        found[name] = initopt.check(layer)
    # One process holds a number of the bias, which is constant, and the other two; one row is on one process.
    for name, rows in (("uneven shards", 3), ("a shard for one", 1)):
        torch.manual_seed(0)
        layer = nn.Linear(4, rows)
        layer.weight, layer.bias = (nn.Parameter(distribute_tensor(p, mesh, [Shard(0)])) for p in layer.parameters())
        found[name] = initopt.check(layer)
    return {name: [(finding.rule, finding.where) for finding in findings] for name, findings in found.items()}


@pytest.mark.processes
def test_replicas_that_differ_and_shards_that_do_not():
    expected = {
        "same": [],
        "other": [("S601", ("weight", "bias"))],
        "wrapped": [],
        "wrapped, changed": [("S601", ("bias",))],
        "equal shards": [("S602", ("weight",))],
        "shards": [],
        "uneven shards": [],
        "a shard for one": [],
    }
    assert in_processes(what_ranks_find, 2) == [expected | {"alone, of its own model": []}, expected]


@pytest.mark.processes
def test_initopt_is_not_imported_slower():
    code = "import sys, initopt; assert not any(name.startswith('initopt.diagnosis') for name in sys.modules)"
    python(code).check_returncode()


def test_two_starts_of_one_architecture_are_compared():
    torch.manual_seed(0)
    assert initopt.check(mlp(), against=mlp()) == []
    other = mlp()
    for layer in (other[2], other[4]):
        nn.init.kaiming_normal_(layer.weight)
    (found,) = [f for f in initopt.check(mlp(), against=other) if f.severity != "note"][:1]
    assert found.rule == "W120"
    assert set(found.where) <= {"2.weight", "4.weight"}
    assert "in the other model" in found.text
    (note,) = initopt.check(mlp(), against=mlp(width=16), select=["W120"])
    assert note.severity == "note"
    with pytest.raises(TypeError, match="against must be"):
        initopt.check(mlp(), against="timm:resnet18")


def test_a_class_token_of_next_to_nothing_is_no_matrix():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.token = nn.Parameter(1e-6 * torch.randn(1, 16))
            self.inner = mlp()

        def forward(self, x):
            return self.inner(x + self.token)

    found = initopt.diagnose(Net(), labelled(), optimizer=lambda p: torch.optim.Adam(p, lr=1e-3), select=["O"])
    assert found.findings == ()
