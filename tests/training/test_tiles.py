"""One scale a tile, as DeepSeek-V3's FP8: against a slow twin in exact fractions, and its place in the three GEMMs."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

import hwsim
from hwsim import PrecisionPlan, SpecError
from hwsim.arithmetic.storage import Cast
from hwsim.kernels.reference.rounding import round_exact
from hwsim.spec import load_yaml
from hwsim.training.emulation import emulate
from hwsim.training.plan import Rule, Scaling
from hwsim.training.plan_file import PlanSpec
from hwsim.training.presets import named_plan

FLOAT32 = Cast("float32")
TILES = {"input": Scaling(tile=(1, 4), scale="float32"), "weight": Scaling(tile=(3, 4), scale="float32")}
TILES["gradient"] = TILES["input"]


def plan(mac="bfloat16", tiles=TILES, **casts):
    casts = dict.fromkeys(TILES, "float8_e4m3fn saturate") | casts
    return PrecisionPlan(
        "tiles", (Rule("*", casts, dict.fromkeys(("output", "grad_input", "grad_weight"), mac), tiles),)
    )


def slow_codes(x, across, along):
    """Codes and scales of a matrix (rows, k), by the definition."""
    codes, scales = np.zeros(x.shape), np.zeros(x.shape, np.float32)
    for r in range(0, x.shape[0], across):
        for c in range(0, x.shape[1], along):
            tile = x[r : r + across, c : c + along]
            amax = float(np.abs(tile).max())
            s = np.float32(amax / 448) if amax else np.float32(1)
            scales[r : r + across, c : c + along] = s
            codes[r : r + across, c : c + along] = hwsim.quantize(
                tile.astype(np.float64) / float(s), "float8_e4m3fn", overflow="saturate"
            )
    return codes, scales


def slow_product(a, b, tile_a, tile_b, mac):
    """a (m, k) times b (n, k): partial sums of the reference back end, promoted in exact fractions."""
    (qa, sa), (qb, sb) = slow_codes(a, *tile_a), slow_codes(b, *tile_b)
    along, result = tile_a[1], np.zeros((len(a), len(b)), np.float32)
    for i in range(len(a)):
        for j in range(len(b)):
            total = Fraction(0)
            for c in range(0, a.shape[1], along):
                part = slice(c, c + along)
                with hwsim.backend("reference"):
                    p = hwsim.matmul(qa[i : i + 1, part], qb[j : j + 1, part].T, mac)
                scale = np.float32(sa[i, c]) * np.float32(sb[j, c])
                total += Fraction(float(p[0, 0])) * Fraction(float(scale))
                total = Fraction(round_exact(total, FLOAT32, 0))
            result[i, j] = float(total)
    return result


@pytest.mark.parametrize("mac", ["bfloat16", "float32", "h200.float8_e4m3fn.float32.wgmma"])
def test_the_three_gemms_follow_their_definition(mac):
    torch.manual_seed(0)
    layer, x, g = nn.Linear(10, 7, bias=False), torch.randn(5, 10) * 3, torch.randn(5, 7) * 1e-3
    x = x.requires_grad_()
    with emulate(layer, plan(mac)):
        y = layer(x)
        y.backward(g)
    w, rows, grads = layer.weight.detach().numpy(), x.detach().numpy(), g.numpy()
    row, block = (1, 4), (3, 4)
    wanted = {
        "output": (y.detach(), slow_product(rows, w, row, block, mac)),
        "grad_input": (x.grad, slow_product(grads, w.T.copy(), row, block, mac)),
        "grad_weight": (layer.weight.grad, slow_product(grads.T.copy(), rows.T.copy(), row, row, mac)),
    }
    for gemm, (mine, slow) in wanted.items():
        assert np.array_equal(mine.numpy(), slow), gemm
    assert not np.array_equal(y.detach().numpy(), slow_product(rows, w, row, (4, 4), mac)), "another tile must show"


def test_a_tile_of_zeros_and_one_with_an_outlier_leave_the_others_alone():
    layer = nn.Linear(8, 1, bias=False)
    nn.init.ones_(layer.weight)
    x = torch.tensor([[0.0, 0, 0, 0, 1, 2, 3, 4], [1e4, 1, 1, 1, 1, 2, 3, 4]])
    with emulate(layer, plan("float32")):
        y = layer(x)
    assert y[0].item() == pytest.approx(10, rel=0.04)
    assert y[1].item() == pytest.approx(10_010, rel=0.04), "ones beside 10,000 are lost, those of the next tile are not"


def test_scales_may_be_powers_of_two():
    torch.manual_seed(0)
    layer, x = nn.Linear(8, 4, bias=False), torch.randn(3, 8)
    ends = []
    for scale in ("float32", "power_of_two"):
        tiles = {role: Scaling(tile=(1, 4), scale=scale) for role in TILES}
        with emulate(layer, plan("float32", tiles)), torch.no_grad():
            ends.append(layer(x))
    wide = layer(x).detach()
    assert not torch.equal(*ends) and all(torch.allclose(e, wide, atol=0.1) for e in ends)


@pytest.mark.parametrize("shape", [(2, 3, 6, 6)])
def test_convolutions_and_bare_products_cut_their_operands_too(shape):
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.mix = nn.Conv2d(3, 4, 3, groups=1), nn.Parameter(torch.randn(4, 5))

        def forward(self, x):
            y = self.conv(x).flatten(2).transpose(1, 2)  # n, positions, 4
            z = y @ self.mix
            return z @ z.transpose(1, 2)

    torch.manual_seed(0)
    network, x = Mixed(), torch.randn(shape)
    sides = {}
    for name, p in (("tiles", plan("float32")), ("float32", "float32")):
        network.zero_grad()
        with emulate(network, p):
            y = network(x)
            y.square().mean().backward()
        sides[name] = torch.cat([q.grad.flatten() for q in network.parameters()])
    cosine = float(torch.cosine_similarity(*sides.values(), dim=0))
    assert 0.98 < cosine < 0.999999


def test_the_preset_is_the_recipe_of_the_report():
    precision = named_plan("deepseek_fp8").layer("fc1")
    tiles = {role: precision.scaling(role) for role in ("input", "weight", "gradient")}
    assert {role: s.tile for role, s in tiles.items()} == {
        "input": (1, 128),
        "weight": (128, 128),
        "gradient": (1, 128),
    }
    assert {s.scale for s in tiles.values()} == {"float32"}
    assert {str(precision.cast(role, "output")) for role in ("input", "weight")} == {"float8_e4m3fn saturate"}
    assert "fused(32, 13" in str(precision.mac("output"))


def test_promotion_keeps_what_13_bits_would_lose():
    """4,096 products of 1 in tiles of 128: 13 fraction bits alone lose nothing here, a spread of magnitudes does."""
    torch.manual_seed(0)
    layer, x = nn.Linear(4096, 8, bias=False), torch.rand(4, 4096) + 0.5
    nn.init.uniform_(layer.weight, 0.5, 1.5)
    wide = x.double() @ layer.weight.detach().double().t()
    errors = {}
    chip = named_plan("h200_fp8").rules[0].macs
    for name, p in (
        ("promoted", named_plan("deepseek_fp8")),
        ("not promoted", PrecisionPlan("chip", (Rule("*", dict.fromkeys(TILES, "float8_e4m3fn"), chip),))),
    ):
        with emulate(layer, p), torch.no_grad():
            errors[name] = float(((layer(x).double() - wide) / wide).abs().mean())
    assert errors["promoted"] < 0.2 * errors["not promoted"]


def test_int8_sums_are_those_of_an_integer_accumulator():
    torch.manual_seed(0)
    layer, x = nn.Linear(3000, 4, bias=False), torch.rand(2, 3000) * 0.9 + 1
    nn.init.uniform_(layer.weight, 1, 1.9)
    with emulate(layer, "int8"), torch.no_grad():
        y = layer(x)

    def integers(t):
        scale = 2.0 ** np.floor(np.log2(127 / float(t.detach().abs().max())))
        return np.asarray(hwsim.quantize(t.detach() * scale, "int8")).astype(np.int64), scale

    (a, sa), (b, sb) = integers(x), integers(layer.weight)
    assert np.array_equal(y.numpy(), ((a @ b.T) / (sa * sb)).astype(np.float32))
    with emulate(
        layer,
        PrecisionPlan("steps", (Rule("*", dict.fromkeys(TILES, "int8"), scaling=dict.fromkeys(TILES, "current")),)),
    ):
        assert not torch.equal(layer(x).detach(), y), "rounded at each step past 1,024 products"


def test_plan_files_name_tiles():
    text = """
schema: plan/1
rules:
  - casts: {input: float8_e4m3fn, weight: float8_e4m3fn, gradient: float8_e5m2}
    scaling:
      input: {tile: [1, 128], scale: float32}
      weight: {tile: [128, 128], scale: float32}
      gradient: {tile: [1, 128]}
"""
    scaling = load_yaml(text, PlanSpec).plan().layer("x").scaling
    assert scaling("weight") == Scaling(tile=(128, 128), scale="float32") and scaling("gradient").tile == (1, 128)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Scaling(tile=(0, 4)), r"scaling.tile: got \[0, 4\]"),
        (lambda: Scaling(scale="float32"), "got 'float32' without a tile"),
        (lambda: Scaling("delayed", tile=(1, 4)), "goes with method 'current'"),
        (lambda: plan(tiles={"input": Scaling(tile=(1, 4))}), "scaling.weight: got no tile, expected one as for input"),
        (lambda: plan(tiles=TILES | {"weight": Scaling(tile=(4, 8))}), "one length along the reduced axis"),
        (lambda: PrecisionPlan("x", (Rule("*", {}, {}, TILES),)), "casts.input: got none"),
        (lambda: plan(weight="mxfp8_e4m3"), "a block format, which brings its own"),
    ],
)
def test_mistakes_are_named(make, said):
    with pytest.raises(SpecError, match=said):
        make()
