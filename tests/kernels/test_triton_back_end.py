"""The Triton back end equals the reference bit for bit (through Triton's interpreter here, on the device where there
is one)."""

import os

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported: its kernels then run as Python
pytest.importorskip("triton")

import triton.language as tl

import hwsim
from hwsim.arithmetic.mac import MacSpec, parse_mac
from hwsim.arithmetic.storage import Cast
from hwsim.errors import SpecError, UnsupportedError
from hwsim.kernels import backends, random_bits
from hwsim.kernels.reference.matmul import matmul as reference_matmul
from hwsim.kernels.reference.quantize import cast_array
from hwsim.kernels.triton_gpu import gemm, rounding
from hwsim.kernels.triton_gpu.quantize import cast_tensor

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
STREAM = 0xFEDC_BA98_7654_3210  # above 2^63: a stream is an unsigned number
ROUNDINGS = (
    "nearest_even",
    "nearest_away",
    "toward_zero",
    "up",
    "down",
    "to_odd",
    "stochastic",
    "stochastic4",
    "stochastic32",
)
FORMATS = (
    "float8_e4m3fn",
    "float8_e5m2",
    "float8_e4m3fnuz",
    "float6_e2m3fn",
    "float4_e2m1fn",
    "bfloat16",
    "float16",
    "tf32",
    "float32",
    "e5m10",
    "e6m9",
    "float8_e8m0fnu",
    "fixed8.6",
    "ufixed8.7",
    "int8",
    "uint4",
    "fixed4.-2",
    "fixed32.16",
)


def values():
    rng = np.random.default_rng(0)
    spread = rng.standard_normal(80) * 2.0 ** rng.integers(-30, 30, 80)
    edges = [
        0.0,
        -0.0,
        np.inf,
        -np.inf,
        1e-45,
        -1e-45,
        3.4e38,
        -3.4e38,
        448,
        464,
        465,
        240,
        57344,
        61440,
        65504,
        65519,
        65520,
        0.5,
        1.5,
        2.5,
        -0.5,
        -1.5,
        127,
        127.5,
        128,
        -128,
        -128.5,
        -129,
        2**-9,
        2**-10,
        3 * 2**-10,
        6,
        7,
        2.5e-8,
    ]
    return np.concatenate([spread, edges]).astype(np.float32)


def bits(x):
    return x.view(np.uint32 if x.dtype == np.float32 else np.uint64)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("mode", ROUNDINGS)
def test_casts_equal_the_reference(name, mode):
    x = np.concatenate([values(), [np.float32("nan")]])
    for overflow in ("native", "saturate"):
        cast = Cast(name, mode, overflow, "zero")
        got = cast_tensor(torch.from_numpy(x).to(DEVICE), cast, STREAM).cpu().numpy()
        wanted = cast_array(x, cast, STREAM)
        assert got.dtype == wanted.dtype
        assert np.array_equal(bits(got), bits(wanted)), f"{cast}: {x[bits(got) != bits(wanted)][:3]}"


@pytest.mark.parametrize("name", ["fixed8.6", "int8", "ufixed8.7", "fixed48.20"])
@pytest.mark.parametrize("mode", ["nearest_even", "down", "stochastic"])
def test_wrapping_casts_equal_the_reference(name, mode):
    x = values()
    x = x[np.isfinite(x)]
    cast = Cast(name, mode, "wrap")
    got = cast_tensor(torch.from_numpy(x).to(DEVICE), cast, STREAM).cpu().numpy()
    assert np.array_equal(bits(got), bits(cast_array(x, cast, STREAM)))


@pytest.mark.parametrize(
    ("cast", "x"),
    [
        (Cast("int8"), [1.0, float("nan")]),
        (Cast("float8_e4m3fn", overflow="error"), [449.0 * 2]),
        (Cast("int8", overflow="error"), [-129.0]),
        (Cast("int8", overflow="wrap"), [float("inf")]),
        (Cast("float8_e4m3fn", overflow="error"), [float("inf")]),
    ],
    ids=str,
)
def test_a_value_that_is_an_error_is_one_here_too(cast, x):
    with pytest.raises(SpecError):
        cast_tensor(torch.tensor(x, device=DEVICE), cast)
    assert float(cast_tensor(torch.tensor([1.0], device=DEVICE), cast)[0]) == 1.0


def test_other_shapes_types_scales_and_targets():
    x = torch.arange(24, dtype=torch.float32, device=DEVICE).reshape(4, 6).t() / 7
    cast = Cast("float8_e4m3fn", "stochastic")
    wanted = cast_array(x.cpu().numpy(), cast, STREAM)  # strided: the counter is the logical row-major place
    assert np.array_equal(cast_tensor(x, cast, STREAM).cpu().numpy(), wanted)
    out = torch.zeros(6, 4, device=DEVICE)
    assert cast_tensor(x, cast, STREAM, out=out) is out and np.array_equal(out.cpu().numpy(), wanted)
    half = cast_tensor(x.half(), Cast("bfloat16"))
    assert np.array_equal(half.cpu().numpy(), cast_array(x.half().float().cpu().numpy(), Cast("bfloat16")))
    scaled = cast_tensor(x, Cast("int8"), scale=0.25)
    assert np.array_equal(
        scaled.cpu().numpy(), cast_array(x.cpu().numpy().astype(np.float64) / 0.25, Cast("int8")) * 0.25
    )
    assert cast_tensor(x[:0], cast).shape == (0, 4)
    with pytest.raises(SpecError, match="shape"):
        cast_tensor(x, cast, out=torch.zeros(3, device=DEVICE))
    with pytest.raises(UnsupportedError, match="block"):
        cast_tensor(x, Cast("mxfp8_e4m3"))


def test_words_are_those_of_random_bits():
    """A cast of values halfway between two steps with 32 random bits shows the words' first bits."""
    n, stream = 3000, 12345
    x = torch.full((n,), 1.5, device=DEVICE)
    up = (cast_tensor(x, Cast("fixed8.0", "stochastic32"), stream) == 2).cpu().numpy()
    assert np.array_equal(up, np.array([random_bits.word(stream, i) >> 31 == 1 for i in range(n)]))


MACS = [
    "bfloat16",
    "float16",
    "float32",
    "float8_e4m3fn",
    "fixed16.8",
    "fixed16.8 wrap",
    "bfloat16 stochastic8",
    "float32 stochastic",
    "float32 to_odd",
    "bfloat16 down",
    "e6m9 toward_zero",
    "bfloat16 nearest_away",
    "bfloat16, product=float8_e4m3fn",
    "float16 stochastic, product=bfloat16 stochastic4",
    "bfloat16, order=chunked(4, float32)",
    "float16 stochastic8, order=chunked(3)",
    "bfloat16, order=kahan",
    "float16 stochastic4, order=kahan",
    "fixed24.10, order=chunked(2, fixed32.10)",
]
CHIPS = [
    "v100.float16.float32.mma",
    "a100.tf32.float32.mma",
    "h200.bfloat16.float32.mma",
    "h200.float16.float16.wgmma",
    "h200.float8_e4m3fn.float32.wgmma",
    "h200.float8_e5m2.float16.mma",
]


def operands(m, k, n, wide, seed=1):
    rng = np.random.default_rng(seed)
    a = rng.standard_normal((m, k)) * 2.0 ** rng.integers(-wide, wide + 1, (m, k))
    b = rng.standard_normal((k, n)) * 2.0 ** rng.integers(-wide, wide + 1, (k, n))
    a[0, 1] = 0
    return (
        a.astype(np.float32),
        b.astype(np.float32),
        rng.standard_normal((m, n)).astype(np.float32),
        rng.standard_normal(n).astype(np.float32),
    )


@pytest.mark.parametrize("text", [*MACS, *CHIPS])
@pytest.mark.parametrize("wide", [0, 12])
def test_matmul_equals_the_reference(text, wide):
    a, b, c, bias = operands(3, 39 if text.startswith("h200.float8") else 19 if text in CHIPS else 7, 5, wide)
    mac = parse_mac(text)
    c, bias = (c, bias) if wide else (None, None)
    wanted = reference_matmul(a, b, mac, None if c is None else c.astype(np.float64), bias, STREAM)
    got = gemm.matmul(a, b, mac, c, bias, STREAM)
    assert got.dtype == wanted.dtype
    assert np.array_equal(bits(got), bits(wanted)), (got, wanted)


def test_a_sum_is_rounded_once():
    """The constructed case that two roundings get wrong: 2^-30 + 144/128 * 232/256 in bfloat16 is 1.0234375, not
    1.015625."""
    a = np.array([[2.0**-30, 144 / 128]], np.float32)
    b = np.array([[1.0], [232 / 256]], np.float32)
    assert gemm.matmul(a, b, MacSpec("bfloat16"))[0, 0] == np.float32(1.0234375)


def test_rounding_the_nearest_float64_sum_would_be_seen(monkeypatch):
    """Deliberate break: without rounding to odd, 1 + 2^-9 + 2^-63 loses its last term and the tie of e8m8 goes to
    even."""
    mac = MacSpec("e8m8")
    c, a, b = np.array([[2.0**-63]], np.float32), np.array([[1 + 2.0**-9]], np.float32), np.array([[1.0]], np.float32)
    wanted = reference_matmul(a, b, mac, c.astype(np.float64), None, 0)
    assert wanted[0, 0] == np.float32(1 + 2.0**-8)
    assert gemm.matmul(a, b, mac, c)[0, 0] == wanted[0, 0]
    if not torch.cuda.is_available():
        monkeypatch.setattr(gemm, "add_to_odd", rounding.triton.jit(_plain_addition))
        assert gemm.matmul(a, b, mac, c)[0, 0] != wanted[0, 0]


def _plain_addition(x, y, DOWN):
    return (x + y).to(tl.int64, bitcast=True)


def test_batches_strides_and_out():
    a, b, _, _ = operands(4, 6, 8, 1)
    x, y = torch.from_numpy(a).to(DEVICE), torch.from_numpy(b).to(DEVICE)
    mac = parse_mac("bfloat16 stochastic")
    wanted = reference_matmul(a, b, mac, None, None, STREAM)
    strided = gemm.matmul(x.t().contiguous().t(), y.t().contiguous().t(), mac, stream=STREAM)
    assert np.array_equal(strided.cpu().numpy(), wanted)
    out = torch.empty(4, 8, device=DEVICE)
    assert gemm.matmul(x, y, mac, stream=STREAM, out=out) is out and np.array_equal(out.cpu().numpy(), wanted)
    batch = gemm.matmul(torch.stack([x, 2 * x]), y, mac, stream=STREAM).cpu().numpy()
    places = (4 * 8 + np.arange(32)).reshape(4, 8)  # the second item of a batch draws at its own row-major places
    assert np.array_equal(batch[0], wanted)
    assert np.array_equal(batch[1], reference_matmul(2 * a, b, mac, None, None, STREAM, None, places))
    empty = gemm.matmul(x[:, :0], y[:0], mac)
    assert empty.shape == (4, 8) and not empty.any()


@pytest.mark.parametrize(
    "text", ["float32, order=pairwise", "bfloat16, order=exact", "float64", "float32 stochastic32"]
)
def test_what_it_cannot_do_exactly_it_refuses(text):
    a, b, _, _ = operands(2, 3, 2, 0)
    with pytest.raises(UnsupportedError):
        gemm.matmul(a, b, parse_mac(text))
    with pytest.raises(UnsupportedError, match="float64"):
        gemm.matmul(a.astype(np.float64), b.astype(np.float64), MacSpec("bfloat16"))


def test_a_sum_out_of_range_is_an_error_where_the_accumulator_says_so():
    a, b = np.full((1, 2), 100.0, np.float32), np.ones((2, 1), np.float32)
    with pytest.raises(SpecError, match="cannot hold"):
        gemm.matmul(a, b, parse_mac("int8 error"))
    assert gemm.matmul(a, b, parse_mac("int8"))[0, 0] == 127


@pytest.mark.parametrize(
    "text",
    [
        "bfloat16 stochastic8",
        "float16 stochastic, product=bfloat16 stochastic4",
        "bfloat16 stochastic, order=kahan",
        "bfloat16 stochastic, order=chunked(2, float32 stochastic)",
    ],
)
def test_compacted_operands_draw_at_their_original_places(text):
    """Top-k gathers k (and rows); random bits are those of the original positions."""
    a, b, _, bias = operands(3, 5, 4, 2)
    k_places, row_places = np.array([0, 3, 4, 9, 70000]), np.array([1, 5, 6])
    mac = parse_mac(text)
    wanted_at = row_places[:, None] * 4 + np.arange(4)
    wanted = reference_matmul(a, b, mac, None, bias, STREAM, [int(k) for k in k_places], wanted_at)
    got = gemm.matmul(a, b, mac, None, bias, STREAM, None, k_places, row_places)
    assert np.array_equal(bits(got), bits(wanted))
    assert not np.array_equal(bits(got), bits(gemm.matmul(a, b, mac, None, bias, STREAM)))


def test_the_public_functions_reach_this_back_end():
    backends.missing.cache_clear()
    x = torch.arange(6.0, device=DEVICE).reshape(2, 3) / 7
    with hwsim.backend("triton"):
        backends.reset_used()
        cast = hwsim.quantize(x, "float8_e4m3fn", "stochastic", seed=3)
        product = hwsim.matmul(x, x.t(), "bfloat16 stochastic8", seed=3)
        assert backends.used() == ("triton",)
    with hwsim.backend("reference"):
        assert np.array_equal(
            cast.cpu().numpy(), hwsim.quantize(x.cpu().numpy(), "float8_e4m3fn", "stochastic", seed=3)
        )
        wanted = hwsim.matmul(x.cpu().numpy(), x.t().cpu().numpy(), "bfloat16 stochastic8", seed=3)
    assert np.array_equal(product.cpu().numpy(), wanted)
    backends.missing.cache_clear()
