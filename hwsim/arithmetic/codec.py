"""Codes and values of one number: what a bit pattern stands for, and the pattern of a value of the format."""

from __future__ import annotations

import math
from fractions import Fraction

from hwsim.arithmetic.number import BlockScaled, FixedPoint, FloatingPoint, NanCodes, NumberFormat, power_of_two
from hwsim.errors import SpecError, UnsupportedError


def decode_code(fmt: NumberFormat, code: int) -> float:
    """Return the value of one code (an unsigned integer below 2**bits) as a Python float, exactly.

    Raises:
        SpecError: the code has more bits than the format. UnsupportedError: block formats have no single code.
    """
    if isinstance(fmt, BlockScaled):
        raise UnsupportedError(f"{fmt}: a block element's value needs its scale; decode elements and scales apart")
    if not 0 <= code < 1 << fmt.bits:
        raise SpecError(f"decode {fmt}: got code {code}, expected 0 to {(1 << fmt.bits) - 1}")
    if isinstance(fmt, FixedPoint):
        signed = code - (1 << fmt.bits) if fmt.signed and code >> (fmt.bits - 1) else code
        return float(signed * power_of_two(-fmt.fraction_bits))
    magnitude_bits = fmt.exponent_bits + fmt.mantissa_bits
    negative, magnitude = bool(code >> magnitude_bits), code & ((1 << magnitude_bits) - 1)
    if negative and magnitude == 0 and not fmt.negative_zero:
        return math.nan  # the code of -0 is NaN in formats without a negative zero
    if magnitude > fmt.largest_code:
        is_infinity = fmt.infinities and magnitude == fmt.infinity_code
        return (-math.inf if negative else math.inf) if is_infinity else math.nan
    value = float(fmt.magnitude(magnitude))
    return -value if negative else value


def encode_value(fmt: NumberFormat, value: float) -> int:
    """Return the code of a value that the format holds (NaN gives the canonical NaN).

    Raises:
        SpecError: the format does not hold this value. UnsupportedError: block formats have no single code.
    """
    if isinstance(fmt, BlockScaled):
        raise UnsupportedError(f"{fmt}: a block has codes and a scale; use hwsim.kernels.encode")
    if isinstance(fmt, FixedPoint):
        return _encode_fixed(fmt, value)
    if math.isnan(value):
        if not fmt.has_nan:
            raise SpecError(f"encode {fmt}: got NaN, which the format does not have")
        return fmt.nan_code
    sign = (math.copysign(1.0, value) < 0) << (fmt.bits - 1) if fmt.signed else 0
    code = fmt.infinity_code if math.isinf(value) and fmt.infinities else _magnitude_code(fmt, abs(value))
    negative_without_sign = math.copysign(1.0, value) < 0 and (not fmt.signed or (code == 0 and not fmt.negative_zero))
    if code is None or negative_without_sign:
        raise SpecError(f"encode {fmt}: got {value!r}, which is not a value of the format (quantize first)")
    return sign | code


def all_codes(fmt: NumberFormat) -> range:
    """Return every code of a format of 24 bits at most.

    Raises:
        UnsupportedError: a block format, or too many codes to list.
    """
    if isinstance(fmt, BlockScaled) or fmt.bits > 24:
        raise UnsupportedError(f"{fmt}: codes are listed for element formats of 24 bits at most")
    return range(1 << fmt.bits)


def is_nan_code(fmt: FloatingPoint, code: int) -> bool:
    """Whether the code is one of the format's NaN codes."""
    return fmt.nan is not NanCodes.NONE and math.isnan(decode_code(fmt, code))


def _magnitude_code(fmt: FloatingPoint, magnitude: float) -> int | None:
    if math.isinf(magnitude):
        return None
    if magnitude == 0:
        return 0 if fmt.zero else None
    exponent = max(math.frexp(magnitude)[1] - 1, fmt.emin)
    count = Fraction(magnitude) / power_of_two(exponent - fmt.mantissa_bits)
    if count.denominator != 1:
        return None
    # A normal significand carries the hidden bit 2**mantissa_bits, which is one more in the exponent field.
    code = ((exponent - fmt.emin) << fmt.mantissa_bits) + int(count)
    if not fmt.zero:
        code -= 1 << fmt.mantissa_bits
    return code if 0 <= code <= fmt.largest_code else None


def _encode_fixed(fmt: FixedPoint, value: float) -> int:
    finite = math.isfinite(value)
    code = Fraction(value) / power_of_two(-fmt.fraction_bits) if finite else Fraction(0)
    negative_zero = finite and value == 0 and math.copysign(1.0, value) < 0
    if not finite or negative_zero or code.denominator != 1 or not fmt.lowest_code <= code <= fmt.largest_code:
        raise SpecError(f"encode {fmt}: got {value!r}, which is not a value of the format (quantize first)")
    return int(code) % (1 << fmt.bits)
