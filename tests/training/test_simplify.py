"""meSimp: what is counted, when units go, and that the smaller network computes what the masked one does."""

import pytest
import torch
from torch import nn

import hwsim
from hwsim import PrecisionPlan, SparseBackprop, SpecError
from hwsim.experiment import Experiment
from hwsim.pipeline import _trial_key
from hwsim.spec import load_yaml
from hwsim.training import loop
from hwsim.training import shrink as shrinking
from hwsim.training.emulation import emulate
from hwsim.training.loop import train
from hwsim.training.optimizer import Optimizer
from hwsim.training.recipe import Recipe
from hwsim.training.shrink import Link, hidden_links, shrink
from hwsim.training.simplification import Simplification
from hwsim.training.simplify import Simplifier, reset_moments
from hwsim.training.units import living_units

SPARSE = SparseBackprop(k=6)
QUICK = Recipe(
    batch=16,
    epochs=4,
    train_examples=320,
    evaluate_examples=100,
    recorded_steps=2,
    simplify=Simplification(threshold=0.1, cycle_epochs=1, parts=2),
)
EXPERIMENT = """
schema: experiment/1
name: small
model: mlp_digits
data: digits
training: {epochs: 2, simplify: {threshold: 0.1}}
configurations:
  topk: {sparse: {k: 6}}
"""


def perceptron(hidden=32):
    return hwsim.load_model("mlp_digits", hidden=hidden)


def images(rows=20):
    torch.manual_seed(0)
    return torch.rand(rows, 64)


def with_dead_units(model, dead=(0, 5, 9)):
    for name in ("fc1", "fc2"):
        layer = model.get_submodule(name)
        with torch.no_grad():
            layer.weight[list(dead)] = 0.0
            layer.bias[list(dead)] = 0.0
    return model


def counters(settings=None, sparse=SPARSE):
    return Simplifier(settings or Simplification(), sparse, perceptron(8), images(2))


# ---- counting and pruning


@pytest.mark.parametrize("rank_over", ["example", "batch"])
def test_hits_are_what_topk_keeps_and_zeros_are_none(rank_over):
    """Against a count in plain Python from the definition: the k largest magnitudes, those of 0 left out."""
    model, k = perceptron(8), 3
    sparse = SparseBackprop(k=k, rank_over=rank_over)
    emulation = emulate(model, "float32", sparse)
    simplifier = emulation.step.simplifier = Simplifier(Simplification(), sparse, model, images(2))
    seen = {}
    for name in ("fc1", "fc2"):
        model.get_submodule(name).register_full_backward_pre_hook(lambda m, g, name=name: seen.update({name: g[0]}))
    with emulation:
        model(images(6).requires_grad_()).square().sum().backward()
    for name, gradient in seen.items():
        wanted = [0] * 8
        score = gradient.abs().sum(0) if rank_over == "batch" else None
        for row in gradient.abs():
            order = sorted(range(8), key=lambda j: (-float(row[j] if score is None else score[j]), j))
            for unit in order[:k]:
                wanted[unit] += float(row[unit]) != 0
        assert simplifier.hits[name].tolist() == wanted
        assert simplifier.examples[name] == 6
    assert sum(sum(h.tolist()) for h in simplifier.hits.values()) < 2 * 6 * 8


def test_units_under_the_threshold_go_and_counting_starts_anew():
    simplifier = counters(Simplification(threshold=0.1))
    simplifier.hits["fc1"] = torch.tensor([0, 9, 10, 11, 50, 2, 10, 100])
    simplifier.examples["fc1"] = 109  # int(10.9) = 10 hits are enough, as in the authors' code
    simplifier.hits["fc2"] = torch.tensor([0, 3, 3, 0, 0, 0, 0, 0])
    simplifier.examples["fc2"] = 100  # nobody reaches 10: the most active one stays, the first of equals
    simplifier.prune()
    assert simplifier.living["fc1"].tolist() == [False, False, True, True, True, False, True, True]
    assert simplifier.living["fc2"].tolist() == [False, True, False, False, False, False, False, False]
    assert simplifier.average_dimension == (5 + 1) / 2
    assert simplifier.examples == {"fc1": 0, "fc2": 0} and int(simplifier.hits["fc1"].sum()) == 0
    simplifier.hits["fc1"][0], simplifier.examples["fc1"] = 100, 100
    simplifier.prune()
    assert not simplifier.living["fc1"][0], "what is removed never comes back"


def test_cycles_are_those_of_the_authors_code():
    rule = Simplification(threshold=0.1, cycle_epochs=5, parts=8)
    assert [epoch for epoch in range(20) if rule.prunes_in(epoch)] == [*range(5), *range(10, 15)]
    assert [epoch for epoch in range(20) if rule.resets_in(epoch)] == [4, 9, 14, 19]
    assert [step for step in range(1, 81) if rule.ends_part(step, 80)] == [10, 20, 30, 40, 50, 60, 70, 80]
    assert [step for step in range(1, 4) if rule.ends_part(step, 3)][-1] == 3, "the epoch's end is always a part's end"
    assert not any(Simplification(reset_moments=False).resets_in(epoch) for epoch in range(20))


def test_normal_cycles_count_and_remove_nothing():
    simplifier = counters(Simplification(cycle_epochs=5, parts=1))
    optimizer = Optimizer(perceptron(8), PrecisionPlan.uniform("float32"), Recipe())
    simplifier.examples = dict.fromkeys(simplifier.examples, 100)  # and no hits: everything is due to go
    simplifier.after_update(7, 10, 10, optimizer)
    assert simplifier.units == {"fc1": 8, "fc2": 8} and simplifier.examples["fc1"] == 100
    simplifier.after_update(10, 9, 10, optimizer)
    assert simplifier.units == {"fc1": 8, "fc2": 8}
    simplifier.after_update(10, 10, 10, optimizer)
    assert simplifier.units == {"fc1": 1, "fc2": 1}


def test_moments_are_reset_and_the_count_of_updates_is_not():
    model = perceptron(8)
    optimizer = Optimizer(model, PrecisionPlan.uniform("float32"), Recipe())
    model(images(4)).sum().backward()
    optimizer.update(0.001)
    assert any(bool(state.any()) for part in optimizer.parameters for state in part.states.values())
    reset_moments(optimizer)
    assert not any(bool(state.any()) for part in optimizer.parameters for state in part.states.values())
    assert optimizer.updates == 1


# ---- training


def test_removed_units_stay_removed_in_training():
    model = perceptron()
    result = train(model, "float32", "digits", SPARSE, recipe=QUICK)
    summary = result.summary
    dead = {name: int((~living_units(model.get_submodule(name))).sum()) for name in ("fc1", "fc2")}
    assert {name: 32 - units for name, units in summary.units.items()} == dead
    assert 0 < sum(dead.values()) < 64
    sizes = summary.curves["average_dimension"]
    assert sizes[-1] == sum(summary.units.values()) / 2 and sorted(sizes, reverse=True) == list(sizes)
    assert summary.average_dimension == sizes[summary.selected_epoch]
    gemms = {op.layer: op for op in result.workload.ops if str(op.gemm) == "output"}
    assert gemms["fc1"].n == summary.units["fc1"] == gemms["fc2"].k, "recorded steps are the smaller network's"


def test_without_holding_the_moments_would_bring_units_back(monkeypatch):
    """The break that `hold` prevents: Adam goes on moving a removed unit's weights."""
    monkeypatch.setattr(Simplifier, "hold", lambda self: None)
    model = perceptron()
    summary = train(model, "float32", "digits", SPARSE, recipe=QUICK).summary
    assert int(living_units(model.fc1).sum()) > summary.units["fc1"]


def test_a_killed_run_resumes_to_the_same_bits(tmp_path, monkeypatch):
    whole = train(perceptron(), "float32", "digits", SPARSE, recipe=QUICK)
    original, calls = loop._Run._evaluate, []

    def evaluate(run):
        calls.append(run)
        if len(calls) == 3:
            raise KeyboardInterrupt
        original(run)

    monkeypatch.setattr(loop._Run, "_evaluate", evaluate)
    with pytest.raises(KeyboardInterrupt):
        train(perceptron(), "float32", "digits", SPARSE, recipe=QUICK, out=tmp_path / "c")
    monkeypatch.undo()
    resumed = train(perceptron(), "float32", "digits", SPARSE, recipe=QUICK, out=tmp_path / "c", resume=True)
    assert resumed.summary.units == whole.summary.units and resumed.curves == whole.curves
    assert resumed.summary.hashes == whole.summary.hashes


# ---- the smaller network


@pytest.mark.parametrize("order", ["sequential", "exact"])
def test_the_smaller_network_gives_the_same_bits(order):
    model, x = with_dead_units(perceptron()), images()
    plan = PrecisionPlan.uniform("bfloat16", accumulator="bfloat16", order=order)
    smaller = shrink(model, x[:2])
    assert (smaller.fc1.out_features, smaller.fc2.in_features, smaller.fc2.out_features) == (29, 29, 29)
    assert model.fc1.weight.shape == (32, 64), "the given network stays as it is"
    with emulate(model, plan), torch.no_grad():
        wanted = model(x)
    with emulate(smaller, plan), torch.no_grad():
        ours = smaller(x)
    assert torch.equal(ours, wanted)


def test_a_product_of_0_is_not_nothing_to_a_kahan_sum():
    """Why `shrink` promises no bits there: the compensation is applied again, which about 1 % of these sums show."""
    plan = PrecisionPlan.uniform("bfloat16", accumulator="bfloat16", order="kahan")
    torch.manual_seed(0)
    left, x = [1, 2, 3, 5, 6, 7, 8, 9, 10], torch.randn(100, 12)
    x[:, [0, 4, 11]] = 0.0
    whole, part = nn.Linear(12, 7), nn.Linear(9, 7)
    part.weight, part.bias = nn.Parameter(whole.weight.detach()[:, left].clone()), whole.bias
    with emulate(whole, plan), torch.no_grad():
        wanted = whole(x)
    with emulate(part, plan), torch.no_grad():
        assert not torch.equal(part(x[:, left]), wanted)


@pytest.mark.parametrize("wrong", ["row", "column"])
def test_removing_the_wrong_unit_changes_the_outputs(wrong, monkeypatch):
    """The break: one living unit is taken for a dead one, in the layer alone or for its reader too."""
    model, x = with_dead_units(perceptron()), images()

    def mistaken(layer):
        living = living_units(layer)
        if wrong == "row":
            living[1] = False
        else:
            living[1], living[0] = False, True  # as many units, but not those
        return living

    monkeypatch.setattr(shrinking, "living_units", mistaken)
    smaller = shrink(model, x[:2])
    with emulate(model, "float32_sequential"), torch.no_grad():
        wanted = model(x)
    with emulate(smaller, "float32_sequential"), torch.no_grad():
        assert not torch.equal(smaller(x), wanted)


def test_fewer_units_show_in_the_cycles_and_energy_of_inference_and_of_training():
    model = with_dead_units(perceptron(), dead=range(0, 32, 2))
    machine = hwsim.load_accelerator("systolic_16x16")
    recipe = QUICK.model_copy(update={"epochs": 1, "simplify": None})
    costs = []
    for network in (model, shrink(model, images(2))):
        workload = train(network, "float32", "digits", recipe=recipe, initialize=False).workload
        result = hwsim.simulate(workload, machine)
        forward = sum(op.cycles for op in result.ops if str(op.phase) == "forward")
        costs.append((forward, result.cycles, result.energy_pj))
    assert all(smaller < masked for masked, smaller in zip(*costs, strict=True))


class Residual(nn.Module):
    """The hidden units are read by two."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(64, 8), nn.Linear(8, 8), nn.Linear(8, 10)

    def forward(self, x):
        h = self.a(x).relu()
        return self.c(h + self.b(h))


def test_only_units_that_one_layer_reads_can_go():
    x = images(2)
    assert hidden_links(perceptron(8), x) == (Link("fc1", "fc2"), Link("fc2", "fc3"))
    assert hidden_links(Residual(), x) == ()
    for between, removable in ((nn.Tanh(), 1), (nn.Dropout(0.5), 1), (nn.Sigmoid(), 0), (nn.LayerNorm(8), 0)):
        network = nn.Sequential(nn.Linear(64, 8), between, nn.Linear(8, 10))
        assert len(hidden_links(network, x)) == removable, between
        assert network.training and between.training


# ---- refusals, and the record's key


def test_what_does_not_fit_is_refused():
    with pytest.raises(SpecError, match="simplify: got no sparse backprop"):
        train(perceptron(), "float32", "digits", recipe=QUICK)
    with pytest.raises(SpecError, match="no hidden linear layer"):
        counters(sparse=SparseBackprop(k=2, layers=("fc3",)))
    with pytest.raises(SpecError, match="shrink: no hidden linear layer"):
        shrink(nn.Linear(64, 10), images(2))
    for text, message in (
        (EXPERIMENT.replace("sparse: {k: 6}", "precision: float32"), r"configurations\.topk\.sparse: missing"),
        (EXPERIMENT.replace("threshold: 0.1", "threshold: 2"), r"training\.simplify\.threshold: .*2"),
        (EXPERIMENT.replace("threshold: 0.1", "treshold: 0.1"), "Did you mean 'threshold'"),
    ):
        with pytest.raises(SpecError, match=message):
            load_yaml(text, Experiment)


def test_the_record_is_keyed_by_it():
    data = hwsim.data.dataset.load("digits")
    keys = []
    for threshold in ("0.1", "0.1", "0.2"):
        experiment = load_yaml(EXPERIMENT.replace("0.1", threshold), Experiment)
        keys.append(_trial_key(experiment, experiment.points()[0], 0, data))
    assert keys[0] == keys[1] != keys[2]
