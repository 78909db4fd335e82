"""What the tensor cores are asked: random and adversarial operands in regimes, and one question after another by
hand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from hwsim.measurement.tensor_core_source import ELEMENT_BYTES, Instruction

# format -> (exponent bits, mantissa bits, bias); codes are sign, exponent field, mantissa from the top
LAYOUT = {
    "float16": (5, 10, 15),
    "bfloat16": (8, 7, 127),
    "tf32": (8, 23, 127),  # read from float32; the low 13 bits must not matter, so they are drawn too
    "float8_e4m3fn": (4, 3, 7),
    "float8_e5m2": (5, 2, 15),
    "float32": (8, 23, 127),
}
REGIMES = ("layout", "near", "wide", "boundary", "cancel", "subnormal", "zeros", "chain")
COLUMNS = 8


@dataclass
class Batch:
    """Operands of many tiles as codes: a (tiles, rows, K), b (tiles, 8, K), c (tiles, rows, 8); K = steps * terms."""

    regime: str
    a: np.ndarray
    b: np.ndarray
    c: np.ndarray
    steps: int = 1

    @property
    def dots(self) -> int:
        """Number of dot products."""
        return self.c.size


def code_type(fmt: str) -> Any:
    """Unsigned type of a format's codes."""
    bytes_ = 4 if fmt == "float32" else ELEMENT_BYTES[fmt]
    return {1: np.uint8, 2: np.uint16, 4: np.uint32}[bytes_]


def decode(codes: np.ndarray, fmt: str) -> np.ndarray:
    """Return the values (float64) of codes; tf32 loses the bits that the multiplier does not read."""
    if fmt == "float16":
        return codes.astype(np.uint16).view(np.float16).astype(np.float64)
    if fmt == "bfloat16":
        return (codes.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    if fmt == "tf32":
        return (codes.astype(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32).astype(np.float64)
    if fmt == "float32":
        return codes.astype(np.uint32).view(np.float32).astype(np.float64)
    exponent_bits, mantissa, bias = LAYOUT[fmt]
    every = np.arange(256)
    field, fraction = every >> mantissa & (1 << exponent_bits) - 1, every & (1 << mantissa) - 1
    value = np.where(
        field == 0,
        np.ldexp(fraction * 1.0, 1 - bias - mantissa),
        np.ldexp(fraction + 2.0**mantissa, field - bias - mantissa),
    )
    if fmt == "float8_e5m2":
        value = np.where(field == 31, np.where(fraction == 0, np.inf, np.nan), value)
    else:
        value = np.where(every & 0x7F == 0x7F, np.nan, value)
    return np.where(every >> 7, -value, value)[codes]


def encode(values: np.ndarray | float, fmt: str) -> np.ndarray:
    """Return the codes of values that the format holds exactly; raises ValueError for any other."""
    wanted = np.atleast_1d(np.asarray(values, np.float64))
    if fmt.startswith("float8"):
        table = decode(np.arange(256), fmt)
        found = [np.flatnonzero(_same(table, v)) for v in wanted.ravel()]
        if any(len(f) == 0 for f in found):
            raise ValueError(f"{fmt} does not hold {wanted}")
        return np.array([f[0] for f in found], np.uint8).reshape(wanted.shape)
    if fmt == "float16":
        codes: np.ndarray = wanted.astype(np.float16).view(np.uint16)
    else:
        codes = wanted.astype(np.float32).view(np.uint32)
        codes = codes >> 16 if fmt == "bfloat16" else codes
    codes = codes.astype(code_type(fmt))
    if not np.all(_same(decode(codes, fmt), wanted)):
        raise ValueError(f"{fmt} does not hold {wanted}")
    return codes


def _same(x: np.ndarray, y: np.ndarray | float) -> np.ndarray:
    return ((x == y) & (np.signbit(x) == np.signbit(y))) | (np.isnan(x) & np.isnan(y))


def _draw(rng: np.random.Generator, fmt: str, shape: tuple[int, ...], low: int, high: int) -> np.ndarray:
    """Codes with random sign and mantissa and an exponent drawn evenly from low..high (clipped to finite numbers)."""
    exponent_bits, mantissa, bias = LAYOUT[fmt]
    top = (1 << exponent_bits) - 2
    fields = rng.integers(max(low + bias, 0), min(high + bias, top) + 1, shape, dtype=np.int64)
    signs = rng.integers(0, 2, shape, dtype=np.int64)
    fractions = rng.integers(0, 1 << mantissa, shape, dtype=np.int64)
    return ((signs << exponent_bits | fields) << mantissa | fractions).astype(code_type(fmt))


def batches(instruction: Instruction, dots: int, seed: int = 0) -> Iterator[Batch]:
    """Draw at least `dots` dot products in all, an equal share in each regime (the layout check comes on top).

    layout      small whole numbers: every order of additions gives the exact sum, so a mistake here is one of ours
    near        exponents around 0          wide       exponents over a wide range, addends too
    boundary    terms about F bits below the largest, where truncation decides      cancel    pairs that almost cancel
    subnormal   subnormal operands          zeros      a third of the operands zero    chain     four steps in a row
    """
    rng = np.random.default_rng([seed, *instruction.id.encode()])
    fmt, out = instruction.operand, "float16" if instruction.output == "float16" else "float32"
    narrow = out == "float16"
    per_tile = instruction.rows * COLUMNS
    tiles = -(-dots // (per_tile * (len(REGIMES) - 1)))
    bottom = 1 - LAYOUT[fmt][2]  # exponent of the smallest normal number
    for regime in REGIMES:
        count = 16 if regime == "layout" else tiles
        steps = 4 if regime == "chain" else 1
        k = steps * instruction.terms
        shape_a, shape_b = (count, instruction.rows, k), (count, COLUMNS, k)
        high = 3 if narrow else min(-bottom, 50)  # float16 results must not overflow: 32 * 2^8 < 65504
        low = max(bottom, -50)
        ranges = {
            "near": (-2, 2),
            "wide": (low, high),
            "boundary": (max(low, -13), min(high, 3 if narrow else 6)),
            "cancel": (-3, 3),
            "subnormal": (bottom - 1, bottom + 1),
            "zeros": (max(low, -8), min(high, 8)),
            "chain": (max(low, -10), min(high, 4)),
        }
        if regime == "layout":
            values = np.array([-2.0, -1.0, 0.0, 1.0, 2.0])
            a = encode(values, fmt)[rng.integers(0, 5, shape_a)]
            b = encode(values, fmt)[rng.integers(0, 5, shape_b)]
            c = encode(np.arange(-8.0, 9.0), out)[rng.integers(0, 17, (count, instruction.rows, COLUMNS))]
            yield Batch(regime, a, b, c)
            continue
        lowest, highest = ranges[regime]
        a = _draw(rng, fmt, shape_a, lowest, highest)
        if regime == "subnormal":  # the partner is large, so that the products matter; zeros are another regime
            a |= (a << 1 == 0).astype(a.dtype)
            b = _draw(rng, fmt, shape_b, 0, 3 if narrow else min(-bottom, 100))
        else:
            b = _draw(rng, fmt, shape_b, lowest, highest)
        if regime == "cancel":
            sign = np.array(1 << (8 * a.dtype.itemsize - 1)).astype(a.dtype)
            a[..., 1::2] = a[..., 0::2] ^ sign ^ rng.integers(0, 2, a[..., 0::2].shape).astype(a.dtype)
            b[..., 1::2] = b[..., 0::2]
        if regime == "zeros":
            a[rng.random(shape_a) < 1 / 3] = 0
            b[rng.random(shape_b) < 1 / 3] = 0
        span = (-14, 12) if narrow else (max(2 * lowest, -100), min(2 * highest + 2, 100))
        if regime == "subnormal":
            span = (-14, 4) if narrow else (2 * bottom if bottom > -20 else -126, 8)
        c = _draw(rng, out, (count, instruction.rows, COLUMNS), *span)
        c[rng.random(count) < 0.5] = 0  # half of the tiles without an addend
        yield Batch(regime, a, b, c, steps)


@dataclass(frozen=True)
class Question:
    """One vector made by hand: products a[i] * b[i] (the rest of the k axis is zero) and the addend c."""

    name: str
    asks: str
    a: tuple[float, ...]
    b: tuple[float, ...]
    c: float = 0.0
    formats: tuple[str, ...] = ()  # operand formats it makes sense for; empty: all that hold its values
    outputs: tuple[str, ...] = ()


def questions() -> list[Question]:
    """The open questions, a few vectors each; those that a format cannot hold are passed over when asked."""
    inf, nan = float("inf"), float("nan")
    wide = ("bfloat16", "tf32")
    small = 2.0**-30 * (1 + 2.0**-7)
    asked = [
        Question(
            "zero_times_huge",
            "does 0 * 2^127 hide a small product?",
            (0.0, 2.0**-15),
            (2.0**127, 2.0**-15 * (1 + 2.0**-7)),
            0.0,
            wide,
        ),
        Question(
            "zero_times_huge_addend",
            "does 0 * 2^127 hide c = 2^-149?",
            (0.0,),
            (2.0**127,),
            2.0**-149,
            wide,
            ("float32",),
        ),
        Question(
            "zero_times_huge_small_addend", "does 0 * 2^127 hide c?", (0.0,), (2.0**127,), small, wide, ("float32",)
        ),
        Question(
            "huge_times_zero", "the same with the factors exchanged", (2.0**127, 2.0**-15), (0.0, 2.0**-15), 0.0, wide
        ),
    ]
    asked += [
        Question(
            f"zero_times_2^{e}",
            "how far up does a zero product count as aligned?",
            (0.0, 2.0**-15),
            (2.0**e, 2.0**-15 * (1 + 2.0**-7)),
            0.0,
            wide,
        )
        for e in (90, 95, 96, 97, 98, 99, 100, 101, 102, 104, 108, 112, 120)
    ]
    asked += [
        Question(
            f"zero_times_2^{e}_float16",
            "does a zero product align in float16?",
            (0.0, 2.0**-14),
            (2.0**e, 2.0**-14),
            0.0,
            ("float16",),
        )
        for e in (0, 8, 12, 13, 14, 15)
    ]
    asked += [
        Question(
            f"sum_of_{n}_2^{e}",
            "is the largest exponent clamped for sums below 2^-126?",
            (2.0 ** (e // 2),) * n,
            (2.0 ** (e - e // 2),) * n,
            0.0,
            wide,
            ("float32",),
        )
        for n, e in (
            (1, -149),
            (2, -150),
            (4, -151),
            (8, -152),
            (8, -153),
            (3, -150),
            (1, -150),
            (1, -140),
            (1, -133),
            (2, -134),
        )
    ]
    asked += [
        Question(
            f"subnormal_addend_and_2^{e}",
            "what is kept beside a subnormal addend?",
            (2.0 ** (e // 2),) * 8,
            (2.0 ** (e - e // 2),) * 8,
            2.0**-149,
            wide,
            ("float32",),
        )
        for e in (-152, -151, -150)
    ]
    asked += [
        Question(
            f"2^-149_less_2^{e}",
            "how far below 2^-149 is a negative term still seen?",
            (2.0**-74, 2.0 ** (e // 2)),
            (2.0**-75, -(2.0 ** (e - e // 2))),
            0.0,
            wide,
            ("float32",),
        )
        for e in (-150, -151, -152, -153, -157, -158, -159, -160, -165, -170, -174, -175)
    ]
    asked += [
        Question(
            f"tie_of_2^-25_and_2^{e}",
            "is a term far below a float16 result's tie kept?",
            (2.0**-12, 2.0**-24),
            (2.0**-13, 2.0 ** (e + 24)),
            0.0,
            ("float16",),
            ("float16",),
        )
        for e in (-36, -38, -39, -40, -44, -48)
    ]
    asked += [
        Question("subnormal_addend_alone", "is a subnormal addend kept?", (0.0,), (1.0,), 2.0**-149, (), ("float32",)),
        Question(
            "subnormal_float16_addend_alone",
            "is a subnormal float16 addend kept?",
            (0.0,),
            (1.0,),
            2.0**-24,
            (),
            ("float16",),
        ),
        Question(
            "addend_bits", "how many bits of a lone addend come back?", (0.0,), (1.0,), 1 + 2.0**-23, (), ("float32",)
        ),
        Question("addend_bits_13", "... with its last bit at 2^-13?", (0.0,), (1.0,), 1 + 2.0**-13, (), ("float32",)),
        Question("addend_bits_14", "... with its last bit at 2^-14?", (0.0,), (1.0,), 1 + 2.0**-14, (), ("float32",)),
        Question(
            "addend_beside_product", "is c cut below a larger product?", (16.0,), (16.0,), 1 + 2.0**-5, (), ("float32",)
        ),
        Question(
            "addend_beside_product_negative",
            "is the cut toward zero?",
            (16.0,),
            (16.0,),
            -(1 + 2.0**-5),
            (),
            ("float32",),
        ),
        Question(
            "product_beside_addend", "is a product cut below a larger c?", (1.0, 2.0**-3), (1.0, 2.0**-3), 2.0**12
        ),
        Question(
            "product_beside_large_addend",
            "F fraction bits below c",
            (1.0, 1.0, 1.0, 1.0),
            (1.0, 1.0, 1.0, 1.0),
            2.0**26,
            (),
            ("float32",),
        ),
        Question("overflow_of_products", "2 * 2^127 as products", (2.0**100, 2.0**100), (2.0**27, 2.0**27), 0.0, wide),
        Question(
            "overflow_of_addend",
            "largest float32 + 2^104",
            (2.0**52,),
            (2.0**52,),
            float(np.finfo(np.float32).max),
            wide,
        ),
        Question(
            "overflow_that_cancels",
            "2^127 + 2^127 - 2^127",
            (2.0**100, 2.0**100, 2.0**100),
            (2.0**27, 2.0**27, -(2.0**27)),
            0.0,
            wide,
        ),
        Question("overflow_float16_nearest", "65504 + 16 into float16", (1.0,), (16.0,), 65504.0, (), ("float16",)),
        Question("overflow_float16_below_half", "65504 + 15 into float16", (1.0,), (15.0,), 65504.0, (), ("float16",)),
        Question("float16_tie", "2048 + 1 into float16: ties to even?", (1.0,), (1.0,), 2048.0, (), ("float16",)),
        Question("float16_tie_up", "2050 + 1 into float16: ties to even?", (1.0,), (1.0,), 2050.0, (), ("float16",)),
        Question(
            "float16_subnormal_result",
            "2^-24 as a sum of two halves",
            (2.0**-12, 2.0**-12),
            (2.0**-13, 2.0**-13),
            0.0,
            ("float16",),
            ("float16",),
        ),
        Question(
            "truncation_positive",
            "1 + 2^-24 toward zero or nearest?",
            (1.0, 2.0**-6, 2.0**-6),
            (1.0, 2.0**-6, 2.0**-6),
            2.0**-24,
            (),
            ("float32",),
        ),
        Question(
            "truncation_negative",
            "-(1 + 3 * 2^-25) toward zero or down?",
            (1.0,),
            (-1.0,),
            -3 * 2.0**-25,
            (),
            ("float32",),
        ),
        Question("cancellation", "sign of 1 - 1", (1.0, 1.0), (1.0, -1.0)),
        Question("negative_zero_product", "sign of (-0) * 1 + c = -0", (-0.0,), (1.0,), -0.0),
        Question("negative_zero_addend", "sign of 0 + c = -0", (0.0,), (1.0,), -0.0),
        Question("infinity", "inf * 1", (inf,), (1.0,)),
        Question("infinity_negative", "-inf * 1", (-inf,), (1.0,)),
        Question("infinity_addend", "c = inf", (1.0,), (1.0,), inf),
        Question("infinity_minus_infinity", "inf - inf", (inf, inf), (1.0, -1.0)),
        Question("infinity_minus_addend", "inf + c = -inf", (inf,), (1.0,), -inf),
        Question("infinity_times_zero", "inf * 0", (inf,), (0.0,)),
        Question("nan_operand", "NaN * 1", (nan,), (1.0,)),
        Question("nan_operand_times_zero", "NaN * 0", (nan,), (0.0,)),
        Question("nan_addend", "c = NaN", (1.0,), (1.0,), nan),
    ]
    return asked


def ask(instruction: Instruction, question: Question) -> Batch | None:
    """Put a question into row 0 and column 0 of one tile (all else zero); None if the formats do not hold its
    values."""
    if question.formats and instruction.operand not in question.formats:
        return None
    if question.outputs and instruction.output not in question.outputs:
        return None
    if len(question.a) > instruction.terms:
        return None
    fmt, out = instruction.operand, instruction.output
    a = np.zeros((1, instruction.rows, instruction.terms), code_type(fmt))
    b = np.zeros((1, COLUMNS, instruction.terms), code_type(fmt))
    c = np.zeros((1, instruction.rows, COLUMNS), code_type(out))
    try:
        a[0, 0, : len(question.a)] = encode(np.array(question.a), fmt)
        b[0, 0, : len(question.b)] = encode(np.array(question.b), fmt)
        c[0, 0, 0] = encode(question.c, out)[0]
    except ValueError:
        return None
    return Batch(question.name, a, b, c)
