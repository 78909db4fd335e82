"""What a multiply-accumulate costs, part by part, from the formats of its operands and of its accumulator.

A multiplier costs its significand widths times each other, an adder or a register its width, a shifter its width
times the stages of a barrel shifter. Floating point adds what integers do not have: the exponent adder, the shifter
that aligns the addends, normalization and rounding.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil, log2

from hwsim.arithmetic.mac import Chunked, Exact, Fused, Kahan, MacSpec
from hwsim.arithmetic.number import BlockScaled, FixedPoint, FloatingPoint, NumberFormat
from hwsim.arithmetic.rounding import RoundingMode
from hwsim.arithmetic.storage import Cast
from hwsim.hardware.price import FREE, Price, Range
from hwsim.spec import Spec

GUARD_BITS = 3  # guard, round and sticky bits of an adder that rounds once


class Logic(Spec):
    """Prices of logic in pJ per bit; of a multiplier per pair of significand bits, of a shifter per bit and stage."""

    multiplier: Price
    adder: Price
    shifter: Price
    register_bit: Price
    divide_over_multiply: Price


def significand_bits(format: NumberFormat) -> int:
    """Bits that enter a multiplier: the significand with its hidden bit, or the whole integer."""
    if isinstance(format, FloatingPoint):
        return format.mantissa_bits + 1
    if isinstance(format, FixedPoint):
        return format.bits
    return significand_bits(format.element)


def _exponent_bits(format: NumberFormat) -> int:
    if isinstance(format, BlockScaled):
        return _exponent_bits(format.element)
    return format.exponent_bits if isinstance(format, FloatingPoint) else 0


def _stages(width: float) -> int:
    return max(1, ceil(log2(width)))


def _shift(logic: Logic, width: float) -> Range:
    """A barrel shifter: every bit passes one multiplexer in each of log2(width) stages."""
    return logic.shifter.range * (width * _stages(width))


def multiply_parts(logic: Logic, a: NumberFormat, b: NumberFormat) -> dict[str, Range]:
    """Energy in pJ of an exact product, not normalized, by part."""
    scales = sum(
        (_exponent_bits(f.scale) + (f.scale.mantissa_bits + 1) * significand_bits(f)) / f.block
        for f in (a, b)
        if isinstance(f, BlockScaled)
    )  # one scale a block: its exponent is added, its significand (if it has more than the hidden bit) multiplied
    exponents = max(_exponent_bits(a), _exponent_bits(b)) + scales
    return {
        "multiplier": logic.multiplier.range * (significand_bits(a) * significand_bits(b)),
        "exponent_adder": logic.adder.range * exponents,
    }


def round_parts(logic: Logic, format: NumberFormat) -> dict[str, Range]:
    """Energy in pJ of bringing a product back to its format: a shift by one and an increment; integers keep bits."""
    if not isinstance(format, FloatingPoint):
        return {}
    width = significand_bits(format)
    return {
        "normalization": logic.shifter.range * width,
        "rounding": logic.adder.range * width,
    }


def add_parts(logic: Logic, format: NumberFormat) -> dict[str, Range]:
    """Energy in pJ of one addition in `format`: for floats, compare exponents, align, add, normalize, round."""
    element = format.element if isinstance(format, BlockScaled) else format
    if isinstance(element, FixedPoint):
        return {"adder": logic.adder.range * float(element.bits)}
    width = significand_bits(element) + GUARD_BITS
    return {
        "exponent_adder": logic.adder.range * float(element.exponent_bits),
        "alignment": _shift(logic, width),
        "adder": logic.adder.range * float(width),
        "normalization": _shift(logic, width),
        "rounding": logic.adder.range * float(significand_bits(element)),
    }


def _rounding(logic: Logic, cast: Cast) -> Range:
    """Rounding logic of an accumulator: an increment; truncation is free; random bits need an adder and a generator."""
    if not isinstance(cast.format, FloatingPoint) or cast.rounding.mode is RoundingMode.TOWARD_ZERO:
        return FREE
    if cast.rounding.mode is RoundingMode.STOCHASTIC:
        width = significand_bits(cast.format) + cast.rounding.random_bits
        return logic.adder.range * width + logic.register_bit.range * cast.rounding.random_bits
    return logic.adder.range * significand_bits(cast.format)


MAC_PARTS = ("multiplier", "exponent_adder", "alignment", "adder", "normalization", "rounding", "register")


def mac_parts(logic: Logic, mac: MacSpec, a: NumberFormat, b: NumberFormat) -> dict[str, Range]:
    """Energy of one multiply-accumulate on operands of formats `a` and `b` in pJ, by part (all of `MAC_PARTS`)."""
    parts = dict.fromkeys(MAC_PARTS, FREE)

    def charge(items: Mapping[str, Range], times: float = 1.0) -> None:
        for name, price in items.items():
            parts[name] = parts[name] + price * times

    charge(multiply_parts(logic, a, b))
    if isinstance(mac.product, Cast):
        charge(round_parts(logic, mac.product.format))
    charge(*_accumulation(logic, mac, a, b))
    if isinstance(mac.order, Chunked):  # the outer sum: one addition a chunk
        outer = mac.order.outer or mac.cast
        charge(add_parts(logic, outer.format), 1.0 / mac.order.size)
        charge({"register": logic.register_bit.range * outer.format.bits}, 1.0 / mac.order.size)
    charge({"register": logic.register_bit.range * (a.bits + b.bits + _accumulator_bits(mac, a, b))})
    return parts


def _accumulation(logic: Logic, mac: MacSpec, a: NumberFormat, b: NumberFormat) -> tuple[dict[str, Range], float]:
    """Parts of adding one product to the accumulator, and how many such additions a MAC takes."""
    if isinstance(mac.order, Fused):
        # Each product is shifted to the largest exponent and added as an integer of F fraction bits; one
        # normalization and one rounding for all of them.
        width = mac.order.fraction_bits + GUARD_BITS
        share = 1.0 / mac.order.terms
        return {
            "exponent_adder": logic.adder.range * float(max(_exponent_bits(a), _exponent_bits(b))),
            "alignment": _shift(logic, width),
            "adder": logic.adder.range * float(width),
            "normalization": _shift(logic, width) * share,
            "rounding": _rounding(logic, mac.order.output) * share,
        }, 1.0
    if isinstance(mac.order, Exact):
        width = _kulisch_bits(a, b)
        return {"alignment": _shift(logic, width), "adder": logic.adder.range * float(width)}, 1.0
    parts = add_parts(logic, mac.accumulator)
    if isinstance(mac.accumulator, FloatingPoint):
        parts["rounding"] = _rounding(logic, mac.cast)
    elif isinstance(a, FloatingPoint) or isinstance(b, FloatingPoint):
        parts["alignment"] = _shift(logic, mac.accumulator.bits)  # a float product moves to the fixed grid
    return parts, (4.0 if isinstance(mac.order, Kahan) else 1.0)


def _kulisch_bits(a: NumberFormat, b: NumberFormat) -> int:
    """Width of an accumulator that holds every product exactly, with 16 bits for carries."""
    spans = 0
    for format in (a, b):
        element = format.element if isinstance(format, BlockScaled) else format
        if isinstance(element, FloatingPoint):
            spans += element.emax - element.smallest_exponent + 1
        else:
            spans += element.bits
    return spans + 16


def _accumulator_bits(mac: MacSpec, a: NumberFormat, b: NumberFormat) -> float:
    """Register bits clocked for each MAC to hold the running sum."""
    if isinstance(mac.order, Fused):
        return mac.order.output.format.bits / mac.order.terms
    if isinstance(mac.order, Exact):
        return _kulisch_bits(a, b)
    return mac.accumulator.bits * (2.0 if isinstance(mac.order, Kahan) else 1.0)
