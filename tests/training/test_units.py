"""meSimp in an LSTM: what a unit owns, what is counted, and that the smaller LSTM computes what the masked one does."""

import pytest
import torch
from torch import nn

import hwsim
from hwsim import PrecisionPlan, SparseBackprop
from hwsim.data.dataset import Dataset, Split
from hwsim.training import units
from hwsim.training.emulation import emulate
from hwsim.training.loop import train
from hwsim.training.recipe import Recipe
from hwsim.training.shrink import Link, hidden_links, shrink
from hwsim.training.simplification import Simplification
from hwsim.training.simplify import Simplifier
from hwsim.training.units import clear, has_units, living_units

HIDDEN, WORDS, CLASSES = 12, 5, 7


class Tagger(nn.Module):
    """Numbers in, an LSTM, a class for each step."""

    def __init__(self, **settings):
        super().__init__()
        self.settings = settings
        self.enter = nn.Linear(3, 6)
        self.lstm = nn.LSTM(6, HIDDEN, batch_first=True, **{k: v for k, v in settings.items() if k != "start"})
        self.fc = nn.Linear(HIDDEN * (2 if settings.get("bidirectional") else 1), CLASSES)

    def forward(self, x):
        start = self.settings.get("start")
        state = None if start is None else (torch.full((1, len(x), HIDDEN), start),) * 2
        states, _ = self.lstm(self.enter(x).tanh(), state)
        return self.fc(states)


class LastState(Tagger):
    """Something else reads what the LSTM ends with."""

    def forward(self, x):
        states, (last, _) = self.lstm(self.enter(x).tanh())
        return self.fc(states) + last[0, :, :1].unsqueeze(1)


def tagger(kind=Tagger, **settings):
    torch.manual_seed(0)
    return kind(**settings)


def sentences(rows=6):
    torch.manual_seed(1)
    return torch.randn(rows, WORDS, 3)


def dataset(rows=64):
    x = sentences(rows)
    y = (x.cumsum(1).sum(-1).abs() * 2).long().clamp(max=CLASSES - 1)
    y[:, -1] = -1  # padding
    split = Split(x.numpy(), y.numpy())
    return Dataset("steps", split, split, split, tuple("abcdefg"), "0" * 64)


def dead(*numbers, size=HIDDEN):
    return torch.isin(torch.arange(size), torch.tensor(numbers))


def test_links_go_into_an_lstm_and_out_of_it():
    x = sentences()
    assert hidden_links(tagger(), x) == (Link("enter", "lstm"), Link("lstm", "fc"))
    assert hidden_links(tagger(LastState), x) == (Link("enter", "lstm"),), "its last state is read elsewhere"
    assert hidden_links(tagger(start=0.5), x) == (Link("enter", "lstm"),), "a dead unit does not start at 0"
    assert hidden_links(tagger(start=0.0), x) == (Link("enter", "lstm"), Link("lstm", "fc"))
    for settings in ({"bidirectional": True}, {"num_layers": 2}, {"proj_size": 4}):
        assert not has_units(nn.LSTM(6, HIDDEN, **settings))
    assert hidden_links(tagger(bidirectional=True), x) == ()


def test_looking_for_links_leaves_the_network_as_it_was():
    model = tagger()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    hidden_links(model, sentences())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("order", ["sequential", "exact"])
@pytest.mark.parametrize("bias", [True, False])
def test_the_smaller_lstm_gives_the_same_bits(order, bias):
    model, x = tagger(bias=bias), sentences()
    clear(model.lstm, dead(0, 4, 11))
    clear(model.enter, dead(2, size=6))
    smaller = shrink(model, x[:2])
    assert (smaller.lstm.input_size, smaller.lstm.hidden_size, smaller.fc.in_features) == (5, 9, 9)
    assert smaller.lstm.weight_ih_l0.shape == (36, 5) and smaller.lstm.weight_hh_l0.shape == (36, 9)
    plan = PrecisionPlan.uniform("bfloat16", accumulator="bfloat16", order=order)
    outputs = []
    for network in (model, smaller):
        with emulate(network, plan), torch.no_grad():
            outputs.append(network(x))
    assert torch.equal(*outputs)
    assert torch.allclose(smaller(x), model(x), atol=1e-6), "and torch's own LSTM takes it"


@pytest.mark.parametrize("wrong", ["a living unit goes", "another column", "another gate"])
def test_removing_the_wrong_part_changes_the_outputs(wrong, monkeypatch):
    model, x = tagger(), sentences()
    clear(model.lstm, dead(0, 4))
    right = units.keep_units

    def mistaken(layer, living):
        if not isinstance(layer, nn.LSTM):
            return right(layer, living)
        whole = layer.weight_hh_l0.detach().clone()
        right(layer, living)
        rows = living.repeat(4)
        if wrong == "another column":
            layer.weight_hh_l0 = nn.Parameter(whole[rows][:, living.roll(1)].clone())
        elif wrong == "another gate":
            layer.weight_hh_l0 = nn.Parameter(whole[living.repeat_interleave(4)][:, living].clone())

    if wrong == "a living unit goes":
        monkeypatch.setattr("hwsim.training.shrink.living_units", lambda layer: living_units(layer) & ~dead(7))
    else:
        monkeypatch.setattr("hwsim.training.shrink.keep_units", mistaken)
    if wrong == "a living unit goes":
        model.enter = nn.Linear(3, HIDDEN)
        model.lstm = nn.LSTM(HIDDEN, HIDDEN, batch_first=True)
    smaller = shrink(model, x[:2])
    with emulate(model, "float32_sequential"), torch.no_grad():
        wanted = model(x)
    with emulate(smaller, "float32_sequential"), torch.no_grad():
        assert not torch.equal(smaller(x), wanted)


@pytest.mark.parametrize("rank_over", ["example", "batch"])
@pytest.mark.parametrize("together", [True, False])
def test_a_word_hits_a_unit_once_whichever_gates_are_kept(rank_over, together):
    """Against a count in plain Python, from the gradient at the gates and the definition of the ranking."""
    model, k = tagger(), 5 if together else 2
    sparse = SparseBackprop(k=k, rank_over=rank_over, gates="together" if together else "apart")
    emulation = emulate(model, "float32", sparse)
    simplifier = emulation.step.simplifier = Simplifier(Simplification(), sparse, model, sentences(2))
    seen = {}
    count = simplifier.count
    emulation.step.simplifier.count = lambda site, gradient, kept: (
        seen.setdefault(site, gradient.clone()), count(site, gradient, kept)
    )  # fmt: skip
    with emulation:
        scores = model(sentences())
        scores[:, :-2].square().sum().backward()  # the last two words have no gradient
    gradient = seen["lstm.l0.input"]
    parts = [range(4 * HIDDEN)] if together else [range(g * HIDDEN, (g + 1) * HIDDEN) for g in range(4)]
    score = gradient.abs().sum(0) if rank_over == "batch" else None
    wanted = [0] * HIDDEN
    for row in gradient.abs():
        ranked = row if score is None else score
        kept = [j for part in parts for j in sorted(part, key=lambda j: -float(ranked[j]))[:k]]
        for unit in {j % HIDDEN for j in kept if float(row[j])}:
            wanted[unit] += 1
    assert simplifier.hits["lstm"].tolist() == wanted and max(wanted) > 0
    assert simplifier.examples["lstm"] == 6 * (WORDS - 2), "padding is no example"


def test_removed_units_take_no_places_and_stay_removed_in_training():
    model = tagger()
    sparse = SparseBackprop(k=4, layers=("lstm*",))
    recipe = Recipe(
        batch=8, epochs=4, recorded_steps=2, simplify=Simplification(threshold=0.25, cycle_epochs=1, parts=2)
    )
    result = train(model, "float32", dataset(), sparse, recipe=recipe)
    left = result.summary.units
    assert set(left) == {"lstm"} and 0 < left["lstm"] < HIDDEN
    assert int(living_units(model.lstm).sum()) == left["lstm"] == result.summary.curves["average_dimension"][-1]
    gemms = {op.layer: op for op in result.workload.ops if str(op.gemm) == "output"}
    assert gemms["lstm.l0.input"].n == 4 * left["lstm"] and gemms["fc"].k == left["lstm"]
    assert gemms["lstm.l0.state"].k == left["lstm"], "recorded steps are the smaller network's"


def test_a_pattern_that_leaves_out_the_state_leaves_out_the_lstm():
    model, sparse = tagger(), SparseBackprop(k=4, layers=("enter", "lstm.l0.input"))
    assert set(Simplifier(Simplification(), sparse, model, sentences(2)).layers) == {"enter"}


def test_the_shipped_tagger_can_be_simplified():
    model = hwsim.load_model("lstm_pos_tagger", hidden=8)
    assert hidden_links(model, torch.ones(2, 4, 4, dtype=torch.int64)) == (Link("lstm", "fc"),)
