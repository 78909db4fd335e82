"""The tables of docs/formats.md: every named format and every special-value corner, computed and not typed.

python -m hwsim.kernels.format_table            print the tables
python -m hwsim.kernels.format_table FILE       put them into a file, between its two marker lines
"""

from __future__ import annotations

import math
import sys
from fractions import Fraction
from pathlib import Path

from hwsim.arithmetic.codec import decode_code
from hwsim.arithmetic.named import named_formats, parse_format
from hwsim.arithmetic.number import BlockScaled, FixedPoint, FloatingPoint, NumberFormat, carrier_of, power_of_two
from hwsim.arithmetic.storage import Cast
from hwsim.errors import SpecError
from hwsim.kernels.reference.rounding import round_exact

BEGIN, END = "<!-- generated: begin -->", "<!-- generated: end -->"
EXTRA = ("fixed8.6", "ufixed8.7", "binary8p4se", "binary8p4sf", "binary8p4ue", "binary8p4uf", "binary8p1se", "bfp8x16")


def shown_formats() -> list[NumberFormat]:
    """Return every format with a row, and one of each family."""
    return [*named_formats().values(), *(parse_format(name) for name in EXTRA)]


def values_table() -> str:
    """Return the table of value sets, one line a format."""
    lines = [
        "| format | bits | largest | smallest normal | smallest | -0 | infinity | NaN | carrier |",
        "|---" * 9 + "|",
    ]
    for fmt in shown_formats():
        if isinstance(fmt, FloatingPoint):
            cells = [
                _number(fmt.largest), _number(fmt.smallest_normal), _number(fmt.smallest_subnormal),
                _yes(fmt.negative_zero), _code(fmt, fmt.infinity_code) if fmt.infinities else "none", _nan_codes(fmt),
            ]  # fmt: skip
        elif isinstance(fmt, FixedPoint):
            cells = [
                f"{_number(fmt.largest)} (lowest {_number(fmt.lowest)})",
                "-",
                _number(fmt.step),
                "no",
                "none",
                "none",
            ]
        else:
            scale = f"blocks of {fmt.block} {fmt.element}, scale {fmt.scale} ({fmt.scale_rule.value})"
            cells = [scale, "-", "-", _yes(fmt.element.negative_zero), "none", "whole block"]
        bits = (
            f"{fmt.bits_per_element:g}"
            if isinstance(fmt, BlockScaled) or fmt.bits != fmt.bits_per_element
            else fmt.bits
        )
        lines.append(f"| {fmt} | {bits} | {' | '.join(cells)} | {carrier_of(fmt)} |")
    return "\n".join(lines)


def corners_table() -> str:
    """Return the table of special inputs, one line a format: what the definition answers, not what was intended."""
    columns = [
        ("tie above largest", "nearest_even", "native"), ("2 x largest", "nearest_even", "native"),
        ("2 x largest", "toward_zero", "native"), ("-2 x largest", "up", "native"),
        ("2 x largest", "nearest_even", "saturate"),
        ("inf", "nearest_even", "native"), ("inf", "toward_zero", "native"), ("-inf", "nearest_even", "saturate"),
        ("-tiny", "nearest_even", "native"), ("-1", "nearest_even", "native"), ("0", "nearest_even", "native"),
        ("NaN", "nearest_even", "native"),
    ]  # fmt: skip
    heads = [_head(*column) for column in columns]
    lines = ["| format | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for fmt in shown_formats():
        if isinstance(fmt, BlockScaled):
            continue
        cells = [_answer(fmt, given, rounding, overflow) for given, rounding, overflow in columns]
        lines.append(f"| {fmt} | {' | '.join(cells)} |")
    return "\n".join(lines)


def section() -> str:
    """Return the generated section with its marker lines."""
    return f"{BEGIN}\n\n### Values\n\n{values_table()}\n\n### Corners\n\n{corners_table()}\n\n{END}"


def _head(given: str, rounding: str, overflow: str) -> str:
    parts = [given] + ([rounding] if rounding != "nearest_even" else []) + ([overflow] if overflow != "native" else [])
    return ", ".join(parts)


def _answer(fmt: FloatingPoint | FixedPoint, given: str, rounding: str, overflow: str) -> str:
    largest, lowest = Fraction(fmt.largest), Fraction(fmt.lowest)
    top_step = power_of_two(fmt.smallest_exponent if isinstance(fmt, FixedPoint) else fmt.emax - fmt.mantissa_bits)
    values: dict[str, Fraction | float] = {
        "tie above largest": largest + top_step / 2, "2 x largest": 2 * largest, "-2 x largest": -2 * largest,
        "inf": math.inf, "-inf": -math.inf, "-tiny": -power_of_two(fmt.smallest_exponent - 3),
        "-1": -1.0, "0": 0.0, "NaN": math.nan,
    }  # fmt: skip
    try:
        got = round_exact(values[given], Cast(fmt, rounding, overflow))
    except SpecError:
        return "error"
    if got == largest:
        return "largest"
    if got == lowest and got < -1:
        return "lowest"
    return _number(got)


def _nan_codes(fmt: FloatingPoint) -> str:
    if not fmt.has_nan:
        return "none"
    if fmt.bits > 16:
        return f"{_code(fmt, fmt.nan_code)} and others"
    codes = [code for code in range(1 << fmt.bits) if math.isnan(decode_code(fmt, code))]
    if len(codes) <= 2:
        return ", ".join(_code(fmt, code) for code in codes)
    return f"{len(codes)} codes, {_code(fmt, fmt.nan_code)} is written"


def _code(fmt: FloatingPoint, code: int) -> str:
    return f"0x{code:0{(fmt.bits + 3) // 4}x}"


def _number(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value) or value == 0 or (abs(value) >= 1e-3 and value == round(value, 6) and abs(value) < 1e6):
        return f"{value:g}" if abs(value) < 1e5 or math.isinf(value) else f"{value:.0f}"
    mantissa, exponent = math.frexp(abs(value))
    if mantissa == 0.5:
        return f"{'-' if value < 0 else ''}2^{exponent - 1}"
    return f"{value:.9g}"


def _yes(flag: bool) -> str:
    return "yes" if flag else "no"


def main(arguments: list[str]) -> None:
    """Print the section, or replace it in the file named."""
    if not arguments:
        print(section())
        return
    path = Path(arguments[0])
    text = path.read_text(encoding="utf-8")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    path.write_text(before + section() + after, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
