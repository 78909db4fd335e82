"""Convolutions: the kernels against im2col written out, and against the definition on small integers."""

import pytest
import torch
from torch import nn

import hwsim
from hwsim import PrecisionPlan
from hwsim.training import convolution
from hwsim.training.emulation import emulate

SHAPES = {  # channels in, out, kernel, stride, padding, dilation, groups
    "plain": (3, 5, 3, 1, 1, 1, 1),
    "strided": (4, 6, 3, 2, 1, 1, 1),
    "uneven stride": (2, 4, (3, 2), (3, 2), (0, 1), 1, 1),
    "dilated groups": (4, 6, 3, 1, 2, 2, 2),
    "depthwise": (4, 4, 3, 2, 1, 1, 4),
    "one by one": (6, 3, 1, 2, 0, 1, 1),
}


def gradients(layer, x, g, plan):
    layer.zero_grad()
    x = x.detach().clone().requires_grad_()
    with emulate(layer, plan):
        y = layer(x)
        y.backward(g)
    return [y.detach(), x.grad, layer.weight.grad.clone(), layer.bias.grad.clone()]


@pytest.mark.parametrize("order", ["sequential", "chunked(8, float32)"])
@pytest.mark.parametrize("name", SHAPES)
def test_kernels_give_the_bits_of_im2col(name, order, monkeypatch):
    inputs, outputs, kernel, stride, padding, dilation, groups = SHAPES[name]
    torch.manual_seed(0)
    layer = nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, groups)
    x = torch.randn(2, inputs, 9, 8)
    g = torch.randn(layer(x).shape)
    plan = PrecisionPlan.uniform("float8_e4m3fn", "float8_e5m2", "bfloat16", order=order)
    fast = gradients(layer, x, g, plan)
    monkeypatch.setattr(convolution, "has_kernels", lambda x: False)
    written = gradients(layer, x, g, plan)
    assert all(torch.equal(a, b) for a, b in zip(fast, written, strict=True))
    other = gradients(layer, x, g, PrecisionPlan.uniform("float8_e4m3fn", "float8_e5m2", "bfloat16", order="pairwise"))
    assert not all(torch.equal(a, b) for a, b in zip(fast, other, strict=True)), "another order must show"


@pytest.mark.parametrize("name", SHAPES)
def test_blocks_run_along_the_reduced_axis_of_each_gemm(name):
    """With block scales of 1 and values that the elements hold, block formats change nothing."""
    inputs, outputs, kernel, stride, padding, dilation, groups = SHAPES[name]
    torch.manual_seed(0)
    layer = nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, groups)
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_(torch.randint(-3, 4, p.shape).float())
    x = torch.randint(-3, 4, (2, inputs, 9, 8)).float()
    g = torch.randint(-3, 4, layer(x).shape).float()
    exact = gradients(layer, x, g, "float32_sequential")
    blocks = gradients(layer, x, g, PrecisionPlan.uniform("mxfp8_e4m3", accumulator="float32"))
    assert all(torch.equal(a, b) for a, b in zip(exact, blocks, strict=True))
    scaled = gradients(layer, x * 1.37, g, PrecisionPlan.uniform("mxfp4_e2m1", accumulator="float32"))
    assert not torch.equal(scaled[0], gradients(layer, x * 1.37, g, "float32_sequential")[0])


def test_bias_joins_the_accumulator_before_the_result_is_stored():
    layer = nn.Conv2d(1, 1, 1)
    with torch.no_grad():
        layer.weight.fill_(1.0)
        layer.bias.fill_(2.0**-9)
    plan = PrecisionPlan.uniform("float32", accumulator="bfloat16")
    with emulate(layer, plan):
        y = layer(torch.full((1, 1, 1, 1), 1.0))
    assert float(y.detach()) == 1.0 == float(hwsim.quantize(torch.tensor(1.0 + 2**-9), "bfloat16"))
