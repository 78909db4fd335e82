"""Number formats: which values exist and which bit pattern stands for each.

A format is plain frozen data. `FloatingPoint` covers every binary float (IEEE-like, fn, fnuz, P3109, exponent-only
scales), `FixedPoint` covers fixed point and integers, `BlockScaled` joins an element format with a shared scale.
Nothing here rounds: that is `hwsim.arithmetic.rounding` (which rule) and `hwsim.kernels` (on tensors).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from typing import Literal

from hwsim.errors import SpecError, UnsupportedError

MAX_FIXED_BITS = 48
FLOAT32_EMAX = 127
FLOAT32_SMALLEST_EXPONENT = -149


class NanCodes(StrEnum):
    """Which bit patterns of a float format are NaN."""

    TOP_EXPONENT = "top_exponent"  # IEEE 754: exponent field all ones, fraction not zero
    ALL_ONES = "all_ones"  # only the highest magnitude (fn formats, unsigned P3109, e8m0fnu)
    NEGATIVE_ZERO = "negative_zero"  # the code of -0 (fnuz formats, signed P3109)
    NONE = "none"  # no NaN (float6 and float4 of OCP MX)


def power_of_two(exponent: int) -> Fraction:
    """Return 2**exponent exactly, for exponents of either sign."""
    return Fraction(1 << exponent) if exponent >= 0 else Fraction(1, 1 << -exponent)


@dataclass(frozen=True, slots=True)
class FloatingPoint:
    """A binary floating-point format: sign, exponent field, mantissa field.

    The magnitude code c = exponent field * 2**mantissa_bits + mantissa field grows with the value. A zero exponent
    field means subnormal (or, if `zero` is False, one more normal binade). The highest magnitude codes are taken by
    NaN and infinity where the format has them.

    Args:
        name: canonical name.
        exponent_bits: width of the exponent field (1 to 11).
        mantissa_bits: width of the mantissa field, the hidden bit not counted (0 to 52).
        bias: value = 2**(exponent field - bias) * 1.mantissa for normal numbers.
        nan: which codes are NaN.
        infinities: whether the format has +-infinity (IEEE-like and extended P3109 formats).
        negative_zero: whether -0 is a value of the format.
        signed: whether there is a sign bit.
        zero: whether there are a zero and subnormals (False for float8_e8m0fnu).
        container_bits: bits that one element takes in memory if not `bits` (tf32 lives in 32); 0 means `bits`.
    """

    name: str
    exponent_bits: int
    mantissa_bits: int
    bias: int
    nan: NanCodes = NanCodes.TOP_EXPONENT
    infinities: bool = True
    negative_zero: bool = True
    signed: bool = True
    zero: bool = True
    container_bits: int = 0

    def __post_init__(self) -> None:
        if not (1 <= self.exponent_bits <= 11 and 0 <= self.mantissa_bits <= 52):
            raise SpecError(
                f"format {self.name}: got {self.exponent_bits} exponent and {self.mantissa_bits} mantissa bits, "
                "expected 1 to 11 and 0 to 52"
            )
        if self.negative_zero and (self.nan is NanCodes.NEGATIVE_ZERO or not self.signed or not self.zero):
            raise SpecError(f"format {self.name}: this format has no code left for a negative zero")
        if self.nan is NanCodes.TOP_EXPONENT and not self.infinities:
            raise SpecError(f"format {self.name}: NaN codes 'top_exponent' come with infinities")
        if self.largest_code < 1:
            raise SpecError(f"format {self.name}: no finite positive value is left beside its special codes")
        if self.emax > 1023 or self.smallest_exponent < -1074:
            raise SpecError(f"format {self.name}: its values do not fit into float64 (bias {self.bias})")

    def __str__(self) -> str:
        return self.name

    @property
    def kind(self) -> Literal["float"]:
        """The kind of format, for code that must tell the three apart."""
        return "float"

    @property
    def bits(self) -> int:
        """Bits of one code, sign included."""
        return self.signed + self.exponent_bits + self.mantissa_bits

    @property
    def bits_per_element(self) -> float:
        """Bits that one stored element takes in memory."""
        return float(self.container_bits or self.bits)

    @property
    def precision(self) -> int:
        """Significant bits of a normal number, the hidden bit included."""
        return self.mantissa_bits + 1

    @property
    def emin(self) -> int:
        """Exponent of the smallest normal number."""
        return (1 if self.zero else 0) - self.bias

    @property
    def largest_code(self) -> int:
        """Magnitude code of the largest finite value."""
        top = (1 << (self.exponent_bits + self.mantissa_bits)) - 1
        if self.nan is NanCodes.TOP_EXPONENT:
            return top - (1 << self.mantissa_bits)
        return top - (self.nan is NanCodes.ALL_ONES) - self.infinities

    @property
    def infinity_code(self) -> int:
        """Magnitude code of infinity.

        Raises:
            UnsupportedError: the format has no infinities.
        """
        if not self.infinities:
            raise UnsupportedError(f"format {self.name} has no infinity")
        return self.largest_code + 1

    @property
    def nan_code(self) -> int:
        """The canonical NaN: quiet and positive where the format has a choice.

        Raises:
            UnsupportedError: the format has no NaN.
        """
        if self.nan is NanCodes.NONE:
            raise UnsupportedError(f"format {self.name} has no NaN")
        if self.nan is NanCodes.NEGATIVE_ZERO:
            return 1 << (self.bits - 1)
        top = (1 << (self.exponent_bits + self.mantissa_bits)) - 1
        if self.nan is NanCodes.ALL_ONES:
            return top
        quiet_bit = (1 << self.mantissa_bits) >> 1
        return self.infinity_code + max(quiet_bit, 1)

    @property
    def has_nan(self) -> bool:
        """Whether the format has a NaN."""
        return self.nan is not NanCodes.NONE

    @property
    def emax(self) -> int:
        """Exponent of the largest finite value: floor(log2(largest))."""
        field = self.largest_code >> self.mantissa_bits
        if field == 0 and self.zero:
            return self.largest_code.bit_length() - 1 + self.smallest_exponent
        return field - self.bias

    @property
    def smallest_exponent(self) -> int:
        """Exponent of the distance between the smallest neighbours: every finite value is a multiple of 2**this."""
        return self.emin - self.mantissa_bits

    def magnitude(self, code: int) -> Fraction:
        """Return the exact value of a finite magnitude code (no sign bit)."""
        field, mantissa = code >> self.mantissa_bits, code & ((1 << self.mantissa_bits) - 1)
        if field == 0 and self.zero:
            return mantissa * power_of_two(self.smallest_exponent)
        return ((1 << self.mantissa_bits) + mantissa) * power_of_two(field - self.bias - self.mantissa_bits)

    @property
    def largest(self) -> float:
        """Largest finite value."""
        return float(self.magnitude(self.largest_code))

    @property
    def lowest(self) -> float:
        """Most negative finite value (0 or the smallest value for unsigned formats)."""
        return -self.largest if self.signed else float(self.magnitude(0))

    @property
    def smallest_normal(self) -> float:
        """Smallest positive normal value."""
        return float(power_of_two(self.emin))

    @property
    def smallest_subnormal(self) -> float:
        """Smallest positive value."""
        return float(self.magnitude(1 if self.zero else 0))


@dataclass(frozen=True, slots=True)
class FixedPoint:
    """Fixed point: an integer of `bits` bits (two's complement if signed) times 2**-fraction_bits.

    Integers have no fraction bits. The fraction may exceed the width (all values below 1) or be negative (steps
    above 1). There are no infinities, no NaN and no negative zero.
    """

    name: str
    bits: int
    fraction_bits: int = 0
    signed: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= MAX_FIXED_BITS:
            raise SpecError(f"format {self.name}: got {self.bits} bits, expected 1 to {MAX_FIXED_BITS}")
        if not -960 <= self.fraction_bits <= 1022:
            raise SpecError(f"format {self.name}: got {self.fraction_bits} fraction bits, expected -960 to 1022")

    def __str__(self) -> str:
        return self.name

    @property
    def kind(self) -> Literal["fixed"]:
        """The kind of format, for code that must tell the three apart."""
        return "fixed"

    @property
    def bits_per_element(self) -> float:
        """Bits that one stored element takes in memory."""
        return float(self.bits)

    @property
    def smallest_exponent(self) -> int:
        """Exponent of the step between neighbours: every value is a multiple of 2**this."""
        return -self.fraction_bits

    @property
    def step(self) -> float:
        """Distance between neighbouring values: 2**-fraction_bits."""
        return float(power_of_two(-self.fraction_bits))

    @property
    def largest_code(self) -> int:
        """Largest integer."""
        return (1 << (self.bits - self.signed)) - 1

    @property
    def lowest_code(self) -> int:
        """Lowest integer (negative if signed)."""
        return -(1 << (self.bits - 1)) if self.signed else 0

    @property
    def largest(self) -> float:
        """Largest value."""
        return float(self.largest_code * power_of_two(-self.fraction_bits))

    @property
    def lowest(self) -> float:
        """Most negative value."""
        return float(self.lowest_code * power_of_two(-self.fraction_bits))

    @property
    def emax(self) -> int:
        """Exponent of the largest value: floor(log2(largest)); of the lowest if no value is positive."""
        code = self.largest_code or 1
        return code.bit_length() - 1 - self.fraction_bits

    @property
    def infinities(self) -> bool:
        """Fixed point has none."""
        return False

    @property
    def has_nan(self) -> bool:
        """Fixed point has none."""
        return False

    @property
    def negative_zero(self) -> bool:
        """Fixed point has none."""
        return False


class ScaleRule(StrEnum):
    """How a block finds its scale from the largest magnitude in it (amax)."""

    FLOOR = "floor"  # 2**(floor(log2 amax) - emax of the element): OCP MX; the largest elements may saturate
    ROUND_UP = "round_up"  # the smallest power of two with which amax does not exceed the largest element
    TWO_LEVEL = "two_level"  # nvfp4: amax / largest element, in units of a float32 scale of the whole tensor


@dataclass(frozen=True, slots=True)
class BlockScaled:
    """Blocks of `block` consecutive elements along one axis that share one scale: value = element * scale.

    The last block of a row may be short. Under `two_level` the tensor has one more float32 scale.
    """

    name: str
    element: FloatingPoint | FixedPoint
    block: int
    scale: FloatingPoint
    scale_rule: ScaleRule = ScaleRule.FLOOR

    def __post_init__(self) -> None:
        if self.block < 1:
            raise SpecError(f"format {self.name}: got a block of {self.block}, expected 1 or more elements")
        if (self.scale_rule is ScaleRule.TWO_LEVEL) != (self.scale.mantissa_bits > 0):
            raise SpecError(
                f"format {self.name}: scale rule {self.scale_rule} does not go with scale format {self.scale}; "
                "power-of-two scales go with floor or round_up, others with two_level"
            )
        if not self.element.signed or carrier_of(self.element) != "float32" or self.element.bits > 24:
            got = f"elements of {self.element}"
            raise SpecError(f"format {self.name}: got {got}, expected a signed format of 24 bits at most")

    def __str__(self) -> str:
        return self.name

    @property
    def kind(self) -> Literal["block"]:
        """The kind of format, for code that must tell the three apart."""
        return "block"

    @property
    def bits(self) -> int:
        """Bits of one element's code, without its share of the scale."""
        return self.element.bits

    @property
    def bits_per_element(self) -> float:
        """Bits that one stored element takes, its share of a full block's scale included."""
        return self.element.bits + self.scale.bits / self.block

    @property
    def signed(self) -> bool:
        """Block formats hold both signs."""
        return True

    @property
    def has_nan(self) -> bool:
        """A NaN scale makes the whole block NaN."""
        return True

    @property
    def largest(self) -> float:
        """Largest value that a float32 carrier holds with a power-of-two scale."""
        return float(Fraction(self.element.largest) * power_of_two(FLOAT32_EMAX - self.element.emax))


NumberFormat = FloatingPoint | FixedPoint | BlockScaled


def carrier_of(fmt: NumberFormat) -> Literal["float32", "float64"]:
    """Return the float type in which a tensor of this format travels: float32 if it holds every value, else float64.

    Block-scaled tensors travel as float32; their scales are clamped so that every value fits (see docs/formats.md).

    Raises:
        UnsupportedError: not even float64 holds every value of the format.
    """
    if isinstance(fmt, BlockScaled):
        return "float32"
    if isinstance(fmt, FloatingPoint):
        fits = fmt.precision <= 24 and fmt.emax <= FLOAT32_EMAX and fmt.smallest_exponent >= FLOAT32_SMALLEST_EXPONENT
        return "float32" if fits else "float64"
    width = fmt.bits - fmt.signed
    # The lowest value of a signed format is a power of two, one binade above the largest value.
    top = width - fmt.fraction_bits if fmt.signed else fmt.emax
    fits = width <= 24 and top <= FLOAT32_EMAX and fmt.smallest_exponent >= FLOAT32_SMALLEST_EXPONENT
    return "float32" if fits else "float64"
