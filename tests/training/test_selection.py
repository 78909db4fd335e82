"""Rankings of recurrent gates, ties, and the statistics of layers that a step calls more than once."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from hwsim import SparseBackprop, kernels
from hwsim.data.dataset import Dataset, Split
from hwsim.training.emulation import emulate
from hwsim.training.loop import train
from hwsim.training.recipe import Recipe
from hwsim.training.sparsity import example_overlap
from hwsim.training.ties import column_scores, decided_by_ties
from hwsim.workload import OpKind, Selection

HIDDEN, INPUTS, ROWS = 6, 5, 3


class Thin(torch.autograd.Function):
    """The gradient with all but the k largest of each gate (or of all gates) set to 0, by example or over the batch."""

    @staticmethod
    def forward(ctx, z, k, gates, rank_over):
        ctx.settings = k, gates, rank_over
        return z.clone()

    @staticmethod
    def backward(ctx, g):
        k, gates, rank_over = ctx.settings
        parts = []
        for part in g.chunk(gates, 1):
            score = part.abs() if rank_over == "example" else part.abs().sum(0, keepdim=True).expand_as(part)
            parts.append(part * torch.zeros_like(part).scatter(1, score.topk(k, dim=1).indices, 1.0))
        return torch.cat(parts, 1), None, None, None


def lstm_by_hand(lstm, x, *thin):
    """The LSTM step by step in plain torch, each linear map behind a `Thin`; biases get the full gradient."""
    h = c = torch.zeros(x.shape[1], HIDDEN)
    outputs = []
    for step in x:
        gates = Thin.apply(step @ lstm.weight_ih_l0.t(), *thin) + lstm.bias_ih_l0
        gates = gates + Thin.apply(h @ lstm.weight_hh_l0.t(), *thin) + lstm.bias_hh_l0
        i, f, g, o = gates.chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        outputs.append(h)
    return torch.stack(outputs)


@pytest.mark.parametrize("rank_over", ["example", "batch"])
@pytest.mark.parametrize("gates", ["together", "apart"])
def test_gates_of_an_lstm_are_ranked_together_or_apart(gates, rank_over):
    torch.manual_seed(0)
    lstm = nn.LSTM(INPUTS, HIDDEN)
    # One time step: the gradient of all input rows is then the gradient of one state row, and both ways agree.
    x = torch.randn(1, ROWS, INPUTS)
    target = torch.randn(1, ROWS, HIDDEN)
    sparse = SparseBackprop(k=2, gates=gates, rank_over=rank_over, output_layer=True)
    with emulate(lstm, "float32", sparse):
        (lstm(x)[0] * target).sum().backward()
    ours = {name: p.grad.clone() for name, p in lstm.named_parameters()}
    lstm.zero_grad()
    (lstm_by_hand(lstm, x, 2, 4 if gates == "apart" else 1, rank_over) * target).sum().backward()
    for name, p in lstm.named_parameters():
        torch.testing.assert_close(ours[name], p.grad, rtol=1e-5, atol=1e-6)
    rows = int(ours["weight_ih_l0"].any(1).sum())  # the forget gate has no gradient in the first time step
    assert rows == (6 if gates == "apart" else 2) if rank_over == "batch" else rows > 0


def test_gates_apart_hold_over_all_time_steps():
    torch.manual_seed(1)
    lstm = nn.LSTM(INPUTS, HIDDEN)
    x, target = torch.randn(4, ROWS, INPUTS), torch.randn(4, ROWS, HIDDEN)
    with emulate(lstm, "float32", SparseBackprop(k=2, gates="apart", output_layer=True)):
        (lstm(x)[0] * target).sum().backward()
    ours = {name: p.grad.clone() for name, p in lstm.named_parameters()}
    lstm.zero_grad()
    (lstm_by_hand(lstm, x, 2, 4, "example") * target).sum().backward()  # by example, rows are ranked alone
    for name, p in lstm.named_parameters():
        torch.testing.assert_close(ours[name], p.grad, rtol=1e-5, atol=1e-6)


def test_k_of_a_whole_gate_is_dense():
    torch.manual_seed(0)
    lstm, x = nn.LSTM(INPUTS, HIDDEN), torch.randn(3, ROWS, INPUTS)
    found = []
    for sparse in (None, SparseBackprop(k=HIDDEN, gates="apart", output_layer=True)):
        lstm.zero_grad()
        with emulate(lstm, "float32_sequential", sparse):
            lstm(x)[0].square().sum().backward()
        found.append([p.grad.clone() for p in lstm.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_a_feed_forward_layer_has_one_gate():
    torch.manual_seed(0)
    layer, x, g = nn.Linear(4, 8), torch.randn(2, 4), torch.randn(2, 8)
    kept = []
    for gates in ("together", "apart"):
        layer.zero_grad()
        with emulate(layer, "float32", SparseBackprop(k=3, gates=gates, output_layer=True)):
            layer(x).backward(g)
        kept.append(layer.weight.grad.clone())
    assert torch.equal(*kept)


def test_ties_count_places_that_the_lowest_index_got():
    scores = np.array(
        [
            [4.0, 2.0, 2.0, 2.0, 1.0],  # keeps 4 and one of three 2s: one place by the tie rule
            [4.0, 2.0, 2.0, 0.0, 0.0],  # keeps all: the two 2s are both there
            [0.0, 0.0, 0.0, 0.0, 0.0],  # keeps nothing
            [3.0, 3.0, 3.0, 3.0, 3.0],  # two of five equals
        ],
        np.float32,
    )
    for kept, wanted in ((2, 1 + 1 + 2), (3, 2 + 0 + 3)):
        found = kernels.select_topk(scores, kept)
        assert decided_by_ties(scores, found.indices, found.offsets) == wanted
    scores[0, 2] = 2.5  # the deliberate break: without the equal one, no place of row 0 is a tie's
    found = kernels.select_topk(scores, 2)
    assert decided_by_ties(scores, found.indices, found.offsets) == 3


def test_ties_agree_with_a_count_of_outcomes():
    """A place is a tie's exactly if handing indices out in reverse order would give it to another element."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        g = rng.integers(-3, 4, (5, 12)).astype(np.float32)
        forward, backward = kernels.select_topk(g, 4), kernels.select_topk(g[:, ::-1].copy(), 4)
        moved = 0
        for r in range(5):
            ours, theirs = set(forward.row(r)), {11 - int(i) for i in backward.row(r)}
            if ours != theirs:
                lowest = min(abs(g[r, i]) for i in ours)
                moved += sum(abs(g[r, i]) == lowest for i in ours)
        assert decided_by_ties(np.abs(g), forward.indices, forward.offsets) == moved


def test_columns_are_scored_as_the_kernel_scores_them():
    rng = np.random.default_rng(1)
    g = rng.normal(size=(40, 30)).astype(np.float32)
    scores = column_scores(g)
    best = np.sort(np.argsort(-scores[0], kind="stable")[:7])
    assert np.array_equal(best, kernels.select_topk(g, 7, rank_over="batch").indices)


class Tagger(nn.Module):
    """A small LSTM with a class for each position."""

    def __init__(self):
        super().__init__()
        self.lstm, self.fc = nn.LSTM(INPUTS, HIDDEN, batch_first=True), nn.Linear(HIDDEN, 4)

    def forward(self, x):
        return self.fc(self.lstm(x)[0])


def tagging() -> Dataset:
    rng = np.random.default_rng(0)
    split = Split(rng.normal(size=(8, 3, INPUTS)).astype(np.float32), rng.integers(0, 4, (8, 3)))
    return Dataset("noise", split, split, split, tuple("0123"), "0")


def test_statistics_of_a_recurrent_layer_hold_all_its_calls():
    result = train(
        Tagger(), data=tagging(), sparse=SparseBackprop(k=2, gates="apart"), recipe=Recipe(batch=4, epochs=1)
    )
    found = {layer.layer: layer for layer in result.summary.sparsity}
    assert set(found) == {"lstm.l0.state", "lstm.l0.input"}
    state = found["lstm.l0.state"]
    calls = [
        result.workload.selections[op.selection]
        for op in result.workload.ops
        if op.kind is OpKind.SELECT and op.layer == "lstm.l0.state"
    ]
    assert len(calls) == 3, "one for each word"
    steps = range(len(result.workload.recorded_steps))
    touched = [len(set().union(*(set(c.union(s).tolist()) for c in calls))) / state.extent for s in steps]
    assert state.union_share == pytest.approx(np.mean(touched))
    assert state.kept_share == pytest.approx((6 + 8 + 8) / 3 / 24), "the first forget gate has no gradient: no kept 0"
    assert 0 < state.norm_share < 1 and state.tie_share == 0
    for call in calls:
        for step in steps:
            of_gate = np.bincount(call.indices[step] // HIDDEN, minlength=4)
            assert set(of_gate[[0, 2, 3]]) == {2 * call.rows} and of_gate[1] in (0, 2 * call.rows), "two of each gate"


def test_a_coarse_format_makes_ties_and_the_statistic_shows_them():
    shares = {}
    for rank in ("before_cast", "after_cast"):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(3 * INPUTS, 40), nn.ReLU(), nn.Linear(40, 4))
        rng = np.random.default_rng(0)
        split = Split(rng.normal(size=(8, 3, INPUTS)).astype(np.float32), rng.integers(0, 4, 8))
        data = Dataset("noise", split, split, split, tuple("0123"), "0")
        sparse = SparseBackprop(k=6, rank=rank)
        result = train(net, "fp8_hybrid", data, sparse=sparse, recipe=Recipe(batch=4, epochs=1))
        shares[rank] = result.summary.sparsity[0].tie_share
    assert shares["before_cast"] < 0.05 < shares["after_cast"]


def test_rows_that_keep_nothing_do_not_count_as_overlap():
    offsets = np.array([0, 2, 4, 4, 4], np.int64)
    selection = Selection("s", "example", "element", 4, 8, 2, (np.array([0, 1, 0, 2], np.int32),), (offsets,))
    assert example_overlap(selection, 0) == pytest.approx((1 / 3 + 0) / 2)


def test_another_k_gives_other_gradients():
    """The twin in plain torch must be able to disagree."""
    torch.manual_seed(0)
    lstm, x = nn.LSTM(INPUTS, HIDDEN), torch.randn(2, ROWS, INPUTS)
    grads = []
    for k in (1, 2):
        lstm.zero_grad()
        functional.mse_loss(lstm_by_hand(lstm, x, k, 4, "example"), torch.zeros(2, ROWS, HIDDEN)).backward()
        grads.append(lstm.weight_hh_l0.grad.clone())
    assert not torch.allclose(*grads)
