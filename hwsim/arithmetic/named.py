"""Every format by name: one row each, and the grammars for the endless families.

To add a format, add a row to `FLOATS` (or `BLOCKS`); everything else (casts, kernels, documentation, tests) reads
these rows. Families need no row: ``eXmY``, ``fixedW.F``, ``intN``, ``binary8p3``, ``bfp8x16``, ``block(...)``.

Sources of the rows: IEEE 754-2019 (float16/32/64); OCP OFP8 v1.0 (e4m3fn, e5m2); OCP MX v1.0 (float6, float4, e8m0,
the mx blocks); ml_dtypes (names, and the fnuz, b11 and e3m4 variants); NVIDIA (tf32, nvfp4); IEEE P3109 interim
report (binary formats).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import fields
from difflib import get_close_matches
from functools import cache
from typing import Any

from hwsim.arithmetic.number import BlockScaled, FixedPoint, FloatingPoint, NanCodes, NumberFormat, ScaleRule
from hwsim.errors import SpecError

_IEEE: dict[str, Any] = {"nan": NanCodes.TOP_EXPONENT, "infinities": True, "negative_zero": True}
_FN: dict[str, Any] = {"nan": NanCodes.ALL_ONES, "infinities": False, "negative_zero": True}
_FNUZ: dict[str, Any] = {"nan": NanCodes.NEGATIVE_ZERO, "infinities": False, "negative_zero": False}
_FINITE: dict[str, Any] = {"nan": NanCodes.NONE, "infinities": False, "negative_zero": True}
_FAMILIES = {"": _IEEE, "fn": _FN, "fnuz": _FNUZ, "finite": _FINITE}

#        name                   exp man bias  special values
FLOATS: tuple[tuple[str, int, int, int, dict[str, Any]], ...] = (
    ("float64",                 11, 52, 1023, _IEEE),
    ("float32",                  8, 23, 127, _IEEE),
    ("tf32",                     8, 10, 127, _IEEE | {"container_bits": 32}),
    ("bfloat16",                 8,  7, 127, _IEEE),
    ("float16",                  5, 10, 15, _IEEE),
    ("float8_e5m2",              5,  2, 15, _IEEE),
    ("float8_e4m3",              4,  3, 7, _IEEE),
    ("float8_e3m4",              3,  4, 3, _IEEE),
    ("float8_e4m3fn",            4,  3, 7, _FN),
    ("float8_e5m2fnuz",          5,  2, 16, _FNUZ),
    ("float8_e4m3fnuz",          4,  3, 8, _FNUZ),
    ("float8_e4m3b11fnuz",       4,  3, 11, _FNUZ),
    ("float6_e2m3fn",            2,  3, 1, _FINITE),
    ("float6_e3m2fn",            3,  2, 3, _FINITE),
    ("float4_e2m1fn",            2,  1, 1, _FINITE),
    ("float8_e8m0fnu",           8,  0, 127,
     {"nan": NanCodes.ALL_ONES, "infinities": False, "negative_zero": False, "signed": False, "zero": False}),
)  # fmt: skip

#       name          element           block  scale             rule
BLOCKS: tuple[tuple[str, str, int, str, ScaleRule], ...] = (
    ("mxfp8_e4m3",    "float8_e4m3fn",  32,    "float8_e8m0fnu", ScaleRule.FLOOR),
    ("mxfp8_e5m2",    "float8_e5m2",    32,    "float8_e8m0fnu", ScaleRule.FLOOR),
    ("mxfp6_e2m3",    "float6_e2m3fn",  32,    "float8_e8m0fnu", ScaleRule.FLOOR),
    ("mxfp6_e3m2",    "float6_e3m2fn",  32,    "float8_e8m0fnu", ScaleRule.FLOOR),
    ("mxfp4_e2m1",    "float4_e2m1fn",  32,    "float8_e8m0fnu", ScaleRule.FLOOR),
    ("mxint8",        "fixed8.6",       32,    "float8_e8m0fnu", ScaleRule.FLOOR),
    ("nvfp4",         "float4_e2m1fn",  16,    "float8_e4m3fn",  ScaleRule.TWO_LEVEL),
)  # fmt: skip

ALIASES: dict[str, str] = {
    "fp64": "float64", "double": "float64", "binary64": "float64",
    "fp32": "float32", "float": "float32", "binary32": "float32",
    "tfloat32": "tf32",
    "bf16": "bfloat16",
    "fp16": "float16", "half": "float16", "binary16": "float16",
    "e2m3fn": "float6_e2m3fn", "e3m2fn": "float6_e3m2fn", "e2m1fn": "float4_e2m1fn", "fp4": "float4_e2m1fn",
    "float4_e2m1fn_x2": "float4_e2m1fn",
    "mxfp4": "mxfp4_e2m1",
}  # fmt: skip

GRAMMARS = "eXmY, eXmYb<bias>fn, fixedW.F, ufixedW.F, intN, uintN, binary8p3, bfpWxB, block(element, size, scale)"


@cache
def named_formats() -> Mapping[str, NumberFormat]:
    """Return every format that has a row, by canonical name, in the order of the tables, and the usual integers."""
    formats: dict[str, NumberFormat] = {}
    for name, exponent, mantissa, bias, special in FLOATS:
        formats[name] = FloatingPoint(name, exponent, mantissa, bias, **special)
    for bits in (2, 4, 8, 16, 32):
        for prefix, signed in (("int", True), ("uint", False)):
            formats[f"{prefix}{bits}"] = FixedPoint(f"{prefix}{bits}", bits, 0, signed)
    for name, element, block, scale, rule in BLOCKS:
        made = formats.get(element) or _fixed(element)
        scale_format = formats[scale]
        assert isinstance(made, FloatingPoint | FixedPoint) and isinstance(scale_format, FloatingPoint)
        formats[name] = BlockScaled(name, made, block, scale_format, rule)
    return formats


def parse_format(text: str | NumberFormat | Mapping[str, object]) -> NumberFormat:
    """Return the format that a name (or a mapping of `FloatingPoint`'s fields) stands for; formats pass through.

    The same set of codes and values always gives the same format under one canonical name: ``e5m10`` is
    ``float16`` and ``fixed8.0`` is ``int8``.

    Raises:
        SpecError: the name is no format; says the near names.
    """
    if isinstance(text, NumberFormat):
        return text
    if isinstance(text, Mapping):
        return _from_mapping(text)
    if not isinstance(text, str):
        raise SpecError(f"format: got {text!r}, expected a name such as bfloat16")
    return _parse_name(text.strip().removeprefix("torch."))


@cache
def _parse_name(text: str) -> NumberFormat:
    formats = named_formats()
    name = ALIASES.get(text, text)
    if name in formats:
        return formats[name]
    readers: tuple[Callable[[str], NumberFormat | None], ...] = (_float, _fixed, _p3109, _bfp, _block)
    for read in readers:
        found = read(name)
        if found is not None:
            return found
    near = get_close_matches(name, [*formats, *ALIASES], n=2, cutoff=0.6)
    hint = f". Did you mean {' or '.join(near)}?" if near else ""
    raise SpecError(f"format: got {text!r}, expected a name ({', '.join(list(formats)[:8])}, ...) or {GRAMMARS}{hint}")


def _canonical(fmt: FloatingPoint | FixedPoint | BlockScaled) -> NumberFormat:
    """Return the named format with the same fields, if there is one."""
    keys = [f.name for f in fields(fmt) if f.name not in ("name", "container_bits")]
    for known in named_formats().values():
        if type(known) is type(fmt) and all(getattr(known, k) == getattr(fmt, k) for k in keys):
            return known
    return fmt


def _float(text: str) -> NumberFormat | None:
    match = re.fullmatch(r"e(\d{1,2})m(\d{1,2})(?:b(-?\d{1,4}))?(fnuz|fn|finite)?", text)
    if not match:
        return None
    exponent, mantissa, family = int(match[1]), int(match[2]), match[4] or ""
    if not (2 <= exponent <= 8 and 1 <= mantissa <= 23):
        got = f"{exponent} exponent and {mantissa} mantissa bits"
        raise SpecError(f"format {text}: got {got}, expected 2 to 8 and 1 to 23")
    standard = (1 << (exponent - 1)) - (family != "fnuz")
    bias = standard if match[3] is None else int(match[3])
    name = f"e{exponent}m{mantissa}" + (f"b{bias}" if bias != standard else "") + family
    return _canonical(FloatingPoint(name, exponent, mantissa, bias, **_FAMILIES[family]))


def _fixed(text: str) -> FixedPoint | None:
    if match := re.fullmatch(r"(u?)int(\d{1,3})", text):
        bits, fraction = int(match[2]), 0
    elif match := re.fullmatch(r"(u?)fixed(\d{1,3})\.(-?\d{1,4})", text):
        bits, fraction = int(match[2]), int(match[3])
    else:
        return None
    prefix = match[1]
    name = f"{prefix}int{bits}" if fraction == 0 else f"{prefix}fixed{bits}.{fraction}"
    return FixedPoint(name, bits, fraction, not prefix)


def _p3109(text: str) -> NumberFormat | None:
    """IEEE P3109: binary{width}p{precision}{s|u}{e|f}, signed or unsigned, extended (infinities) or finite."""
    match = re.fullmatch(r"binary(\d{1,2})p(\d{1,2})([su]?)([ef]?)", text)
    if not match:
        return None
    bits, precision, signed, extended = int(match[1]), int(match[2]), match[3] != "u", match[4] != "f"
    if not (3 <= bits <= 16 and 1 <= precision <= bits - signed):
        raise SpecError(f"format {text}: expected a width of 3 to 16 and a precision of 1 to {max(bits - signed, 1)}")
    return FloatingPoint(
        f"binary{bits}p{precision}{'s' if signed else 'u'}{'e' if extended else 'f'}",
        exponent_bits=bits - precision + (not signed),
        mantissa_bits=precision - 1,
        bias=1 << (bits - precision - signed),
        nan=NanCodes.NEGATIVE_ZERO if signed else NanCodes.ALL_ONES,
        infinities=extended,
        negative_zero=False,
        signed=signed,
    )


def _bfp(text: str) -> NumberFormat | None:
    """Plain block floating point: bfp{element bits}x{block}, signed elements in [-2, 2) and a shared exponent."""
    match = re.fullmatch(r"bfp(\d{1,2})x(\d{1,6})", text)
    if not match:
        return None
    bits, block = int(match[1]), int(match[2])
    if not (2 <= bits <= 24 and block >= 1):
        raise SpecError(f"format {text}: expected 2 to 24 element bits and a block of 1 or more")
    return _make_block(_fixed(f"fixed{bits}.{bits - 2}"), block, "float8_e8m0fnu", ScaleRule.FLOOR)


def _block(text: str) -> NumberFormat | None:
    """block(element, size[, scale][, rule]), and NAME:round_up for a named block format with the other scale rule."""
    if text.endswith(":round_up"):
        base = _parse_name(text.removesuffix(":round_up"))
        if not isinstance(base, BlockScaled):
            raise SpecError(f"format {text}: only block formats have a scale rule")
        return _make_block(base.element, base.block, base.scale.name, ScaleRule.ROUND_UP)
    match = re.fullmatch(r"block\((.*)\)", text)
    if not match:
        return None
    parts = [p.strip() for p in match[1].split(",")]
    if not 2 <= len(parts) <= 4 or not parts[1].isdigit():
        raise SpecError(f"format {text}: expected block(element, size), block(element, size, scale) or (…, rule)")
    rule = ScaleRule.FLOOR
    if parts[-1] in list(ScaleRule):
        rule = ScaleRule(parts.pop())
    scale = parts[2] if len(parts) > 2 else "float8_e8m0fnu"
    element = _parse_name(parts[0])
    return _make_block(element, int(parts[1]), scale, rule)


def _make_block(element: NumberFormat | None, block: int, scale: str, rule: ScaleRule) -> NumberFormat:
    scale_format = _parse_name(scale)
    if not isinstance(element, FloatingPoint | FixedPoint) or not isinstance(scale_format, FloatingPoint):
        raise SpecError(f"block format: got element {element} and scale {scale}, expected an element and a float scale")
    if scale_format.mantissa_bits:
        rule = ScaleRule.TWO_LEVEL
    suffix = ":round_up" if rule is ScaleRule.ROUND_UP else ""
    same = [
        b for b in named_formats().values()
        if isinstance(b, BlockScaled) and (b.element, b.block, b.scale) == (element, block, scale_format)
    ]  # fmt: skip
    name = f"block({element}, {block}, {scale_format})"
    if same:
        name = same[0].name
    elif element.kind == "fixed" and element.fraction_bits == element.bits - 2 and scale == "float8_e8m0fnu":
        name = f"bfp{element.bits}x{block}"
    return BlockScaled(name + suffix, element, block, scale_format, rule)


def _from_mapping(given: Mapping[str, object]) -> NumberFormat:
    """Build a float format from its fields; `name` and the special-value fields may be left out (IEEE-like)."""
    known = {f.name for f in fields(FloatingPoint)}
    unknown = sorted(set(given) - known)
    if unknown:
        near = get_close_matches(unknown[0], known, n=1)
        hint = f". Did you mean {near[0]}?" if near else ""
        raise SpecError(f"format: unknown field {unknown[0]!r}, expected {', '.join(sorted(known))}{hint}")
    data = dict(given)
    for key in ("exponent_bits", "mantissa_bits"):
        if not isinstance(data.get(key), int) or isinstance(data[key], bool):
            raise SpecError(f"format: {key}: got {data.get(key)!r}, expected an integer")
    exponent, mantissa = data["exponent_bits"], data["mantissa_bits"]
    assert isinstance(exponent, int)
    data.setdefault("bias", (1 << (exponent - 1)) - 1)
    data.setdefault("name", f"e{exponent}m{mantissa}b{data['bias']}")
    try:
        data["nan"] = NanCodes(str(data.get("nan", "top_exponent")))
        return FloatingPoint(**data)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise SpecError(f"format {data['name']}: {error}") from None
