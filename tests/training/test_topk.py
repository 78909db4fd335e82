"""Top-k in the backward pass against its definition in plain torch, and in every order of accumulation."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import hwsim
from hwsim import PrecisionPlan, SparseBackprop, SpecError
from hwsim.training.emulation import emulate
from hwsim.training.plan import Rule


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 40), nn.ReLU(), nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 5))


def batch():
    torch.manual_seed(1)
    return torch.randn(16, 12), torch.randint(0, 5, (16,))


def gradients(net, context):
    net.zero_grad()
    x, y = batch()
    with context:
        functional.cross_entropy(net(x), y).backward()
    return {name: p.grad.clone() for name, p in net.named_parameters()}


def masked(net, k, rank_over):
    """The same gradients by a mask behind each hidden layer, in plain torch; bias gradients from the full gradient."""
    x, y = batch()
    outputs = {}

    class Thin(torch.autograd.Function):
        @staticmethod
        def forward(ctx, z, name):
            ctx.name = name
            return z.clone()

        @staticmethod
        def backward(ctx, g):
            outputs[ctx.name] = g
            score = g.abs() if rank_over == "example" else g.abs().sum(0, keepdim=True).expand_as(g)
            chosen = torch.zeros_like(g).scatter(1, score.topk(k, dim=1).indices, 1.0)
            return g * chosen, None

    net.zero_grad()
    h = torch.relu(Thin.apply(net[0](x), "0"))
    h = torch.relu(Thin.apply(net[2](h), "2"))
    functional.cross_entropy(net[4](h), y).backward()
    wanted = {name: p.grad.clone() for name, p in net.named_parameters()}
    return wanted | {f"{name}.bias": g.sum(0) for name, g in outputs.items()}


@pytest.mark.parametrize("plan", ["float32", "float32_sequential"])
@pytest.mark.parametrize("rank_over", ["example", "batch"])
def test_gradients_are_those_of_a_mask(rank_over, plan):
    net = network()
    wanted = masked(net, 6, rank_over)
    ours = gradients(net, emulate(net, plan, SparseBackprop(k=6, rank_over=rank_over)))
    for name, gradient in wanted.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-5, atol=1e-7)
    full = gradients(net, emulate(net, plan))
    assert not torch.allclose(ours["0.weight"], full["0.weight"], rtol=1e-2), "top-k must do something"


def test_output_layer_is_left_out_unless_asked_for():
    net = network()
    full = gradients(net, emulate(net, "float32"))
    without = gradients(net, emulate(net, "float32", SparseBackprop(k=2)))
    with_it = gradients(net, emulate(net, "float32", SparseBackprop(k=2, output_layer=True)))
    assert torch.equal(without["4.weight"], full["4.weight"])
    assert not torch.equal(with_it["4.weight"], full["4.weight"])


def test_layers_are_chosen_by_pattern():
    net = network()
    full = gradients(net, emulate(net, "float32"))
    some = gradients(net, emulate(net, "float32", SparseBackprop(k=2, layers=("0",))))
    assert torch.equal(some["2.weight"], full["2.weight"])
    assert not torch.equal(some["0.weight"], full["0.weight"])


@pytest.mark.parametrize("order", ["sequential", "chunked(4)", "pairwise", "kahan", "exact"])
@pytest.mark.parametrize("rank_over", ["example", "batch"])
def test_positions_are_those_of_the_gathered_operands(rank_over, order):
    """Contracts A7, on one layer, row by row against the public matmul."""
    plan = PrecisionPlan.uniform("bfloat16", accumulator="bfloat16", order=order)
    torch.manual_seed(2)
    layer, x, g = nn.Linear(10, 24), torch.randn(6, 10, requires_grad=True), torch.randn(6, 24)
    with emulate(layer, plan, SparseBackprop(k=7, rank_over=rank_over, output_layer=True)):
        layer(x).backward(g)
    kept = hwsim.select_topk(g, 7, rank_over=rank_over)
    weight, read = hwsim.quantize(layer.weight.detach(), "bfloat16"), hwsim.quantize(g, "bfloat16")
    for row in range(6):
        columns = torch.from_numpy(kept.row(row).astype(np.int64))
        wanted = hwsim.matmul(read[row : row + 1, columns], weight[columns], plan.rules[0].macs["grad_input"])
        assert torch.equal(x.grad[row], wanted[0])
    if rank_over == "batch":
        product = hwsim.matmul(
            read[:, columns].t(), hwsim.quantize(x.detach(), "bfloat16"), plan.rules[0].macs["grad_weight"]
        )
        assert torch.equal(layer.weight.grad[columns], product)
    assert torch.count_nonzero(layer.weight.grad.abs().sum(1)) <= len(np.unique(kept.indices))


def test_memory_adds_what_was_dropped():
    net = nn.Linear(4, 6)
    context = emulate(net, "float32", SparseBackprop(k=2, memory=0.5, output_layer=True))
    x, g = torch.ones(1, 4), torch.tensor([[3.0, 2.0, -1.0, 0.5, 0.0, -4.0]])
    found = []
    for _ in range(2):
        net.zero_grad()
        with context:
            net(x).backward(g)
        found.append(net.weight.grad[:, 0].tolist())
    assert found[0] == [3.0, 0.0, 0.0, 0.0, 0.0, -4.0]
    # remembered: 2, -1, 0.5; half of it joins: 3, 3, -1.5, 0.75, 0, -4; of the two equal ones the lower index wins
    assert found[1] == [3.0, 0.0, 0.0, 0.0, 0.0, -4.0]
    (memory,) = context.step.memories.values()
    assert memory.tolist() == [[0, 3.0, -1.5, 0.75, 0, 0]]


def test_random_score_keeps_other_columns_each_step_and_repeats():
    net = network()
    sparse = SparseBackprop(k=5, rank_over="batch", score="random")

    def kept(seed, step):
        context = emulate(net, "float32", sparse, seed=seed)
        context.begin(step)
        return gradients(net, context)["2.weight"].abs().sum(1).nonzero().flatten().tolist()

    assert kept(0, 0) == kept(0, 0) and len(kept(0, 0)) == 5
    assert kept(0, 0) != kept(0, 1) != kept(1, 1)


def test_ranking_after_the_cast_sees_ties():
    g = torch.tensor([[1.0, 1.01, 0.5, 1.02]])
    layer = nn.Linear(2, 4)
    for rank, kept in (("before_cast", [3]), ("after_cast", [0])):
        plan = PrecisionPlan("coarse", (Rule("*", {"gradient": "float8_e5m2"}),))
        layer.zero_grad()
        with emulate(layer, plan, SparseBackprop(k=1, rank=rank, output_layer=True)):
            layer(torch.ones(1, 2)).backward(g)
        assert layer.weight.grad.abs().sum(1).nonzero().flatten().tolist() == kept


def test_layers_may_have_a_k_of_their_own():
    net = network()
    sparse = SparseBackprop(k=9, rank_over="batch", per_layer=(("2", 3),), schedule=((0, 5),))
    found = gradients(net, emulate(net, "float32", sparse))
    kept = {name: int(found[f"{name}.weight"].any(1).sum()) for name in ("0", "2")}
    assert kept == {"0": 5, "2": 3}, "the schedule acts on layers without an amount of their own"
    for settings in ({"k": 2, "per_layer": (("2", 0.5),)}, {"fraction": 0.2, "per_layer": (("2", 3),)}):
        with pytest.raises(SpecError, match="per_layer"):
            SparseBackprop(**settings)


def test_schedule_replaces_k_from_an_epoch_on():
    sparse = SparseBackprop(fraction=1.0, schedule=((0, 1.0), (3, 0.1)))
    assert [sparse.kept(50, epoch) for epoch in (0, 2, 3, 9)] == [50, 50, 5, 5]


@pytest.mark.parametrize("unit", ["element", "channel"])
@pytest.mark.parametrize("rank_over", ["example", "batch"])
def test_convolutions_keep_elements_or_channels(unit, rank_over):
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 8, 3, padding=1)
    x, g = torch.randn(4, 3, 6, 6, requires_grad=True), torch.randn(4, 8, 6, 6)
    sparse = SparseBackprop(k=3 if unit == "channel" else 20, rank_over=rank_over, unit=unit, output_layer=True)
    found = []
    for plan in ("float32", "float32_sequential"):
        x.grad = None
        layer.zero_grad()
        with emulate(layer, plan, sparse):
            layer(x).backward(g)
        found.append((x.grad, layer.weight.grad.clone()))
    score = g.abs() if unit == "element" else g.abs().sum((2, 3), keepdim=True).expand_as(g)
    flat = score.flatten(1) if unit == "element" else score[:, :, 0, 0]
    flat = flat if rank_over == "example" else flat.sum(0, keepdim=True).expand_as(flat)
    chosen = torch.zeros_like(flat).scatter(1, flat.topk(sparse.k, dim=1).indices, 1.0)
    mask = chosen.reshape(g.shape) if unit == "element" else chosen[:, :, None, None]
    twin = x.detach().clone().requires_grad_()
    y = functional.conv2d(twin, layer.weight, layer.bias, padding=1)
    wanted = torch.autograd.grad(y, (twin, layer.weight), g * mask)
    for ours in found:
        for mine, plain in zip(ours, wanted, strict=True):
            torch.testing.assert_close(mine, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"k": 3, "fraction": 0.1}, "got both k and fraction"),
        ({}, "got neither k and fraction"),
        ({"k": 0}, "sparse.k: got 0"),
        ({"fraction": 1.5}, r"sparse.fraction: got 1.5, expected a share in \(0, 1\]"),
        ({"k": 1, "rank_over": "row"}, "sparse.rank_over: got 'row', expected 'example' or 'batch'"),
        ({"k": 1, "memory": 1.0}, "sparse.memory: got 1.0"),
        ({"k": 1, "memory": 0.5, "unit": "channel"}, "memory is of elements"),
    ],
)
def test_mistakes_are_named(settings, said):
    with pytest.raises(SpecError, match=said):
        SparseBackprop(**settings)
