"""Which compiled recipe gives exactly the specified result, and its run-time numbers.

The fast recipes need a proof, made from a few facts about the operands (`Facts`, found by one pass over them or known
from their formats):

- float32 lanes round the sum of a product and the accumulator to 24 bits, then to p bits. To nearest, that is one
  rounding if the sum is exact, or if the product has at most p bits and 24 >= 2p + 2.
- the "magic" rounding of a value needs no overflow of the carrier; it may skip subnormals if every term is a multiple
  of the format's smallest value, and the range check if no sum can leave the range.
Every other case takes a general recipe that needs no proof.
"""

from __future__ import annotations

import math
import platform
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from typing import NamedTuple

import numpy as np
from llvmlite.binding import get_host_cpu_features

from hwsim.arithmetic.mac import Chunked, Kahan, MacSpec, Pairwise, Sequential
from hwsim.arithmetic.number import BlockScaled, FixedPoint, FloatingPoint, NumberFormat, carrier_of
from hwsim.arithmetic.rounding import Overflow, Rounding, RoundingMode
from hwsim.arithmetic.storage import Cast
from hwsim.errors import UnsupportedError
from hwsim.kernels.numba_cpu.matmul_steps import BLOCK, LOW_WORDS, NUMBERS, SUMS, WHOLES
from hwsim.kernels.numba_cpu.matmul_tile import Recipe
from hwsim.kernels.numba_cpu.vector_ir import EXPLICIT, SHORT_VECTORS
from hwsim.kernels.reference.rounding import overflow_keeps_largest

_ARM = platform.machine().lower() in ("arm64", "aarch64")
_MODES = (
    {"nearest": 0, "up": 0x400000, "down": 0x800000, "zero": 0xC00000}
    if _ARM
    else {"nearest": 0, "down": 0x400, "up": 0x800, "zero": 0xC00}
)
MOST_SPLIT_BITS = 10  # m with 23 - m >= m + 2 (see `Step._split`)
HALF_CONVERSIONS = bool(get_host_cpu_features().get("f16c"))
SHORT_PRODUCTS = all(get_host_cpu_features().get(name) for name in ("avx512bw", "avx512vnni"))
_MAX_STEP_EXPONENT = 200  # fixed point beyond 2**+-200 is left to the reference


class Facts(NamedTuple):
    """What is known of all values of one operand (a tuple, because it is part of a key looked up at every call)."""

    precision: int  # each value has at most this many significant bits
    lsb: int  # each value is a multiple of 2**lsb
    top: int  # each finite magnitude is below 2**top
    special: bool = False  # infinities or NaN may occur
    wide: bool = False  # values may need float64


@cache
def facts_of_format(fmt: NumberFormat) -> Facts:
    """Return what a format alone tells, infinities and NaN left aside."""
    if isinstance(fmt, FloatingPoint):
        return Facts(fmt.precision, fmt.smallest_exponent, fmt.emax + 1, False, carrier_of(fmt) == "float64")
    if isinstance(fmt, FixedPoint):
        top = fmt.bits - fmt.signed - fmt.fraction_bits + 1
        return Facts(fmt.bits, -fmt.fraction_bits, top, False, carrier_of(fmt) == "float64")
    return Facts(24, -149, 128)


NOTHING = Facts(1, 2000, -2000)  # all zero: a multiple of anything


@dataclass(frozen=True)
class Plan:
    """A compiled recipe and what to hand it."""

    recipe: Recipe
    mode: int
    blocks: np.ndarray
    outer: Recipe | None = None
    outer_mode: int = 0
    outer_block: np.ndarray | None = None
    nan_is_error: bool = False  # a NaN among the results marks a sum that the accumulator does not admit

    @cached_property
    def addresses(self) -> tuple[int, int]:
        """Addresses of the two parameter blocks."""
        outer = self.blocks if self.outer_block is None else self.outer_block
        return int(self.blocks.ctypes.data), int(outer.ctypes.data)


@lru_cache(maxsize=4096)
def plan(
    mac: MacSpec, k: int, a: Facts, b: Facts, start: Facts, signed_zero_start: bool, counts: bool = False,
    with_start: bool = False,
) -> Plan:  # fmt: skip
    """Choose the recipe for one GEMM with `k` terms.

    Args:
        with_start: whether start values are given (only order pairwise asks).

    Raises:
        UnsupportedError: the vector kernels cannot do this case (the caller falls back to another exact path).
    """
    product = mac.product
    if not (product == "exact" or isinstance(product, Cast)):
        raise UnsupportedError(f"matmul: product {product} has no vector kernel")
    if not isinstance(mac.order, Sequential | Chunked | Kahan | Pairwise):
        raise UnsupportedError(f"matmul: order {mac.order} has no vector kernel")
    cast = mac.cast
    check_specials(cast, a.special or b.special or start.special)
    term = Facts(a.precision + b.precision, a.lsb + b.lsb, a.top + b.top, a.special or b.special, a.wide or b.wide)
    pairwise = isinstance(mac.order, Pairwise)
    order = "kahan" if isinstance(mac.order, Kahan) else "pairwise" if pairwise else "sequential"
    if pairwise and (mac.rounding.stochastic or (isinstance(product, Cast) and product.rounding.stochastic)):
        raise UnsupportedError(f"matmul: {mac} has no vector kernel")
    product_rule, product_block = "none", None
    if isinstance(product, Cast) and not _changes_nothing(product, term):
        check_specials(product, term.special)
        product_rule, product_block, product_bits, term = _product(product, term)
    else:
        held = term.precision <= 24 and term.lsb >= -149 and term.top <= 127  # a tree adds products made before
        product_bits = 64 if term.wide or (pairwise and not held) else 32
    inner_start = NOTHING if isinstance(mac.order, Chunked | Pairwise) else start
    length = min(k, mac.order.size) if isinstance(mac.order, Chunked) else k
    whole = product_rule == "none"
    bits, sums, rule = _accumulation(cast, term, inner_start, length, order, signed_zero_start, product_bits, whole)
    if product_block is not None and bits == 64:
        product_rule, product_block = _general(product, 64)  # type: ignore[arg-type]
    recipe = Recipe(bits, sums, rule, product_rule, order, counts)
    second = empty_block(bits) if product_block is None else product_block
    blocks = np.concatenate([parameter_block(cast, bits), second])
    if not isinstance(mac.order, Chunked) and not (pairwise and with_start):
        return Plan(recipe, processor_mode(recipe), blocks, nan_is_error=_nan_is_error(cast))
    # c joins the sum of a tree as an outer sum is joined by a chunk
    outer_cast = (mac.order.outer if isinstance(mac.order, Chunked) else None) or cast
    check_specials(outer_cast, term.special or start.special)
    outer = general_recipe(outer_cast)
    return Plan(
        recipe, processor_mode(recipe), blocks, outer, processor_mode(outer), parameter_block(outer_cast, 64),
        _nan_is_error(cast) or _nan_is_error(outer_cast),
    )  # fmt: skip


def exact_plan(product: Cast, k: int, a: Facts, b: Facts, start: Facts) -> Plan:
    """Return the recipe that rounds each product and adds them in float64, where a bound proves every sum exact.

    Raises:
        UnsupportedError: there is no such bound, or products draw random bits.
    """
    term = Facts(a.precision + b.precision, a.lsb + b.lsb, a.top + b.top, a.special or b.special, a.wide or b.wide)
    check_specials(product, term.special)
    rounded = _product(product, term)[-1]
    top = max(rounded.top + k.bit_length(), start.top) + 1
    if rounded.special or start.special or top - min(rounded.lsb, start.lsb) > 53 or product.rounding.stochastic:
        raise UnsupportedError(f"matmul: products rounded to {product} and summed exactly have no vector kernel here")
    rule, block = _general(product, 64)
    recipe = Recipe(64, "near", "none", rule)
    return Plan(recipe, processor_mode(recipe), np.concatenate([empty_block(64), block]))


def _nan_is_error(cast: Cast) -> bool:
    return cast.overflow is Overflow.ERROR or not cast.format.has_nan


def check_specials(cast: Cast, special: bool) -> None:
    """Infinities and NaN stay in the vector kernels only where the format answers them without an error."""
    fmt = cast.format
    quiet = isinstance(fmt, FloatingPoint) and fmt.has_nan and cast.overflow is not Overflow.ERROR
    if special and not quiet:
        raise UnsupportedError(f"matmul: infinities or NaN into {cast} have no vector kernel")
    if isinstance(fmt, FixedPoint) and abs(fmt.fraction_bits) > _MAX_STEP_EXPONENT:
        raise UnsupportedError(f"matmul: {fmt} has no vector kernel")
    if isinstance(fmt, FloatingPoint) and (fmt.mantissa_bits < 1 or not fmt.signed or not fmt.zero):
        raise UnsupportedError(f"matmul: {fmt} has no vector kernel")


def _accumulation(
    cast: Cast, term: Facts, start: Facts, k: int, order: str, signed_zero_start: bool, product_bits: int,
    whole: bool,
) -> tuple[int, str, str]:  # fmt: skip
    """Return lanes, sums and rule for the accumulator; `whole`: a term is a product of two operands, not rounded."""
    fmt = cast.format
    if product_bits == 64:
        return (64, *_general_sum(cast, 64))
    lsb = min(term.lsb, start.lsb)
    if isinstance(fmt, FixedPoint):
        return _fixed_accumulation(cast, fmt, term, start, lsb, order)
    assert isinstance(fmt, FloatingPoint)
    nearest = cast.rounding.mode is RoundingMode.NEAREST_EVEN
    p = fmt.precision
    plain_infinity = cast.overflow is Overflow.NATIVE and fmt.infinities
    if carrier_of(fmt) == "float64":
        return (64, *_general_sum(cast, 64))
    same_exponents = _same_exponents(fmt, 32)
    if same_exponents and fmt.mantissa_bits == 23 and plain_infinity and not cast.rounding.stochastic and (
        cast.rounding.mode is not RoundingMode.NEAREST_AWAY
    ):
        return 32, _direct_sum(cast.rounding), "none"
    settles = order == "sequential" and cast.rounding.mode in (RoundingMode.NEAREST_EVEN, RoundingMode.TOWARD_ZERO)
    depth = (k - 1).bit_length() if order == "pairwise" else k
    growth = _largest_sum(term, start, k, p, settles, depth)
    if order == "kahan":
        growth *= 8  # the sum, the compensated term and the compensation all stay far below
    exact = order != "kahan" and growth < 2.0 ** min(lsb + 24, 1000)
    safe = exact or (term.precision <= p and 2 * p + 2 <= 24 and term.lsb >= -149)
    special = term.special or start.special
    if nearest and not special:
        # the sign of zeros that a tree loses is restored afterwards, which needs products that are zero only if exact
        signed_zeros = signed_zero_start or (order == "pairwise" and not whole)
        rule = _magic_rule(cast, fmt, lsb, growth, order, signed_zeros, term)
        together = rule == "split" and order != "pairwise"
        if rule and (safe or (together and EXPLICIT)):
            return 32, "near" if safe else "once", rule
        if together and SHORT_VECTORS and whole and term.precision + p <= 24 and term.lsb >= -149:
            return 32, "residual", rule
    in_range = growth < fmt.largest and lsb >= fmt.smallest_exponent and fmt.emin >= -126
    if in_range and order != "kahan" and not nearest and not special and _bits_suffice(cast, fmt, p):
        return 32, _direct_sum(cast.rounding), _bits_rule(cast, fmt, 32)
    half = fmt.exponent_bits == 5 and fmt.mantissa_bits == 10 and fmt.emax == 15 and plain_infinity
    if nearest and half and (EXPLICIT or HALF_CONVERSIONS):
        return 32, "odd", "halves"
    fits = 23 - fmt.mantissa_bits >= 2
    if cast.rounding.stochastic:
        fits = p + cast.rounding.random_bits <= 24 and growth < 2.0**127
    if fits and _fits_lanes(fmt, cast, 32):
        return (32, *_general_sum(cast, 32, near=nearest and safe))
    return (64, *_general_sum(cast, 64))


def _fixed_accumulation(
    cast: Cast, fmt: FixedPoint, term: Facts, start: Facts, lsb: int, order: str
) -> tuple[int, str, str]:
    if order == "kahan":
        return (64, *_general_sum(cast, 64))
    on_grid = lsb >= -fmt.fraction_bits and not term.special  # "clamped" would lose a NaN
    widest = max(term.top - lsb, 0)
    reach = max(fmt.bits - fmt.signed, widest) + 1  # bits of |accumulator + product| in steps of the grid
    if on_grid and cast.overflow is not Overflow.WRAP and cast.overflow is not Overflow.ERROR:
        steps = max(fmt.bits - fmt.signed, term.top + fmt.fraction_bits) + 1
        if steps <= 24 and abs(fmt.fraction_bits) <= 100:
            return 32, "near", "clamped"
        if steps <= 53:
            return 64, "near", "clamped"
    if cast.overflow is Overflow.WRAP and max(reach, term.top + fmt.fraction_bits + 2) > 50:
        raise UnsupportedError("matmul: products this far beyond a wrapping accumulator have no vector kernel")
    return (64, *_general_sum(cast, 64))


def _bits_rule(cast: Cast, fmt: FloatingPoint, bits: int) -> str:
    low = cast.rounding.stochastic and bits == 32 and fmt.mantissa_bits == 7 and SHORT_PRODUCTS
    mode = LOW_WORDS if low and cast.rounding.random_bits <= 16 else cast.rounding.mode
    return f"bits_{mode}" + ("+saturate" if cast.overflow is Overflow.SATURATE else "")


def _bits_suffice(cast: Cast, fmt: FloatingPoint, p: int) -> bool:
    """Whether rounding at a fixed bit of the float32 code is right for sums that are in range or exact below it."""
    whole = fmt.infinities and fmt.negative_zero and cast.overflow in (Overflow.NATIVE, Overflow.SATURATE)
    return whole and p + max(2, cast.rounding.random_bits if cast.rounding.stochastic else 0) <= 24


def _largest_sum(term: Facts, start: Facts, k: int, p: int, settles: bool, depth: int) -> float:
    """Bound every partial sum, roundings (`depth` at most) included: each can grow it by a factor of 1 + 2**(1-p).

    A sum that `settles` (sequential, to nearest or toward zero) stops growing where a term is below half a step.
    """
    if term.top + start.top > 900 or term.top > 900:
        return math.inf
    growth = math.exp(min((depth + 1) * 2.0 ** (1 - p), 700))
    first = 2.0**start.top if start.top > -1000 else 0.0
    bound = (first + k * 2.0 ** max(term.top, -1000)) * growth
    return min(bound, max(2.0 ** max(term.top + p, -1000), first)) if settles else bound


def _magic_rule(
    cast: Cast, fmt: FloatingPoint, lsb: int, growth: float, order: str, signed_zero_start: bool, term: Facts
) -> str:
    """Return the cheapest rule that rounds by adding a large number, or "" if none is proven."""
    if not (fmt.negative_zero and fmt.smallest_exponent >= -149 + 1):
        return ""
    reach = max(fmt.emax + 1, term.top) + 1  # the accumulator stays in range or is checked against it
    plain = growth <= fmt.largest
    if min(reach, math.log2(growth) if 0 < growth < math.inf else 1000) + (23 - fmt.mantissa_bits) + 1 > 127:
        return ""
    above_subnormals = lsb >= fmt.smallest_exponent and not signed_zero_start
    if plain and above_subnormals:
        narrow = fmt.mantissa_bits <= MOST_SPLIT_BITS and (fmt.emin >= -126 or not SHORT_VECTORS)
        return "split" if narrow else "magic"
    if order == "kahan":
        return ""
    if fmt.emin < -126:
        return ""
    if plain:
        return "magic_subnormal"
    if cast.overflow is Overflow.ERROR:
        return ""
    if fmt.exponent_bits == 5 and fmt.mantissa_bits == 10 and fmt.emax == 15 and cast.overflow is Overflow.NATIVE:
        return "half" if fmt.infinities else ""
    return "magic_subnormal_range"


def _changes_nothing(cast: Cast, term: Facts) -> bool:
    """Whether every product is a value of the format already."""
    fmt = cast.format
    fits = isinstance(fmt, FloatingPoint) and fmt.signed and fmt.negative_zero and fmt.zero and fmt.mantissa_bits > 0
    if not fits or term.special or term.wide:
        return False
    assert isinstance(fmt, FloatingPoint)
    return term.precision <= fmt.precision and term.lsb >= fmt.smallest_exponent and term.top <= fmt.emax


def _product(cast: Cast, term: Facts) -> tuple[str, np.ndarray | None, int, Facts]:
    """Return the product's rule, its block, the lanes it needs and what is known of the rounded product."""
    fmt = cast.format
    rounded = facts_of_format(fmt)
    rounded = rounded._replace(  # rounding sets no bit below the lowest, and at most doubles
        precision=min(rounded.precision, term.precision),
        lsb=max(rounded.lsb, term.lsb),
        top=min(rounded.top, term.top + 1),
        special=term.special or term.top >= rounded.top,
    )
    if term.wide:
        raise UnsupportedError("matmul: rounded products of float64 operands have no vector kernel")
    narrow = (
        term.precision <= 24
        and term.lsb >= -149
        and term.top <= 127
        and isinstance(fmt, FloatingPoint)
        and _fits_lanes(fmt, cast, 32)
    )
    bits = 32 if narrow else 64
    rule, block = _general(cast, bits)
    return rule, block, bits, rounded


def _fits_lanes(fmt: FloatingPoint, cast: Cast, bits: int) -> bool:
    if bits == 64:
        return True
    if _same_exponents(fmt, 32):
        return fmt.mantissa_bits <= 21 and cast.overflow in (Overflow.NATIVE, Overflow.SATURATE) and fmt.infinities
    return fmt.smallest_exponent >= -124 and fmt.emax <= 125


def _direct_sum(rounding: Rounding) -> str:
    return {
        RoundingMode.TOWARD_ZERO: "zero",
        RoundingMode.STOCHASTIC: "zero",
        RoundingMode.UP: "up",
        RoundingMode.DOWN: "down",
        RoundingMode.TO_ODD: "odd",
        RoundingMode.NEAREST_AWAY: "odd",
        RoundingMode.NEAREST_EVEN: "near",
    }[rounding.mode]


def _general_sum(cast: Cast, bits: int, near: bool = False) -> tuple[str, str]:
    """Return sums and rule that need no proof (but for `near`: sums may be rounded to nearest first)."""
    fmt = cast.format
    rule = _general(cast, bits)[0]
    sums = _direct_sum(cast.rounding)
    if sums == "near" and not near and rule != "none":
        sums = "odd"
    kept = 53 if bits == 64 else 24
    precision = fmt.precision if isinstance(fmt, FloatingPoint) else fmt.bits
    random = cast.rounding.random_bits
    if rule != "none" and ((precision + 2 > kept and sums == "odd") or precision + random > kept):
        raise UnsupportedError(f"matmul: {cast} has no vector kernel")
    return sums, rule


def _general(cast: Cast, bits: int) -> tuple[str, np.ndarray]:
    """Return the rule that handles every value, and its block."""
    fmt, mode = cast.format, cast.rounding.mode
    if isinstance(fmt, FixedPoint):
        return f"{'wrapped' if cast.overflow is Overflow.WRAP else 'fixed'}_{mode}", parameter_block(cast, bits)
    assert isinstance(fmt, FloatingPoint)
    native = cast.overflow is Overflow.NATIVE and fmt.infinities
    if _same_exponents(fmt, bits) and (native or (cast.overflow is Overflow.SATURATE and fmt.infinities)):
        if fmt.mantissa_bits == (23 if bits == 32 else 52):
            if not native or mode in (RoundingMode.NEAREST_AWAY, RoundingMode.STOCHASTIC):
                raise UnsupportedError(f"matmul: {cast} has no vector kernel")
            return "none", parameter_block(cast, bits)
        return _bits_rule(cast, fmt, bits), parameter_block(cast, bits)
    if bits == 64 and not (fmt.emin > -900 and fmt.emax < 900):
        raise UnsupportedError(f"matmul: {cast} has no vector kernel")
    suffix = "" if fmt.negative_zero else "+unsigned"
    return f"scaled_{mode}{suffix}", parameter_block(cast, bits)


def _same_exponents(fmt: FloatingPoint, bits: int) -> bool:
    """Whether the format has the carrier's exponents and infinity, so that integer rounding of the code is right."""
    emin, emax = (-126, 127) if bits == 32 else (-1022, 1023)
    return fmt.emin == emin and fmt.emax == emax and fmt.infinities and fmt.negative_zero


def general_recipe(cast: Cast) -> Recipe:
    """Return the float64 recipe that adds any two numbers and rounds by `cast`, with no proof needed."""
    return Recipe(64, *_general_sum(cast, 64))


def processor_mode(recipe: Recipe) -> int:
    """Return the `fesetround` number under which a recipe runs."""
    return _MODES[SUMS[recipe.sums]]


def rule_for(cast: Cast, bits: int) -> str:
    """Return the general rounding rule of a cast (see `Step.round`)."""
    return _general(cast, bits)[0]


def empty_block(bits: int) -> np.ndarray:
    """Return the block of a recipe that does not round (only the number 1 is read from it)."""
    block = np.zeros(BLOCK, np.float32 if bits == 32 else np.float64)
    block[NUMBERS.index("one")] = 1.0
    return block


@lru_cache(maxsize=1024)
def parameter_block(cast: Cast, bits: int) -> np.ndarray:
    """Return the parameter block of a cast for lanes of `bits` (see `matmul_steps.NUMBERS` and `WHOLES`)."""
    fmt, rounding = cast.format, cast.rounding
    assert not isinstance(fmt, BlockScaled)
    kind, whole_kind = (np.float32, np.int32) if bits == 32 else (np.float64, np.int64)
    fraction, bias = (23, 127) if bits == 32 else (52, 1023)
    numbers: dict[str, float] = {"one": 1.0}
    wholes: dict[str, int] = {}
    largest, lowest = fmt.largest, fmt.lowest
    numbers |= {"largest": largest, "lowest": lowest}
    numbers |= dict(zip(("over", "under", "infinity", "minus_infinity"), _beyond(cast), strict=True))
    if rounding.stochastic:
        numbers["random_range"] = 2.0**rounding.random_bits
        wholes["random_shift"] = 32 - rounding.random_bits
    if isinstance(fmt, FixedPoint):
        numbers |= {"step": fmt.step, "inverse_step": 1 / fmt.step}
        numbers |= {"modulus": fmt.step * 2.0**fmt.bits, "inverse_modulus": 1 / (fmt.step * 2.0**fmt.bits)}
    else:
        m = fmt.mantissa_bits
        dropped = fraction - m
        numbers |= {"magic": 1.5 * 2.0**dropped, "smallest_normal": fmt.smallest_normal}
        numbers |= {"split": 2.0**dropped, "split_less_one": 2.0**dropped - 1}
        numbers |= {"twice_split": 2.0 ** (dropped + 1), "twice_split_less_one": 2.0 ** (dropped + 1) - 1}
        numbers["top"] = 2.0 ** min(fmt.emax + 1, bias)
        wholes |= {"scale": (2 * bias + m) << fraction, "unscale": m << fraction, "dropped": dropped}
        wholes["split_exponent"] = dropped << fraction
        wholes["keep_mask"] = -1 << dropped
        wholes["low_mask"] = (1 << dropped) - 1
        wholes["last"] = 1 << dropped
        if dropped:
            wholes |= {"half": 1 << (dropped - 1), "half_minus_one": (1 << (dropped - 1)) - 1}
        wholes["random_place"] = max(dropped - rounding.random_bits, 0)
        wholes["random_mask"] = ((1 << rounding.random_bits) - 1) << wholes["random_place"]
    with np.errstate(over="ignore"):
        floats = np.array([numbers.get(name, 0.0) for name in NUMBERS], kind)
    width = 1 << bits
    codes = [(wholes.get(name, 0) + width // 2) % width - width // 2 for name in WHOLES]
    return np.concatenate([floats, np.array(codes, whole_kind).view(kind)])


def _beyond(cast: Cast) -> tuple[float, float, float, float]:
    """Return what follows a finite value beyond the largest, beyond the lowest, and what +-infinity becomes."""
    fmt = cast.format
    largest, lowest = fmt.largest, fmt.lowest  # type: ignore[union-attr]
    if cast.overflow is Overflow.ERROR:
        return (math.nan,) * 4
    if isinstance(fmt, FixedPoint) or cast.overflow is Overflow.SATURATE:
        return largest, lowest, largest, lowest
    assert isinstance(fmt, FloatingPoint)
    above = math.inf if fmt.infinities else math.nan if fmt.has_nan else largest
    below = -above if fmt.infinities or not fmt.has_nan else above
    over = largest if overflow_keeps_largest(cast.rounding, False) else above
    under = lowest if overflow_keeps_largest(cast.rounding, True) else below
    return over, under, above, below
