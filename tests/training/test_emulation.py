"""Emulating untouched modules: what equals plain torch, what is refused, and the proof that no GEMM escapes."""

import contextlib
import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional

import hwsim
from hwsim import PrecisionPlan, SparseBackprop, SpecError, UnsupportedError
from hwsim.training.emulation import emulate, emulated
from hwsim.training.plan import Rule

FP8 = PrecisionPlan.uniform("float8_e4m3fn", "float8_e5m2", "bfloat16", overflow="saturate", loss_scale=1024.0)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.heads = nn.MultiheadAttention(8, 2)
        self.norm = nn.LayerNorm(8)

    def forward(self, x):
        mask = torch.triu(torch.ones(len(x), len(x), dtype=torch.bool), 1)
        padding = torch.zeros(x.shape[1], len(x), dtype=torch.bool)
        padding[0, -1] = True
        y, weights = self.heads(x, x, x, attn_mask=mask, key_padding_mask=padding)
        return self.norm(y + x) * weights.sum()


class FusedAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(8, 24)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        return functional.scaled_dot_product_attention(q, k, v, is_causal=True)


class Recurrent(nn.Module):
    def __init__(self, kind, **options):
        super().__init__()
        self.cells = kind(8, 6, **options)

    def forward(self, x):
        y, state = self.cells(x)
        return y.sum(-1) + (state[0] if isinstance(state, tuple) else state).sum()


class Packed(nn.Module):
    def __init__(self):
        super().__init__()
        self.cells = nn.LSTM(8, 6, bidirectional=True)

    def forward(self, x):
        packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([5, 2, 4]), enforce_sorted=False)
        y, (h, c) = self.cells(packed)
        return nn.utils.rnn.pad_packed_sequence(y)[0].sum(-1) + h.sum() * 3 + c.sum()


class Cells(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.gru, self.plain = nn.LSTMCell(8, 6), nn.GRUCell(8, 6), nn.RNNCell(8, 6)

    def forward(self, x):
        state = None
        for step in x:
            state = self.lstm(step, state)
        return state[0].sum(-1) + self.gru(x[0]).sum(-1) + self.plain(x[1]).sum(-1)


class Bare(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 4) * 0.3)
        self.pair = nn.Bilinear(4, 4, 3)
        self.words = nn.Embedding(10, 8)

    def forward(self, x):
        y = x @ self.weight
        z = torch.einsum("btk,kf->btf", x, self.weight)
        scores = torch.bmm(torch.einsum("btf,bsf->bts", y, z), y)
        added = torch.addmm(self.weight.sum(0), x[0], self.weight, beta=0.5, alpha=2.0)
        word = self.words(torch.tensor([1, 2, 1]))
        row = torch.einsum("i,ij->j", word[0], self.weight)
        turned = torch.matmul(self.weight.t(), x.transpose(1, 2))
        chain = torch.einsum("...k,kf,f->...", x, self.weight, self.weight[0])
        return scores.sum() + added.sum() + self.pair(y, z).sum() + row.sum() + (turned * turned).sum() + chain.sum()


class Images(nn.Module):
    def __init__(self):
        super().__init__()
        self.wide = nn.Conv1d(8, 4, 3, padding="same")
        self.norm = nn.BatchNorm1d(4)
        self.even = nn.Conv1d(4, 4, 4, padding="same", bias=False)
        self.plane = nn.Conv2d(1, 6, (3, 2), stride=(2, 1), padding=1)
        self.groups = nn.Conv2d(6, 4, 3, padding=2, dilation=2, groups=2)

    def forward(self, x):
        y = self.even(functional.relu(self.norm(self.wide(x.transpose(1, 2))), inplace=True))
        image = functional.max_pool2d(self.plane(y.unsqueeze(1)), 2, stride=1)
        return self.groups(functional.gelu(image)).mean((2, 3))


NETWORKS = {
    "perceptron": lambda: nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3)),
    "attention": Attention,
    "fused attention": FusedAttention,
    "lstm": lambda: Recurrent(nn.LSTM, num_layers=2, bidirectional=True),
    "gru": lambda: Recurrent(nn.GRU, batch_first=True),
    "rnn": lambda: Recurrent(nn.RNN, nonlinearity="relu", bias=False),
    "packed": Packed,
    "cells": Cells,
    "bare products": Bare,
    "images": Images,
    "transformer": lambda: nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True),
}


def gradients(network, x, context=None):
    """Return the output and all gradients of a loss, and the context's auditor count."""
    network.zero_grad()
    x = x.detach().clone().requires_grad_()
    if context is None:
        y = network(x)
        y.pow(2).sum().backward()
    else:
        with context:
            y = network(x)
            y.pow(2).sum().backward()
    return y.detach(), [x.grad, *(p.grad for p in network.parameters())]


@pytest.mark.parametrize("plan", ["float32", "float32_sequential"])
@pytest.mark.parametrize("name", NETWORKS)
def test_float32_plan_equals_plain_torch_within_reassociation(name, plan):
    torch.manual_seed(0)
    network, x = NETWORKS[name](), torch.randn(5, 3, 8)
    twin = copy.deepcopy(network)
    keys = list(network.state_dict())
    y, ours = gradients(network, x, emulate(network, plan))
    wanted, theirs = gradients(twin, x)
    assert list(network.state_dict()) == keys
    torch.testing.assert_close(y, wanted, rtol=1e-5, atol=1e-5)
    largest = max(g.abs().max() for g in theirs)
    for mine, plain in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-4, atol=float(2e-6 * largest))


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_runs_in_fp8_and_its_gradients_point_the_same_way(name):
    torch.manual_seed(0)
    network, x = NETWORKS[name](), torch.randn(5, 3, 8)
    _, ours = gradients(network, x, emulate(network, FP8))
    _, theirs = gradients(copy.deepcopy(network), x)
    flat = [torch.cat([g.flatten() for g in side]) for side in (ours, theirs)]
    cosine = float(functional.cosine_similarity(*flat, dim=0))
    assert 0.9 < cosine < 0.999999, "neither another network nor one that was not emulated at all"


def test_a_gemm_behind_our_back_is_caught():
    class Sly(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return torch.ops.aten.mm.default(x, x)

        @staticmethod
        def backward(ctx, g):
            return torch.ops.aten.mm.default(g, g)

    x = torch.randn(4, 4, requires_grad=True)
    with (
        pytest.raises(UnsupportedError, match=r"escaped emulation: torch ran aten\.mm on 4 x 4 and 4 x 4"),
        emulated(FP8),
    ):
        Sly.apply(x)


def test_a_gemm_of_backward_alone_is_caught():
    class HalfSly(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x * 2

        @staticmethod
        def backward(ctx, g):
            return g.mm(ctx.saved_tensors[0])

    x = torch.randn(4, 4, requires_grad=True)
    with pytest.raises(UnsupportedError, match="escaped"), emulated(FP8):
        HalfSly.apply(x).sum().backward()


def test_a_sampling_auditor_wakes_for_what_is_called_anew():
    class Late(nn.Module):
        """Takes a branch of its own once: first a GEMM in the backward pass alone, then a harmless one."""

        branch = ""

        def forward(self, x):
            if self.branch == "sly":
                x.register_hook(lambda g: torch.ops.aten.mm.default(g, g))
            return torch.sigmoid(x) if self.branch else torch.relu(x)

    network = Late()
    context = emulate(network, FP8)
    context.audit_every = 1000
    x, looked_at = torch.randn(4, 4, requires_grad=True), []

    def step(branch):
        network.branch, before = branch, context.auditor.seen
        with context:
            network(x * 2).sum().backward()
        looked_at.append(context.auditor.seen - before)

    step("")
    step("")
    assert looked_at[0] > 0 and looked_at[1] == 0
    with pytest.raises(UnsupportedError, match=r"escaped emulation: torch ran aten\.mm"):
        step("sly")
    for _ in range(2):  # a step that failed has shown nothing: the function is new until it was watched to the end
        step("harmless")
    assert looked_at[2] > 0 and looked_at[3] == 0
    context.audit_every = 1
    step("")
    assert looked_at[4] > 0


def test_escapes_are_listed_if_the_plan_allows_float32():
    plan = PrecisionPlan("loose", (Rule("*"),), uncovered="float32")
    context = emulated(plan)
    with context:
        torch.cdist(torch.randn(30, 4), torch.randn(30, 4))
    assert context.step.uncovered == {"cdist"}


def test_an_unknown_function_is_named():
    with pytest.raises(UnsupportedError, match="torch function 'cdist' is not covered"), emulated(FP8):
        torch.cdist(torch.randn(30, 4), torch.randn(30, 4))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: torch.jit.script(nn.Linear(2, 2)), "scripted"),
        (lambda: torch.compile(nn.Linear(2, 2)), "compiled"),
        (lambda: nn.Linear(2, 2).double(), "float64"),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_modules_that_no_mode_can_see_into_are_refused(make, reason):
    with pytest.raises(UnsupportedError, match=reason):
        emulate(make(), FP8)


def test_autocast_is_refused():
    with torch.autocast("cpu"), pytest.raises(UnsupportedError, match="autocast"), emulated(FP8):
        pass


def test_double_backward_is_refused():
    network, x = nn.Linear(3, 1), torch.randn(2, 3, requires_grad=True)
    with pytest.raises(UnsupportedError, match="double backward"), emulate(network, FP8):
        torch.autograd.grad(network(x).sum(), x, create_graph=True)


def test_transposed_convolutions_are_refused_with_a_reason():
    network = nn.ConvTranspose2d(1, 1, 2)
    with pytest.raises(UnsupportedError, match="conv_transpose2d is not emulated"), emulate(network, FP8):
        network(torch.randn(1, 1, 4, 4))


@pytest.mark.parametrize(
    ("make", "inputs", "reason"),
    [
        (lambda: nn.LSTM(4, 6, proj_size=3), (torch.randn(2, 5, 4),), "layer '': lstm with proj_size is not emulated"),
        (lambda: nn.EmbeddingBag(9, 4), (torch.arange(6), torch.tensor([0, 2])), "embedding_bag with offsets is not"),
        (lambda: nn.EmbeddingBag(9, 4, padding_idx=0), (torch.ones(2, 3).long(),), "embedding_bag with padding_idx"),
    ],
)
def test_forms_of_a_layer_that_are_not_emulated_are_named(make, inputs, reason):
    layer = make()
    with pytest.raises(UnsupportedError, match=reason), emulate(layer, FP8):
        layer(*inputs)


def test_functions_of_lists_are_covered_or_refused_too():
    parts = [torch.randn(2, 3), torch.randn(3, 4), torch.randn(4, 2)]
    with pytest.raises(UnsupportedError, match="'linalg_multi_dot' is not covered"), emulated(FP8):
        torch.linalg.multi_dot(parts)


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_an_embedding_bag_adds_up_its_rows_by_the_plan(mode):
    torch.manual_seed(0)
    bag, words = nn.EmbeddingBag(20, 6, mode=mode), torch.randint(20, (5, 7))
    outputs, grads = [], []
    for context in (contextlib.nullcontext(), emulate(bag, PrecisionPlan.uniform("float32", accumulator="float32"))):
        bag.zero_grad()
        with context:
            y = bag(words)
            y.square().sum().backward()
        outputs.append(y.detach())
        grads.append(bag.weight.grad.clone())
    torch.testing.assert_close(outputs[0], outputs[1])
    torch.testing.assert_close(grads[0], grads[1])
    with torch.no_grad():
        bag.weight.fill_(1.0)
    ones = torch.zeros(1, 512, dtype=torch.long)
    with emulate(bag, PrecisionPlan("sums", (Rule("*", {}, {"reduce": "bfloat16"}),))) as context:
        y = context(ones)
    stalled = {"sum": 256.0, "mean": 0.5, "max": 1.0}  # bfloat16 stops counting at 256
    assert torch.equal(y, torch.full_like(y, stalled[mode]))


def test_an_embedding_bag_with_offsets_may_run_as_torch_does():
    bag = nn.EmbeddingBag(9, 4)
    context = emulate(bag, PrecisionPlan("loose", (Rule("*"),), uncovered="float32"))
    words, starts = torch.arange(6), torch.tensor([0, 2])
    with context:
        y = bag(words, starts)
    assert torch.equal(y, bag(words, starts)) and context.step.uncovered == {"embedding_bag"}


def test_a_rule_that_no_layer_uses_is_an_error_after_the_first_step():
    network = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    plan = PrecisionPlan("typo", (Rule("fc*"), Rule("*")))
    with (
        pytest.raises(SpecError, match=r"rules\[0\].layers: pattern 'fc\*' is used by no layer"),
        emulate(network, plan),
    ):
        network(torch.randn(1, 2))


def test_a_layer_that_no_rule_matches_is_an_error():
    network = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    plan = PrecisionPlan("partial", (Rule("0"),))
    with pytest.raises(SpecError, match="no rule matches layer '1'"), emulate(network, plan):
        network(torch.randn(1, 2))


def test_first_matching_rule_wins():
    plan = PrecisionPlan("two", (Rule("a*", {"input": "float8_e5m2"}), Rule("*", {"input": "bfloat16"})))
    assert str(plan.layer("ab").cast("input", "output")) == "float8_e5m2"
    assert str(plan.layer("b").cast("input", "output")) == "bfloat16"


def test_each_gemm_reads_in_its_own_format():
    """The output GEMM in int8-like fixed point, grad_weight in bfloat16, checked against the definition."""
    plan = PrecisionPlan(
        "mixed",
        (Rule("*", {"input": "fixed8.4", "grad_weight.input": "bfloat16", "gradient": "float8_e5m2"}),),
    )
    torch.manual_seed(1)
    layer, x, g = nn.Linear(6, 4), torch.randn(5, 6), torch.randn(5, 4)
    with emulate(layer, plan):
        y = layer(x)
        y.backward(g)
    wanted = hwsim.matmul(hwsim.quantize(x, "fixed8.4"), layer.weight.detach().t(), "float32", bias=layer.bias.detach())
    assert torch.equal(y.detach(), wanted)
    gradient = hwsim.matmul(hwsim.quantize(g, "float8_e5m2").t(), hwsim.quantize(x, "bfloat16"), "float32")
    assert torch.equal(layer.weight.grad, gradient)
    other = hwsim.matmul(hwsim.quantize(g, "float8_e5m2").t(), hwsim.quantize(x, "fixed8.4"), "float32")
    assert not torch.equal(layer.weight.grad, other), "the forward's cast must not serve grad_weight here"


def test_accumulator_rounds_at_each_step():
    layer = nn.Linear(300, 1, bias=False)
    with torch.no_grad():
        layer.weight.fill_(1.0)
    plan = PrecisionPlan.uniform("float32", accumulator="float8_e4m3fn")
    with emulate(layer, plan):
        y = layer(torch.ones(1, 300))
    assert float(y.detach()) == 16.0, "a 4-bit significand stops counting at 16"


def test_in_place_functions_write_back():
    plan = PrecisionPlan("stored", (Rule("*", {"activation": "float8_e4m3fn"}),))
    x = torch.tensor([0.3, -1.0])
    with emulated(plan):
        y = x.mul_(1.0)
    assert y is x or torch.equal(x, y)
    assert torch.equal(x, hwsim.quantize(torch.tensor([0.3, -1.0]), "float8_e4m3fn"))


def test_stored_gradients_are_in_their_format():
    plan = PrecisionPlan("stored", (Rule("*", {"activation_gradient": "float8_e5m2"}),))
    x = torch.randn(100, requires_grad=True)
    with emulated(plan):
        torch.tanh(x).sum().backward()
    assert torch.equal(x.grad, hwsim.quantize(1 - torch.tanh(x.detach()) ** 2, "float8_e5m2"))


def test_stochastic_bits_depend_on_seed_step_and_nothing_else():
    plan = PrecisionPlan.uniform("float8_e4m3fn", rounding="stochastic", accumulator="float32")
    layer, x = nn.Linear(64, 16), torch.randn(8, 64)

    def run(seed, step):
        context = emulate(layer, plan, seed=seed)
        context.begin(step)
        with context:
            return layer(x).detach()

    assert torch.equal(run(0, 3), run(0, 3))
    assert not torch.equal(run(0, 3), run(0, 4))
    assert not torch.equal(run(0, 3), run(1, 3))


def test_dropout_masks_are_ours_and_repeat():
    drop, x = nn.Dropout(0.25), torch.ones(200, 50)
    masks = []
    for _ in range(2):
        context = emulate(drop, "float32", seed=5)
        with context:
            masks.append(drop(x))
    assert torch.equal(*masks)
    kept = float((masks[0] != 0).float().mean())
    assert abs(kept - 0.75) < 4 * math.sqrt(0.75 * 0.25 / 10_000)
    assert set(masks[0].unique().tolist()) == {0.0, float(torch.tensor(1 / 0.75))}


@pytest.mark.parametrize(
    ("drop", "shape", "channels"),
    [
        (nn.Dropout1d(0.25), (200, 50, 3), 2),
        (nn.Dropout1d(0.25), (10_000, 3), 1),
        (nn.Dropout2d(0.25), (200, 50, 2, 3), 2),
        (nn.Dropout3d(0.25), (200, 50, 1, 2, 3), 2),
    ],
)
def test_channel_dropout_drops_whole_channels(drop, shape, channels):
    x = torch.ones(shape)
    with emulate(drop, "float32", seed=5):
        y = drop(x).reshape(-1, *shape[channels:])
    assert torch.equal(y.flatten(1).amin(1), y.flatten(1).amax(1))
    assert abs(float((y != 0).float().mean()) - 0.75) < 4 * math.sqrt(0.75 * 0.25 / len(y))
    drop.eval()
    with emulate(drop, "float32"):
        assert torch.equal(drop(x), x)
    drop.train()


def test_kept_of_the_whole_width_is_dense_exactly():
    torch.manual_seed(0)
    network, x = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8), nn.Linear(8, 3)), torch.randn(6, 8)
    for rank_over in ("example", "batch"):
        _, dense = gradients(network, x, emulate(network, FP8))
        dense = [g.clone() for g in dense]
        _, topk = gradients(network, x, emulate(network, FP8, SparseBackprop(k=16, rank_over=rank_over)))
        assert all(torch.equal(a, b) for a, b in zip(dense, topk, strict=True))
        _, fewer = gradients(network, x, emulate(network, FP8, SparseBackprop(k=4, rank_over=rank_over)))
        assert not torch.equal(dense[1], fewer[1])


@pytest.mark.parametrize(("operand", "accumulator"), [("fixed8.6", "fixed20.12"), ("int8", "float32")])
def test_kernels_that_use_blas_where_it_is_exact_are_no_escape(operand, accumulator, monkeypatch):
    """The auditor once took a kernel's own exact BLAS call for an escape, and the slow reference stepped in."""

    def refuse(*args):
        raise AssertionError("a compiled kernel does this case")

    monkeypatch.setattr("hwsim.kernels.gemm.Job._reference", refuse)
    torch.manual_seed(0)
    network, x = nn.Sequential(nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 4)), torch.rand(16, 40)
    plan = PrecisionPlan.uniform(operand, accumulator=accumulator, overflow="saturate")
    context = emulate(network, plan)
    watched = [g.clone() for g in gradients(network, x, context)[1]]
    context.audit = False
    assert all(torch.equal(a, b) for a, b in zip(watched, gradients(network, x, context)[1], strict=True))
    assert not context.auditor.escaped


def test_the_gradient_of_a_bias_may_have_a_format_of_its_own():
    casts = {"weight_gradient": "fixed8.7", "bias.weight_gradient": "float32"}
    found = []
    for kept in (casts, {"weight_gradient": "fixed8.7"}):
        for net, shape in ((nn.Linear(6, 3), (5, 6)), (nn.Conv2d(2, 3, 3), (5, 2, 6, 6))):
            torch.manual_seed(1)
            with hwsim.emulate(net, PrecisionPlan("bias", (Rule("*", kept),))):
                (net(torch.randn(shape)) * 0.01371).sum().backward()
            assert torch.equal(net.weight.grad, hwsim.quantize(net.weight.grad, "fixed8.7"))
            found.append(torch.equal(net.bias.grad, hwsim.quantize(net.bias.grad, "fixed8.7")))
    assert found == [False, False, True, True]
