"""Every code, neighbour and midpoint of every format to 16 bits, under every rounding, on every back end.

    python tests/kernels/exhaustive.py            all of it (some minutes); prints values tried and mismatches
    python tests/kernels/exhaustive.py --sample   the few formats that `make test` runs

Inputs of a format, as float32: every finite value, every midpoint of neighbours, the float32 numbers next to each of
these, and the same around the overflow threshold; infinities, NaN, both zeros, the smallest and largest float32.
Oracles: gfloat for the rules that it has; exact NumPy integer arithmetic for fixed point; Fraction (the definition) on
a sample and on all edges; ml_dtypes and MPFR once more for the named formats.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator

import gfloat
import gmpy2
import ml_dtypes
import numpy as np
from gfloat.types import Domain, FormatInfo

import hwsim
from hwsim.arithmetic.named import FLOATS, parse_format
from hwsim.arithmetic.number import FixedPoint, FloatingPoint, NanCodes, carrier_of
from hwsim.arithmetic.storage import Cast
from hwsim.errors import SpecError
from hwsim.kernels.casts import cast
from hwsim.kernels.codes import codes_of, values_of
from hwsim.kernels.reference.rounding import round_exact

RULES = ("nearest_even", "nearest_away", "toward_zero", "up", "down", "to_odd")
GFLOAT_RULES = {
    "nearest_even": gfloat.RoundMode.TiesToEven,
    "nearest_away": gfloat.RoundMode.TiesToAway,
    "toward_zero": gfloat.RoundMode.TowardZero,
    "up": gfloat.RoundMode.TowardPositive,
    "down": gfloat.RoundMode.TowardNegative,
}
MPFR_RULES = {"nearest_even": gmpy2.RoundToNearest, "toward_zero": gmpy2.RoundToZero, "up": gmpy2.RoundUp,
              "down": gmpy2.RoundDown}  # fmt: skip
SAMPLE_FORMATS = [
    "float8_e4m3fn",
    "float8_e5m2fnuz",
    "float4_e2m1fn",
    "binary6p3se",
    "binary6p1ue",
    "bfloat16",
    "fixed8.6",
]


def all_formats() -> Iterator[str]:
    """Name every format to 16 bits: the rows, P3109 to 8 bits, every IEEE-like eXmY, fixed point of odd fractions."""
    for name, exponent, mantissa, _, _ in FLOATS:
        if 1 + exponent + mantissa <= 16:
            yield name
    for bits in range(3, 9):
        for precision in range(1, bits + 1):
            for sign in "su":
                for domain in "ef":
                    try:
                        yield parse_format(f"binary{bits}p{precision}{sign}{domain}").name
                    except SpecError:
                        continue  # P3109 has no such format
    for exponent in range(2, 9):
        for mantissa in range(1, 16 - exponent):
            yield parse_format(f"e{exponent}m{mantissa}").name
    for bits in (1, 2, 3, 4, 8, 12, 16):
        for fraction in (0, bits - 1, bits + 3, -2):
            for prefix in ("", "u"):
                yield parse_format(f"{prefix}fixed{bits}.{fraction}").name


def inputs(fmt: FloatingPoint | FixedPoint) -> np.ndarray:
    """Return the float32 inputs of a format (see the top)."""
    values = values_of(np.arange(1 << fmt.bits), fmt).astype(np.float64)
    values = np.unique(values[np.isfinite(values)])
    steps = np.diff(values) if values.size > 1 else np.array([1.0])
    beyond = [values[-1] + steps[-1] / 2, values[-1] + steps[-1], values[-1] + 1.5 * steps[-1], values[-1] * 2]
    below = [values[0] - steps[0] / 2, values[0] - steps[0], values[0] - 1.5 * steps[0], values[0] * 2]
    wide = np.concatenate(
        [values, (values[1:] + values[:-1]) / 2, beyond, below, [1e-45, -1e-45, 3.4028235e38, -3.4028235e38]]
    )
    with np.errstate(over="ignore"):
        middle = wide.astype(np.float32)
    with np.errstate(over="ignore"):
        near = [np.nextafter(middle, np.float32(np.inf)), np.nextafter(middle, np.float32(-np.inf))]
    special = np.float32([0.0, -0.0, np.inf, -np.inf, np.nan])
    return np.concatenate([middle, *near, special])


def gfloat_format(fmt: FloatingPoint) -> FormatInfo | None:
    """Return gfloat's description of the same codes, if it can describe them."""
    if fmt.nan is NanCodes.TOP_EXPONENT:
        high, zero_nan = (1 << fmt.mantissa_bits) - 1, False
    else:
        high, zero_nan = int(fmt.nan is NanCodes.ALL_ONES), fmt.nan is NanCodes.NEGATIVE_ZERO
    if not fmt.zero or (fmt.signed and not fmt.negative_zero and not zero_nan):
        return None
    return FormatInfo(
        fmt.name, k=fmt.bits, precision=fmt.precision, bias=fmt.bias, has_nz=fmt.negative_zero,
        domain=Domain.Extended if fmt.infinities else Domain.Finite, num_high_nans=high, has_subnormals=True,
        is_signed=fmt.signed, is_twos_complement=False,
    )  # fmt: skip


def gfloat_round(fmt: FloatingPoint, x: np.ndarray, rule: str, saturate: bool) -> np.ndarray | None:
    """Return gfloat's answer in float64, or None where it has none."""
    info = gfloat_format(fmt)
    if info is None or (rule not in GFLOAT_RULES and rule != "to_odd"):
        return None
    if rule == "to_odd":
        return _odd_from_gfloat(info, fmt, x)
    wide = x.astype(np.float64)
    native_saturates = not fmt.infinities and not fmt.has_nan
    known = np.ones(x.shape, bool)
    if not fmt.signed:
        known &= ~(wide < 0)  # gfloat leaves negative inputs of unsigned formats open
    got = np.full(x.shape, np.nan)
    nan_free = known & ~np.isnan(wide) if not fmt.has_nan else known
    # gfloat keeps infinities where a format has none to saturate to; the largest float stands for them
    finite = np.where(np.isinf(wide), np.copysign(1e300, wide), wide) if saturate or native_saturates else wide
    with np.errstate(all="ignore"):
        got[nan_free] = gfloat.round_ndarray(
            info, finite[nan_free], GFLOAT_RULES[rule], sat=saturate or native_saturates
        )
    return got


def _odd_from_gfloat(info: FormatInfo, fmt: FloatingPoint, x: np.ndarray) -> np.ndarray | None:
    """Round to odd from gfloat's two directed roundings: the neighbour whose code is odd, never past the largest."""
    wide = np.clip(np.nan_to_num(x.astype(np.float64), posinf=1e300, neginf=-1e300), -fmt.largest, fmt.largest)
    if not fmt.signed:
        return None
    with np.errstate(all="ignore"):
        low = gfloat.round_ndarray(info, wide, gfloat.RoundMode.TowardNegative, sat=True)
        high = gfloat.round_ndarray(info, wide, gfloat.RoundMode.TowardPositive, sat=True)
    odd = codes_of(low, fmt) % 2 == 1 if fmt.negative_zero else codes_of(low + 0.0, fmt) % 2 == 1
    got = np.where((low == high) | odd, low, high)
    got[~np.isfinite(x)] = np.nan  # left to the other oracles
    return np.where(got == 0, np.copysign(0, x) if fmt.negative_zero else 0.0, got)


def fixed_round(fmt: FixedPoint, x: np.ndarray, rule: str, wrap: bool) -> np.ndarray:
    """Return the fixed-point answer by exact float64 and integer arithmetic, for inputs without NaN."""
    y = np.clip(x.astype(np.float64) * 2.0**fmt.fraction_bits, -(2.0**60), 2.0**60)
    floor = np.floor(y)
    rest = y - floor
    match rule:
        case "nearest_even":
            code = np.rint(y)
        case "nearest_away":
            code = np.copysign(np.floor(np.abs(y) + 0.5), y)
        case "toward_zero":
            code = np.trunc(y)
        case "up":
            code = np.ceil(y)
        case "down":
            code = floor
        case _:
            code = np.where(rest == 0, floor, np.where(floor % 2 == 1, floor, floor + 1))
    if wrap:
        size = 1 << fmt.bits
        whole = np.array([int(c) % size for c in code], dtype=np.int64)
        code = np.where(whole > fmt.largest_code, whole - size, whole)
    else:
        code = np.clip(code, fmt.lowest_code, fmt.largest_code)
    return code * 2.0**-fmt.fraction_bits + 0.0


def mpfr_round(fmt: FloatingPoint, x: np.ndarray, rule: str) -> np.ndarray:
    """Return MPFR's answer for finite inputs within the range (NaN elsewhere): one rounding, subnormals included."""
    got = np.full(x.shape, np.nan)
    context = gmpy2.context(
        precision=fmt.precision, emin=fmt.smallest_exponent + 1, emax=fmt.emax + 2, subnormalize=True,
        round=MPFR_RULES[rule],
    )  # fmt: skip
    with context:
        for i in np.flatnonzero(np.isfinite(x) & (np.abs(x) <= fmt.largest)):
            got[i] = float(gmpy2.mpfr(float(x[i])))
    return got


def differ(got: np.ndarray, want: np.ndarray, x: np.ndarray, where: np.ndarray | None = None) -> int:
    """Count elements whose bits differ; `where` limits the comparison."""
    got, want = got.astype(np.float64), want.astype(np.float64)
    wrong = got.view(np.int64) != want.view(np.int64)
    wrong &= ~(np.isnan(got) & np.isnan(want))
    return int((wrong if where is None else wrong & where).sum())


def check_codes(fmt: FloatingPoint | FixedPoint, tally: Counter[str]) -> None:
    """Round trip and order of every code."""
    codes = np.arange(1 << fmt.bits)
    values = values_of(codes, fmt)
    keep = ~np.isnan(values)
    tally["codes tried"] += codes.size
    tally["codes wrong"] += int((codes_of(values[keep], fmt) != codes[keep]).sum())
    positive = values[: 1 << (fmt.bits - fmt.signed)]
    positive = positive[~np.isnan(positive)].astype(np.float64)
    tally["codes wrong"] += int((np.diff(positive) <= 0).sum())


def check_format(name: str, tally: Counter[str], backends: Iterable[str], exact_share: float) -> None:
    """Try every input of one format under every rule and overflow; add to the tally."""
    fmt = parse_format(name)
    assert isinstance(fmt, FloatingPoint | FixedPoint)
    check_codes(fmt, tally)
    x = inputs(fmt)
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    sampled = np.flatnonzero(rng.random(x.size) < exact_share)
    edges = np.flatnonzero(
        ~(np.abs(x) < np.float32(max(fmt.largest, 0) * 0.999)) | (np.abs(x) < 4 * 2.0**fmt.smallest_exponent)
    )
    sampled = np.unique(np.concatenate([sampled, edges[:200], edges[-200:]]))
    for rule in RULES:
        for overflow in ("native", "saturate", "wrap"):
            if overflow == "wrap" and not isinstance(fmt, FixedPoint):
                continue
            given = np.where(np.isinf(x), 1, x) if overflow == "wrap" else x
            made = Cast(fmt, rule, overflow, nan="zero")
            answers = {}
            for backend in backends:
                with hwsim.backend(backend):
                    answers[backend] = cast(given, made)
                tally["results tried"] += given.size
            first = next(iter(answers.values()))
            assert first.dtype == carrier_of(fmt)
            for other in answers.values():
                tally["back ends differ"] += differ(first, other, given)
            exact = np.array([round_exact(float(given[i]), made) for i in sampled])
            tally["Fraction tried"] += sampled.size
            tally["Fraction differs"] += differ(first[sampled], exact, given[sampled])
            _against_oracles(fmt, given, first, rule, overflow, tally)


def _against_oracles(
    fmt: FloatingPoint | FixedPoint, x: np.ndarray, got: np.ndarray, rule: str, overflow: str, tally: Counter[str]
) -> None:
    if isinstance(fmt, FixedPoint):
        keep = ~np.isnan(x)
        tally["NumPy tried"] += int(keep.sum())
        tally["NumPy differs"] += differ(got[keep], fixed_round(fmt, x[keep], rule, overflow == "wrap"), x[keep])
        return
    want = gfloat_round(fmt, x, rule, overflow == "saturate")
    if want is not None:
        keep = ~np.isnan(want) | (np.isnan(got) & (rule != "to_odd"))
        keep &= ~(np.isnan(x) & (not fmt.has_nan))
        if not fmt.signed:
            keep &= ~(x < 0)
        if rule in ("toward_zero", "up", "down"):
            keep &= ~(np.isinf(x) & (not fmt.infinities))
        tally["gfloat tried"] += int(keep.sum())
        tally["gfloat differs"] += differ(got, want, x, keep)
    dtype = getattr(ml_dtypes, fmt.name, np.float16 if fmt.name == "float16" else None)
    if dtype is not None and rule == "nearest_even" and overflow == "native":
        with np.errstate(all="ignore"):
            theirs = x.astype(dtype).astype(np.float64)
        keep = ~np.isnan(x)
        if not fmt.zero:  # ml_dtypes takes every subnormal float32 above 2**-127 up to 2**-126, nearest or not
            keep &= np.abs(x) >= np.float32(2.0**-126)
        tally["ml_dtypes tried"] += int(keep.sum())
        tally["ml_dtypes differs"] += differ(got, theirs, x, keep)
    named = any(fmt.name == row[0] for row in FLOATS)
    if named and fmt.zero and rule in MPFR_RULES and overflow == "native":
        theirs = mpfr_round(fmt, x, rule)
        keep = ~np.isnan(theirs) & (np.abs(theirs) <= fmt.largest)
        keep &= (x != 0) & (theirs != 0) | fmt.negative_zero
        tally["MPFR tried"] += int(keep.sum())
        tally["MPFR differs"] += differ(got, theirs, x, keep)


def check_probabilities(tally: Counter[str]) -> None:
    """Stochastic rounding of every float8_e4m3fn midpoint and neighbour: all random words, n from 1 to 10."""
    fmt = parse_format("float8_e4m3fn")
    x = inputs(fmt)  # type: ignore[arg-type]
    x = x[(np.abs(x) < fmt.largest) & (x != 0)][::97]
    for n in range(1, 11):
        made = Cast(fmt, f"stochastic{n}")
        for value in map(float, x):
            low, high = sorted(abs(round_exact(value, Cast(fmt, rule))) for rule in ("up", "down"))
            share = (abs(value) - low) / (high - low) if high > low else 0.0
            away = sum(abs(round_exact(value, made, r << (32 - n))) > low for r in range(2**n))
            tally["probabilities tried"] += 1
            tally["probabilities wrong"] += away != math.floor(share * 2**n)


def run(formats: list[str], backends: tuple[str, ...], exact_share: float, verbose: bool = True) -> Counter[str]:
    """Check the formats and return the tally of values tried and mismatches."""
    total: Counter[str] = Counter()
    for name in formats:
        tally: Counter[str] = Counter()
        start = time.perf_counter()
        check_format(name, tally, backends, exact_share)
        wrong = mismatches(tally)
        if verbose:
            seconds = time.perf_counter() - start
            print(
                f"{name:22} {tally['results tried']:10d} results  {wrong:6d} mismatches  {seconds:6.1f} s", flush=True
            )
        total += tally
    check_probabilities(total)
    return total


def mismatches(tally: Counter[str]) -> int:
    """Return the sum of everything that counts a disagreement."""
    return sum(count for key, count in tally.items() if key.endswith(("differ", "differs", "wrong")))


def main() -> int:
    """Run as a script; the exit status is 1 if anything disagrees."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sample", action="store_true", help="only the formats that `make test` runs")
    parser.add_argument("formats", nargs="*", help="formats to check (default: all to 16 bits)")
    chosen = parser.parse_args()
    names = chosen.formats or (SAMPLE_FORMATS if chosen.sample else list(dict.fromkeys(all_formats())))
    total = run(names, ("numba", "torch"), 0.01)
    print(f"\n{len(names)} formats")
    for key in sorted(total):
        print(f"{key:22} {total[key]:14,d}")
    for key in (
        "back ends differ",
        "Fraction differs",
        "gfloat differs",
        "NumPy differs",
        "ml_dtypes differs",
        "MPFR differs",
    ):
        if key not in total:
            print(f"{key:22} {0:14,d}")
    print(f"mismatches             {mismatches(total):14,d}")
    return int(mismatches(total) > 0)


if __name__ == "__main__":
    sys.exit(main())
