"""The profiler: its counts are those of a count by hand, and looking changes nothing."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import hwsim
from hwsim import Cast, PrecisionPlan, SparseBackprop
from hwsim.arithmetic.mac import MacSpec
from hwsim.data.dataset import Dataset, Split
from hwsim.errors import UnsupportedError
from hwsim.kernels import matmul
from hwsim.kernels.counters import SAMPLE, Counters
from hwsim.kernels.numba_cpu import matmul_counts
from hwsim.training.loop import _Run, train
from hwsim.training.plan import Rule
from hwsim.training.profiler import Profiler
from hwsim.training.recipe import Recipe

FP8 = PrecisionPlan.uniform("float8_e4m3fn", "float8_e5m2", "bfloat16", overflow="saturate", loss_scale=1024.0)
SHORT = Recipe(batch=32, epochs=2, train_examples=200, evaluate_examples=60, recorded_steps=4)


def perceptron():
    return hwsim.load_model("mlp_digits", hidden=32)


class Pictures(nn.Module):
    """Strides, padding, groups, batch norm and dropout."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 6, 3, padding=1, groups=2)
        self.drop = nn.Dropout(0.2)
        self.last = nn.Linear(96, 10)

    def forward(self, x):
        x = torch.relu(self.norm(self.first(x)))
        return self.last(self.drop(torch.relu(self.second(x))).flatten(1))


def pictures():
    draw = np.random.default_rng(0)
    splits = (Split(draw.normal(size=(n, 1, 8, 8)).astype(np.float32), draw.integers(0, 10, n)) for n in (64, 20, 20))
    return Dataset("pictures", *splits, tuple("0123456789"), "0" * 64)


def rows_of(profile, step, layer):
    return {(row.gemm, row.role): row for row in profile.tensors if (row.step, row.layer) == (step, layer)}


@pytest.mark.parametrize("sparse", [None, SparseBackprop(k=5, memory=0.5)])
def test_looking_changes_no_bit(sparse):
    plan = PrecisionPlan.uniform(
        "float8_e4m3fn", accumulator="bfloat16", rounding="stochastic", optimizer_state="bfloat16"
    )
    recipe = Recipe(batch=16, epochs=2, recorded_steps=1)
    plain, profiled = (train(Pictures(), plan, pictures(), sparse, recipe=recipe, profile=p) for p in (False, True))
    assert plain.summary.hashes == profiled.summary.hashes and plain.curves == profiled.curves
    assert plain.summary.profile is None
    assert profiled.summary.profile.steps == tuple(range(8))


def test_looking_leaves_running_statistics_and_random_numbers_alone():
    class Drawing(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.last = nn.BatchNorm1d(64), nn.Linear(64, 10)

        def forward(self, x):
            return self.last(self.norm(x) + 0.1 * torch.randn(x.shape))

    found = []
    for profile in (False, True):
        torch.manual_seed(1)
        model = Drawing()
        train(model, recipe=SHORT, profile=profile)
        found.append((model.norm.running_mean.clone(), torch.rand(1)))
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])


def test_a_run_that_is_not_profiled_looks_at_nothing(monkeypatch):
    monkeypatch.setattr(Profiler, "__init__", lambda self, step: pytest.fail("a profiler was made"))
    train(perceptron(), FP8, recipe=SHORT)


def test_casts_are_counted_as_by_hand():
    x = torch.tensor([[0.0, 2.0**-12, -(2.0**-9), 1.0, 1.0625, 500.0, -1e6, math.inf, math.nan]])
    cast = Cast("float8_e4m3fn", overflow="saturate")
    stored = hwsim.quantize(x, cast.format, overflow="saturate")
    profiler = Profiler(7)
    profiler.cast(x, stored, cast, "fc1", "grad_input", "gradient")
    (row,) = profiler.profile().tensors
    assert (row.step, row.layer, row.gemm, row.role, row.cast) == (
        7, "fc1", "grad_input", "gradient", "float8_e4m3fn saturate",
    )  # fmt: skip
    assert (row.count, row.nonzero) == (9, 6)
    assert row.saturated == 2  # 500 and -1e6 lie beyond 448; the infinity came as one
    assert row.underflowed == 1  # 2^-12 is under half of 2^-9, the smallest subnormal
    assert row.not_finite == 1  # NaN; the infinity is clamped
    finite = x[0, :7].double()
    noise = (hwsim.quantize(finite.float(), cast.format, overflow="saturate").double() - finite).square().sum()
    assert row.snr_db == pytest.approx(10 * math.log10(finite.square().sum() / noise))
    assert row.lowest_exponent == -12
    places = {row.lowest_exponent + i: n for i, n in enumerate(row.exponents) if n}
    assert places == {-12: 1, -9: 1, 0: 2, 8: 1, 19: 1}


def test_block_formats_have_no_range_to_leave():
    x = torch.randn(4, 64)
    profiler = Profiler(0)
    profiler.cast(x, hwsim.quantize(x, "mxfp4_e2m1"), Cast("mxfp4_e2m1"), "fc1", "", "weight")
    (row,) = profiler.profile().tensors
    assert row.saturated is None and row.gemm == "every GEMM" and row.snr_db > 10


def test_every_place_of_a_step_is_there():
    profile = train(perceptron(), FP8, recipe=SHORT, profile=True).summary.profile
    places = set(rows_of(profile, profile.steps[0], "fc2"))
    assert places >= {
        ("output", "input"), ("every GEMM", "weight"), ("grad_input", "gradient"), ("grad_weight", "gradient"),
    }  # fmt: skip
    sums = {row.gemm for row in profile.sums if row.layer == "fc2"}
    assert sums == {"output", "grad_input", "grad_weight", "reduce"}
    assert {row.layer for row in profile.gradients} == {"fc1", "fc2", "fc3", ""}
    assert {row.step for row in profile.gradients} == set(profile.steps)
    first = rows_of(profile, profile.steps[0], "fc1")["output", "input"]
    assert first.count == SHORT.batch * 64


def unfolded(x, kernel, stride, padding):
    """im2col written out: (n oh ow, c kh kw)."""
    n, c, height, width = x.shape
    wide = np.zeros((n, c, height + 2 * padding, width + 2 * padding), np.float32)
    wide[:, :, padding : padding + height, padding : padding + width] = x
    size = (height + 2 * padding - kernel) // stride + 1
    return np.array(
        [
            wide[i, :, y * stride : y * stride + kernel, z * stride : z * stride + kernel].reshape(-1)
            for i in range(n)
            for y in range(size)
            for z in range(size)
        ]
    )


def test_the_sums_of_a_convolution_are_those_of_its_products():
    mac = MacSpec("e5m2")
    plan = PrecisionPlan("narrow", (Rule("*", macs=dict.fromkeys(("output", "grad_input", "grad_weight"), mac)),))
    torch.manual_seed(0)
    layer, x = nn.Conv2d(3, 5, 3, stride=2, padding=1), torch.randn(17, 3, 7, 7, requires_grad=True)
    emulation = hwsim.emulate(layer, plan)
    emulation.begin(0)
    emulation.step.profiler = Profiler(0)
    with emulation:
        y = layer(x)
        g = torch.randn(y.shape)
        y.backward(g)
    found = {row.gemm: row for row in emulation.step.profiler.profile().sums}
    some = x.detach()[::SAMPLE].numpy()
    spread = np.zeros((2, 5, 7, 7), np.float32)
    spread[:, :, ::2, ::2] = g[::SAMPLE].numpy()
    turned = layer.weight.detach().flip(2, 3).transpose(0, 1).flatten(1).numpy()
    rows = unfolded(x.detach().numpy(), 3, 2, 1)
    products = {
        "output": (unfolded(some, 3, 2, 1), layer.weight.detach().flatten(1).t().numpy()),
        "grad_weight": (g.transpose(0, 1).flatten(1).numpy(), rows),
    }
    for gemm, (a, b) in products.items():
        counters = Counters()
        matmul(np.ascontiguousarray(a), np.ascontiguousarray(b), mac, counters=counters)
        row = found[gemm]
        assert (row.terms, row.swamped, row.overflowed, row.length) == (
            counters.terms, counters.swamped, counters.overflowed, a.shape[1],
        )  # fmt: skip
        assert row.swamped > 0
    # the order of k within grad_input is that of the turned kernel; which terms there are does not depend on it
    counters = Counters()
    matmul(unfolded(spread, 3, 1, 1), np.ascontiguousarray(turned.T), mac, counters=counters)
    assert found["grad_input"].terms == counters.terms and found["grad_input"].length == 45


def test_sums_that_cannot_be_counted_are_named(monkeypatch):
    def refuse_trees(counters, rows, totals, mac, honest=matmul_counts.add):
        if str(mac.order) == "pairwise":
            raise UnsupportedError("counters: no trees")
        honest(counters, rows, totals, mac)

    monkeypatch.setattr(matmul_counts, "add", refuse_trees)
    plan = PrecisionPlan("tree", (Rule("*", macs={"output": "bfloat16, order=pairwise"}),))
    profile = train(perceptron(), plan, recipe=SHORT, profile=True).summary.profile
    assert profile.uncounted == {f"{name} output": "bfloat16, order=pairwise" for name in ("fc1", "fc2", "fc3")}


def test_float32_has_the_gradient_of_float32():
    for plan in ("float32", FP8):
        profile = train(perceptron(), plan, recipe=SHORT, profile=True).summary.profile
        angles = [row.cosine for row in profile.gradients]
        ratios = [row.norm_ratio for row in profile.gradients]
        if plan == "float32":
            assert min(angles) == pytest.approx(1, abs=1e-12) and set(ratios) == {1.0}
        else:
            assert 0.9 < min(angles) < 0.9999 and 0.8 < min(ratios) < 1


def test_gradients_are_compared_without_the_loss_scale():
    """With memory, which keeps gradients that carry the scale, too."""
    scaled = PrecisionPlan("scaled", (Rule("*"),)).with_loss_scale(2.0**12)
    for sparse in (None, SparseBackprop(k=5, memory=0.5)):
        profile = train(perceptron(), scaled, sparse=sparse, recipe=SHORT, profile=True).summary.profile
        assert all(row.norm_ratio == pytest.approx(1, abs=1e-4) for row in profile.gradients)


def test_lost_updates_are_counted():
    def profiled(**casts):
        rule = Rule("*", casts={"master_weight": "fixed8.6", **casts})
        recipe = SHORT.model_copy(update={"optimizer": "sgd", "learning_rate": 0.05})
        return train(perceptron(), PrecisionPlan("p", (rule,)), recipe=recipe, profile=True).summary.profile.updates

    plain, kept = profiled(), profiled(compensation="fixed16.20")
    assert all(row.lost <= row.updates for row in plain + kept)
    assert sum(row.lost for row in plain) > 0.9 * sum(row.updates for row in plain)
    assert not any(row.compensated for row in plain) and all(row.compensated for row in kept)


def test_a_resumed_run_has_the_whole_profile(tmp_path, monkeypatch):
    whole = train(perceptron(), FP8, recipe=SHORT, profile=True).summary.profile
    monkeypatch.setattr("hwsim.training.loop.CHECKPOINT_SECONDS", -1.0)
    monkeypatch.setattr("hwsim.training.loop.PROGRESS_STEPS", 2)
    step = _Run._step

    def dying(self, *args):
        if self.state.number == 9:
            raise KeyboardInterrupt
        return step(self, *args)

    monkeypatch.setattr(_Run, "_step", dying)
    out = tmp_path / "run.safetensors"
    with pytest.raises(KeyboardInterrupt):
        train(perceptron(), FP8, recipe=SHORT, profile=True, out=out)
    monkeypatch.setattr(_Run, "_step", step)
    assert train(perceptron(), FP8, recipe=SHORT, profile=True, out=out, resume=True).summary.profile == whole
