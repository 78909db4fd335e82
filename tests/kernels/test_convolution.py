"""The three GEMMs of a convolution: exact where everything is, in im2col's order, equal on every back end."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from torch.nn import functional

import hwsim
from hwsim.errors import SpecError
from hwsim.kernels import conv_grad_input, conv_grad_weight, conv_output, matmul


def integers(rng, *shape):
    return rng.integers(-4, 5, shape).astype(np.float32)


@pytest.mark.parametrize("flat", [False, True])
def test_small_integers_give_what_torch_gives(flat):
    """Every sum is exact in float32, so any order gives the same: geometry alone is tested."""
    rng = np.random.default_rng(0)
    convolve = functional.conv1d if flat else functional.conv2d
    for stride, padding, dilation, groups in product((1, 2, 3), (0, 1, 3), (1, 2), (1, 2)):
        x = integers(rng, 2, 4, *([9] if flat else [9, 8]))
        w = integers(rng, 6, 4 // groups, *([3] if flat else [3, 2]))
        xt, wt = torch.from_numpy(x).requires_grad_(), torch.from_numpy(w).requires_grad_()
        y = convolve(xt, wt, None, stride, padding, dilation, groups)
        g = integers(rng, *y.shape)
        y.backward(torch.from_numpy(g))
        how = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        assert np.array_equal(conv_output(x, w, **how), y.detach().numpy()), how
        assert np.array_equal(conv_grad_input(g, w, x.shape, **how), xt.grad.numpy()), how
        assert np.array_equal(conv_grad_weight(g, x, w.shape, **how), wt.grad.numpy()), how


@pytest.mark.parametrize("mac", ["bfloat16 stochastic", "e5m3, order=chunked(4)", "float16, order=pairwise",
                                 "h200.bfloat16.float32.mma"])  # fmt: skip
def test_compiled_convolutions_equal_the_reference(mac):
    rng = np.random.default_rng(1)
    x, w = rng.standard_normal((2, 3, 7, 6)).astype(np.float32), rng.standard_normal((4, 3, 3, 2)).astype(np.float32)
    bias, how = rng.standard_normal(4).astype(np.float32), {"stride": 2, "padding": 1, "stream": 9}
    g = rng.standard_normal(conv_output(x, w, **how).shape).astype(np.float32)
    results = []
    for name in ("numba", "reference"):
        with hwsim.backend(name):
            results.append((conv_output(x, w, mac, bias=bias, **how), conv_grad_input(g, w, x.shape, mac, **how),
                            conv_grad_weight(g, x, w.shape, mac, **how)))  # fmt: skip
    for got, expected in zip(*results, strict=True):
        assert np.array_equal(got.view(np.uint32), expected.view(np.uint32))


def test_the_order_is_that_of_im2col():
    """An independent lowering by torch's unfold, in a format where order matters."""
    rng = np.random.default_rng(2)
    x, w = rng.standard_normal((2, 3, 6, 6)).astype(np.float32), rng.standard_normal((5, 3, 3, 3)).astype(np.float32)
    columns = functional.unfold(torch.from_numpy(x), 3, padding=1).numpy()
    got = conv_output(x, w, "e5m3", padding=1)
    expected = np.stack([matmul(w.reshape(5, -1), c, "e5m3") for c in columns]).reshape(got.shape)
    assert np.array_equal(got, expected)
    backwards = np.stack([matmul(w.reshape(5, -1)[:, ::-1], c[::-1], "e5m3") for c in columns]).reshape(got.shape)
    assert not np.array_equal(got, backwards)  # the deliberate break: the other direction of k
    g = rng.standard_normal(got.shape).astype(np.float32)
    rows = g.transpose(1, 0, 2, 3).reshape(5, -1)
    expected = matmul(rows, columns.transpose(0, 2, 1).reshape(-1, 27), "e5m3").reshape(w.shape)
    assert np.array_equal(conv_grad_weight(g, x, w.shape, "e5m3", padding=1), expected)


def test_torch_tensors_and_native_order():
    x, w = torch.randn(2, 3, 8), torch.randn(4, 3, 3)
    got = conv_output(x, w, "float32, order=native", bias=torch.ones(4), padding=1)
    assert torch.equal(got, functional.conv1d(x, w, torch.ones(4), padding=1))
    assert torch.allclose(conv_output(x, w, "float32", bias=torch.ones(4), padding=1), got, atol=1e-5)


@pytest.mark.parametrize(("shapes", "how", "message"), [
    (((1, 3, 4, 4), (2, 2, 3, 3)), {}, "got 3 channels"),
    (((1, 3, 4, 4), (2, 3, 5, 5)), {}, "expected an output"),
    (((1, 3, 4), (2, 3, 3, 3)), {}, "got shapes"),
    (((1, 3, 4, 4), (2, 3, 3, 3)), {"padding": "same"}, "padding 'same'"),
])  # fmt: skip
def test_shapes_that_do_not_fit_are_named(shapes, how, message):
    x, w = (np.zeros(shape, np.float32) for shape in shapes)
    with pytest.raises(SpecError, match=message):
        conv_output(x, w, **how)
