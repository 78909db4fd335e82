"""The fast float32 backward pass against the general one, and gradients whose memory is used again."""

import numpy as np
import pytest
import torch
from torch import nn

import hwsim.kernels
from hwsim import SparseBackprop, emulate
from hwsim.errors import SpecError
from hwsim.kernels.numba_cpu import columns, rows, select
from hwsim.training import linear, native
from hwsim.training.gradient_buffers import GradientBuffers

SPARSE = {
    "dense": None,
    "few by example": SparseBackprop(k=3, rank_over="example", output_layer=True),
    "many by example": SparseBackprop(k=20, rank_over="example", output_layer=True),
    "over the batch": SparseBackprop(k=3, rank_over="batch", output_layer=True),
    "most over the batch": SparseBackprop(k=30, rank_over="batch", output_layer=True),
}


def network(width=33):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(70, width), nn.ReLU(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 5))


def gradients(net, x, context):
    net.zero_grad()
    x = x.detach().requires_grad_()
    with context:
        net(x.t()).square().sum().backward()  # an input that is not contiguous
    return [x.grad, *(p.grad for p in net.parameters())]


@pytest.mark.parametrize("name", SPARSE)
def test_the_fast_pass_is_the_general_one(name, monkeypatch):
    monkeypatch.setattr(native, "BREAK_EVEN", 0.3)
    net, x = network(), torch.randn(70, 9)
    fast = gradients(net, x, emulate(net, "float32", SPARSE[name]))
    monkeypatch.setattr(linear, "is_native", lambda gradient, site: False)
    general = gradients(net, x, emulate(net, "float32", SPARSE[name]))
    for a, b in zip(fast, general, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
        assert torch.equal(a == 0, b == 0), "what was dropped is exactly 0"
    if SPARSE[name]:
        assert (fast[3] == 0).all(1).any() or name.startswith(("many", "most")), "rows that nobody kept"


@pytest.mark.parametrize("name", SPARSE)
def test_a_step_that_nobody_watches_has_the_bits_of_one_that_is_recorded(name, monkeypatch):
    for tied in (False, True):
        net, x = network(), torch.randn(70, 9)
        if tied:  # equal magnitudes throughout, and zeros
            with torch.no_grad():
                for p in net.parameters():
                    p.copy_(p.sign() * (p.abs() > 0.05) * 0.125)
            x = x.sign()
        unwatched = gradients(net, x, emulate(net, "float32", SPARSE[name]))
        with monkeypatch.context() as patch:
            patch.setattr(linear, "small_layer_gradients", lambda *arguments: None)
            patch.setattr(linear, "unwatched_gradients", lambda *arguments: None)
            watched = gradients(net, x, emulate(net, "float32", SPARSE[name]))
        assert all(torch.equal(a, b) for a, b in zip(unwatched, watched, strict=True))


@pytest.mark.parametrize("name", [name for name, sparse in SPARSE.items() if sparse])
def test_a_nan_has_no_rank_on_any_route(name):
    net, x = network(), torch.full((70, 9), float("nan"))
    with pytest.raises(SpecError, match="NaN"):
        gradients(net, x, emulate(net, "float32", SPARSE[name]))


@pytest.mark.parametrize("kept", [1, 7, 20, 39])
def test_masking_keeps_what_the_selection_keeps(kept):
    g = np.random.default_rng(kept).integers(-3, 4, (30, 40)).astype(np.float32)  # ties and zeros
    g[3], g[4, 5:] = 0, 0
    masked, used = select.masked_by_example(g, kept)
    wanted = hwsim.kernels.select_topk(g, kept)
    assert used == len(wanted.indices) and np.array_equal(masked, np.where(wanted.mask(), g, 0))
    assert select.masked_by_example(np.full((1, 40), np.nan, np.float32), kept)[1] == -1


@pytest.mark.parametrize("width", [70, 8000])  # a weight matrix below `NEAR` bytes, and one above
def test_each_row_adds_up_its_own_rows(width):
    rng = np.random.default_rng(1)
    g, w = rng.standard_normal((7, 40), np.float32), rng.standard_normal((40, width), np.float32)
    indices = np.concatenate([np.sort(rng.permutation(40)[:count]) for count in (0, 1, 3, 4, 5, 9, 40)]).astype(
        np.int32
    )
    offsets = np.concatenate([[0], np.cumsum((0, 1, 3, 4, 5, 9, 40))])
    out = np.full((7, width), np.nan, np.float32)
    rows.grad_input_by_example(g, w, indices, offsets, out)
    np.testing.assert_allclose(out, rows.keep_only(g, indices, offsets) @ w, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("height", [1, 5, 6, 7, 64])
@pytest.mark.parametrize("kept", [0, 1, 6, 11, 40])
@pytest.mark.parametrize("width", [32, 33, 70])
def test_a_small_layer_is_multiplied_where_its_columns_stand(height, kept, width):
    rng = np.random.default_rng(width)
    g, w, x = (rng.standard_normal(shape, np.float32) for shape in ((height, 40), (40, width), (height, width)))
    met = np.sort(rng.permutation(40)[:kept]).astype(np.int32)
    grad_input, grad_weight = np.full_like(x, np.nan), np.zeros_like(w)
    dirty = np.zeros(40, bool)
    grad_weight[::3], dirty[::3] = np.nan, True  # of an earlier step
    columns.multiply_columns(g, met, w, x, grad_input, grad_weight, dirty)
    masked = np.zeros_like(g)
    masked[:, met] = g[:, met]
    np.testing.assert_allclose(grad_input, masked @ w, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(grad_weight, masked.T @ x, rtol=1e-4, atol=1e-4)
    assert np.array_equal(np.flatnonzero(dirty), met)


def test_a_small_layer_is_ranked_by_magnitudes():
    rng = np.random.default_rng(3)
    g = rng.standard_normal((6, 40), np.float32)
    g[:, 7] = [9, -9, 9, -9, 9, -9]  # adds up to nothing
    grad_weight, dirty = np.zeros((40, 32), np.float32), np.zeros(40, bool)
    w, x, bias = np.ones((40, 32), np.float32), np.ones((6, 32), np.float32), np.empty(40, np.float32)
    assert not columns.rank_and_multiply(g, 5, w, x, np.empty_like(x), grad_weight, dirty, bias)
    wanted = hwsim.kernels.select_topk(g, 5, rank_over="batch").indices
    assert 7 in wanted and np.array_equal(np.flatnonzero(dirty), wanted)


def test_what_nobody_wants_of_a_small_layer_is_left_out():
    g, w, x = np.eye(40, dtype=np.float32)[:8], np.ones((40, 64), np.float32), np.ones((8, 64), np.float32)
    none, flags, bias = native.NO_ROWS, native.NO_FLAGS, np.empty(40, np.float32)
    assert not columns.rank_and_multiply(g, 3, w, x, none, none, flags, bias)
    assert np.array_equal(bias, g.sum(0))
    grad_input = np.empty_like(x)
    assert not columns.rank_and_multiply(g, 3, w, x, grad_input, none, flags, bias[:0])
    assert np.array_equal(grad_input.any(1), np.arange(8) < 3), "of equal columns the first are kept"
    g[2, 3] = np.nan
    assert columns.rank_and_multiply(g, 3, w, x, none, none, flags, bias)


@pytest.mark.parametrize("name", SPARSE)
def test_memory_that_is_used_again_holds_nothing_from_before(name):
    net, twin = network(), network()
    context, other = emulate(net, "float32", SPARSE[name]), emulate(twin, "float32", SPARSE[name])
    context.step.buffers = buffers = GradientBuffers()
    places = []
    for step in range(6):
        x = torch.randn(70, 9, generator=torch.Generator().manual_seed(step))
        found, wanted = gradients(net, x, context), gradients(twin, x, other)
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True)), step
        places.append(net[0].weight.grad.data_ptr())
        if step == 2:
            net[0].weight.grad.add_(1.0)  # somebody writes into it
        lent = {buffer.array.ctypes.data: buffer for buffer, _ in buffers._lent}[net[0].weight.grad.data_ptr()]
        assert step == 2 or not lent.array[~lent.dirty].any()
        kept = net[0].weight.grad if step == 3 else None  # somebody keeps it
        before = None if kept is None else kept.clone()
        del found
        net.zero_grad()
        buffers.take_back()
        if kept is not None:
            gradients(net, x + 1, context)
            assert torch.equal(kept, before)
            net.zero_grad()
            buffers.take_back()
            kept = None
    assert places[0] == places[1] == places[2] == places[3] and places[4] != places[3]


@pytest.mark.parametrize("audited", [False, True])  # without the auditor, autograd adds into the memory that it got
def test_gradients_of_several_uses_leave_nothing_behind(audited):
    torch.manual_seed(0)
    net, twin = nn.LSTM(8, 16), nn.LSTM(8, 16)
    twin.load_state_dict(net.state_dict())
    contexts = [emulate(m, "float32", SparseBackprop(k=2, gates="apart", output_layer=True)) for m in (net, twin)]
    contexts[0].step.buffers = buffers = GradientBuffers()
    for step in range(5):
        x = torch.randn(7, 3, 8)
        net.zero_grad()
        buffers.take_back()
        twin.zero_grad()
        for module, context in zip((net, twin), contexts, strict=True):
            context.audit = audited
            with context:
                module(x)[0].square().sum().backward()
        for p, q in zip(net.parameters(), twin.parameters(), strict=True):
            assert torch.equal(p.grad, q.grad), step
