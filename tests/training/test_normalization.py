"""Normalizations in the plan's statistics: against torch in float32, and against a scalar definition in any format."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional

import hwsim
from hwsim import PrecisionPlan, UnsupportedError
from hwsim.training.emulation import emulate, emulated
from hwsim.training.plan import Rule


def plan(casts=None, **macs):
    return PrecisionPlan("statistics", (Rule("*", casts or {"statistics": "float32"}, macs),))


LAYERS = {
    "batch norm": (lambda: nn.BatchNorm1d(6), (8, 6)),
    "batch norm of signals": (lambda: nn.BatchNorm1d(6), (4, 6, 5)),
    "batch norm of images": (lambda: nn.BatchNorm2d(6), (3, 6, 4, 5)),
    "batch norm, bare": (lambda: nn.BatchNorm2d(6, affine=False, momentum=None), (3, 6, 4, 5)),
    "batch norm, no averages": (lambda: nn.BatchNorm1d(6, track_running_stats=False), (8, 6)),
    "layer norm": (lambda: nn.LayerNorm(6), (4, 3, 6)),
    "layer norm of two axes": (lambda: nn.LayerNorm((5, 6), bias=False), (4, 5, 6)),
    "rms norm": (lambda: nn.RMSNorm(6), (4, 3, 6)),
    "group norm": (lambda: nn.GroupNorm(3, 6), (4, 6, 5)),
    "instance norm": (lambda: nn.InstanceNorm1d(6, affine=True), (4, 6, 5)),
}


def both_passes(layer, x, context):
    layer.train()
    x = x.clone().requires_grad_()
    with context:
        y = layer(x)
        (y * torch.linspace(-1, 2, y.numel()).reshape(y.shape)).sum().backward()
    layer.eval()
    with context, torch.no_grad():
        again = layer(x)
    return [y.detach(), x.grad, again, *(p.grad for p in layer.parameters()), *layer.buffers()]


@pytest.mark.parametrize("name", LAYERS)
def test_in_float32_each_layer_is_torchs_within_reassociation(name):
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    layer, x = make(), torch.randn(shape) * 2 + 1
    for p in layer.parameters():
        nn.init.uniform_(p, 0.5, 1.5)
    twin = copy.deepcopy(layer)
    for mine, theirs in zip(
        both_passes(layer, x, emulate(layer, plan())), both_passes(twin, x, emulate(twin, "float32")), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=2e-6)


def rounded(value, format):
    return float(hwsim.quantize(torch.tensor([value], dtype=torch.float64), format)[0])


def added(values, accumulator):
    total = 0.0
    for v in values:
        total = rounded(total + rounded(v, "float32"), accumulator)
    return total


def slow_norm(x, g, eps, fmt, accumulator):
    """The page of definitions in plain Python, for one group: y and the gradient at x."""
    n = len(x)
    mean = rounded(added(x, accumulator) / n, fmt)
    variance = rounded(added([(v - mean) ** 2 for v in x], accumulator) / n, fmt)
    scale = rounded(1 / math.sqrt(variance + eps), fmt)
    y = [rounded((v - mean) * scale, "float32") for v in x]
    a = rounded(added(g, accumulator) / n, fmt)
    b = rounded(added([v * w for v, w in zip(g, y, strict=True)], accumulator) / n, fmt)
    return y, [rounded((v - a - w * b) * scale, "float32") for v, w in zip(g, y, strict=True)]


@pytest.mark.parametrize(("fmt", "accumulator"), [("bfloat16", "float32"), ("float32", "e6m5"), ("e6m4", "bfloat16")])
def test_statistics_follow_their_definition_step_by_step(fmt, accumulator):
    torch.manual_seed(0)
    x, g = torch.randn(3, 40) + 3, torch.randn(3, 40)
    ours = x.clone().requires_grad_()
    with emulated(plan({"statistics": fmt}, reduce=accumulator)):
        y = functional.layer_norm(ours, (40,))
        y.backward(g)
    wanted = [slow_norm(r, s, 1e-5, fmt, accumulator) for r, s in zip(x.tolist(), g.tolist(), strict=True)]
    assert torch.equal(y.detach(), torch.tensor([w[0] for w in wanted]))
    assert torch.equal(ours.grad, torch.tensor([w[1] for w in wanted]))
    other = slow_norm(x[0].tolist(), g[0].tolist(), 1e-5, "float32", "float32")
    assert (y[0].tolist(), ours.grad[0].tolist()) != other, "the formats must show"


def test_running_averages_are_stored_as_statistics():
    layer = nn.BatchNorm1d(4)
    with emulate(layer, plan({"statistics": "float8_e4m3fn"})):
        layer(torch.randn(16, 4) * 3 + 2)
    for average in (layer.running_mean, layer.running_var):
        assert torch.equal(average, hwsim.quantize(average, "float8_e4m3fn"))
    assert not torch.equal(layer.running_var, torch.ones(4))


def test_gradients_of_scale_and_shift_are_sums_of_the_plan():
    """300 ones add up to 256 in bfloat16."""
    layer = nn.LayerNorm(2)
    x = torch.tensor([[1.0, -1.0]]).repeat(300, 1)
    with emulate(layer, plan({}, reduce="bfloat16")):
        layer(x).sum().backward()
    assert layer.bias.grad.tolist() == [256.0, 256.0]


@pytest.mark.parametrize("name", ["sum", "mean"])
@pytest.mark.parametrize("dim", [{}, {"dim": 1}, {"dim": (1, -1), "keepdim": True}])
def test_bare_sums_and_means_are_sums_of_the_plan(name, dim):
    x = torch.ones(3, 300, 2).requires_grad_()
    plain = getattr(x, name)(**dim)
    plain.sum().backward()
    wanted, x.grad = x.grad, None
    with emulated(plan({}, reduce="float32")):
        y = getattr(x, name)(**dim)
        y.sum().backward()
    assert torch.equal(y, plain) and torch.equal(x.grad, wanted)
    with emulated(plan({}, reduce="bfloat16")):
        assert not torch.equal(getattr(x, name)(**dim), plain), "bfloat16 stops counting at 256"


def test_results_and_gradients_are_stored_by_their_roles():
    x = torch.randn(4, 10).requires_grad_()
    casts = {"statistics": "bfloat16", "activation": "float8_e4m3fn", "activation_gradient": "float8_e5m2"}
    with emulated(plan(casts)):
        y = functional.layer_norm(x, (10,))
        y.backward(torch.randn(4, 10))
    assert torch.equal(y, hwsim.quantize(y, "float8_e4m3fn"))
    assert torch.equal(x.grad, hwsim.quantize(x.grad, "float8_e5m2"))


def test_instance_norm_with_averages_is_refused():
    layer = nn.InstanceNorm1d(4, track_running_stats=True)
    with pytest.raises(UnsupportedError, match="running statistics is not emulated"), emulate(layer, plan()):
        layer(torch.randn(2, 4, 5))
