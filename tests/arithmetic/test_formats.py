"""Formats, casts and MACs: names round-trip, codes mean what other packages say, wrong names get near ones."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import gfloat
import ml_dtypes
import numpy as np
import pytest
from gfloat.formats import format_info_p3109
from gfloat.types import Domain, Signedness

from hwsim.arithmetic.codec import all_codes, decode_code, encode_value
from hwsim.arithmetic.mac import Fused, MacSpec, Native, ProductTable, named_mac, named_macs, parse_mac
from hwsim.arithmetic.named import ALIASES, named_formats, parse_format
from hwsim.arithmetic.number import BlockScaled, FixedPoint, FloatingPoint, carrier_of
from hwsim.arithmetic.rounding import Rounding
from hwsim.arithmetic.storage import Cast
from hwsim.errors import SpecError, UnsupportedError

ML_DTYPES = [
    n for n in named_formats() if hasattr(ml_dtypes, n) and n != "bfloat16" and not n.startswith(("int", "uint"))
]
FAMILIES = (
    "e6m9 e2m1 e8m15 e4m3b10fn e3m2finite e5m2b20fnuz fixed8.6 ufixed8.7 fixed8.12 fixed8.-3 fixed48.40 int5 uint3 "
    "binary8p3ue binary4p2sf binary16p8se bfp8x16 bfp12x5 mxfp8_e4m3:round_up block(float8_e5m2, 8, float8_e8m0fnu) "
    "block(float6_e3m2fn, 16, float8_e4m3fn)"
).replace(", ", ",").split()  # fmt: skip


@pytest.mark.parametrize("name", [*named_formats(), *FAMILIES])
def test_names_round_trip(name: str) -> None:
    fmt = parse_format(name)
    assert parse_format(str(fmt)) == fmt and hash(fmt) == hash(parse_format(str(fmt)))
    assert fmt.bits_per_element >= fmt.bits and fmt.kind in ("float", "fixed", "block")
    assert str(Cast.parse(str(Cast(fmt, "stochastic8", "saturate", "zero")))) == f"{fmt} stochastic8 saturate nan_zero"


def test_one_set_of_values_has_one_name() -> None:
    for alias, name in [*ALIASES.items(), ("e5m10", "float16"), ("e8m7", "bfloat16"), ("e4m3fn", "float8_e4m3fn"),
                        ("fixed8.0", "int8"), ("torch.bfloat16", "bfloat16"), ("block(fixed8.6, 32)", "mxint8"),
                        ("binary8p4", "binary8p4se"), ("e8m10", "tf32")]:  # fmt: skip
        assert parse_format(alias).name == name


@pytest.mark.parametrize("name", ML_DTYPES)
def test_codes_mean_what_ml_dtypes_says(name: str) -> None:
    fmt = parse_format(name)
    want = np.arange(1 << fmt.bits, dtype=np.uint8).view(getattr(ml_dtypes, name)).astype(np.float64)
    got = np.array([decode_code(fmt, code) for code in all_codes(fmt)])
    assert np.array_equal(got, want, equal_nan=True) and (np.signbit(got) == np.signbit(want))[~np.isnan(got)].all()
    info = ml_dtypes.finfo(getattr(ml_dtypes, name))
    assert isinstance(fmt, FloatingPoint)
    assert (fmt.largest, fmt.smallest_normal) == (float(info.max), float(info.smallest_normal))
    if fmt.zero:
        assert fmt.smallest_subnormal == float(info.smallest_subnormal)


@pytest.mark.parametrize("bits", range(3, 9))
def test_codes_of_p3109_mean_what_gfloat_says(bits: int) -> None:
    for precision in range(1, bits):
        for sign, signedness in (("s", Signedness.Signed), ("u", Signedness.Unsigned)):
            for end, domain in (("e", Domain.Extended), ("f", Domain.Finite)):
                fmt = parse_format(f"binary{bits}p{precision}{sign}{end}")
                info = format_info_p3109(bits, precision, signedness, domain)
                for code in all_codes(fmt):
                    want, got = gfloat.decode_float(info, code).fval, decode_code(fmt, code)
                    assert (math.isnan(want) and math.isnan(got)) or want == got


@pytest.mark.parametrize(
    "name", ["float8_e4m3fn", "float8_e5m2fnuz", "float8_e8m0fnu", "binary6p1ue", "fixed6.9", "uint4"]
)
def test_encode_undoes_decode(name: str) -> None:
    fmt = parse_format(name)
    for code in all_codes(fmt):
        value = decode_code(fmt, code)
        if not math.isnan(value):
            assert encode_value(fmt, value) == code
    with pytest.raises(SpecError, match="not a value of the format"):
        encode_value(fmt, 0.7)
    with pytest.raises(SpecError, match="expected 0 to"):
        decode_code(fmt, 1 << fmt.bits)


def test_wrong_names_get_near_ones() -> None:
    for text, message in [
        ("bfloat61", "Did you mean bfloat16"), ("float8_e4m3fm", "Did you mean float8_e4m3fn"),
        ("e9m3", "expected 2 to 8"), ("fixed99.2", "expected 1 to 48"), ("binary8p9", "precision"),
        ("bfp40x8", "2 to 24"), ("block(int8)", "block(element"),
    ]:  # fmt: skip
        with pytest.raises(SpecError, match=message.replace("(", r"\(")):
            parse_format(text)
    with pytest.raises(SpecError, match="Did you mean mantissa_bits"):
        parse_format({"exponent_bits": 4, "mantisa_bits": 3})
    with pytest.raises(SpecError, match="ties must be named"):
        Rounding.parse("nearest")
    with pytest.raises(SpecError, match="expected 1 to 32"):
        Rounding.parse("stochastic64")
    with pytest.raises(SpecError, match="Did you mean toward_zero"):
        Cast("int8", "towards_zero")
    with pytest.raises(SpecError, match="expected a fixed-point"):
        Cast("bfloat16", overflow="wrap")


def test_a_format_is_given_inline() -> None:
    fmt = parse_format({"exponent_bits": 4, "mantissa_bits": 3, "bias": 11, "nan": "negative_zero", "infinities": False,
                        "negative_zero": False, "name": "mine"})  # fmt: skip
    assert isinstance(fmt, FloatingPoint) and fmt.largest == 30.0 and fmt.name == "mine"


def test_carriers_hold_every_value() -> None:
    assert carrier_of(parse_format("fixed25.3")) == "float32" and carrier_of(parse_format("fixed26.3")) == "float64"
    assert carrier_of(parse_format("ufixed24.0")) == "float32" and carrier_of(parse_format("uint25")) == "float64"
    assert carrier_of(parse_format("fixed8.150")) == "float64" and carrier_of(parse_format("float64")) == "float64"
    for name, fmt in named_formats().items():
        if isinstance(fmt, FixedPoint | FloatingPoint) and fmt.bits <= 16 and carrier_of(fmt) == "float32":
            for code in list(all_codes(fmt))[:: max(1, (1 << fmt.bits) // 500)]:
                value = decode_code(fmt, code)
                assert math.isnan(value) or float(np.float32(value)) == value, name


def test_sizes_include_the_share_of_the_scale() -> None:
    assert [parse_format(n).bits_per_element for n in ("mxfp4_e2m1", "nvfp4", "tf32", "float6_e2m3fn")] == [
        4.25,
        4.5,
        32,
        6,
    ]


MACS = ["float32", "bfloat16 stochastic8, order=chunked(64, float32)",
        "int16 saturate, product=fixed8.6, order=pairwise",
        "float32, order=native", "e5m10, product=bfloat16 toward_zero, order=kahan",
        "float16, order=fused(16, 25, float16, groups=2, addend=last)"]  # fmt: skip


@pytest.mark.parametrize("text", [*MACS, *named_macs()])
def test_macs_round_trip(text: str) -> None:
    mac = parse_mac(text)
    assert parse_mac(str(mac)) == mac and hash(mac) == hash(parse_mac(str(mac)))


def test_wrong_macs_say_what_is_allowed() -> None:
    for text, message in [
        ("bfloat16, order=chunk(64)", "Did you mean chunked"), ("bfloat16, odrer=exact", "expected product="),
        ("bfloat16, order=native", "goes with a float32 accumulator"), ("mxint8", "expected a float or fixed"),
        ("h200.float8.float32.wgmma", "Did you mean"), ("float32, order=chunked(x)", "positive integer"),
        ("float32, order=fused(0, 3)", "expected 1 to 1024"),
    ]:  # fmt: skip
        with pytest.raises(SpecError, match=message):
            parse_mac(text)
    with pytest.raises(SpecError, match="bytes"):
        ProductTable("t", parse_format("int4"), parse_format("int4"), b"")
    assert isinstance(MacSpec(order="native").order, Native)


def test_hardware_rows_have_the_published_parameters() -> None:
    order = named_mac("h200.float8_e4m3fn.float32.wgmma").order
    assert isinstance(order, Fused) and (order.terms, order.fraction_bits, str(order.output)) == (
        32,
        13,
        "e8m13 toward_zero",
    )
    with pytest.raises(SpecError, match="list macs"):
        named_mac("tpu.float8.float32.mma")


def test_block_formats_have_no_single_codes() -> None:
    fmt = parse_format("mxint8")
    assert isinstance(fmt, BlockScaled)
    for act in (lambda: decode_code(fmt, 0), lambda: encode_value(fmt, 1.0), lambda: all_codes(fmt)):
        with pytest.raises(UnsupportedError):
            act()


def test_arithmetic_imports_no_tensor_library() -> None:
    heavy = "[m for m in ('numpy', 'torch', 'numba') if m in sys.modules]"
    code = f"import sys, hwsim.arithmetic.mac, hwsim.arithmetic.codec; print({heavy})"
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parent
    )
    assert shown.stdout.strip() == "[]"
