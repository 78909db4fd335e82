"""Every pair of codes of every 8-bit format through `hwsim.matmul`: products rounded, and c + a * b.

    python tests/kernels/exhaustive_pairs.py            every named 8-bit float, int8 and uint8
    python tests/kernels/exhaustive_pairs.py --sample   what `make test` runs

A product of two codes is exact in float64; c + a * b is rounded to odd there (TwoSum), which keeps one more rounding
right. gfloat and exact NumPy arithmetic round these once; the definition (Fraction) judges a sample of the same pairs.
"""

from __future__ import annotations

import argparse
import sys
import zlib
from collections import Counter
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
import exhaustive as codes  # the oracles of the casts

import hwsim
from hwsim.arithmetic.mac import MacSpec
from hwsim.arithmetic.named import FLOATS, parse_format
from hwsim.arithmetic.number import FixedPoint, FloatingPoint, NumberFormat
from hwsim.arithmetic.storage import Cast
from hwsim.kernels.codes import values_of

OPERANDS = [*(row[0] for row in FLOATS if parse_format(row[0]).bits == 8), "int8", "uint8"]
ACCUMULATORS = ["bfloat16", "float16", "e5m7", "e6m9", "float8_e5m2", "fixed16.4", "fixed24.8"]
RULES = ("nearest_even", "toward_zero", "up")
STARTS = (0.0, 1.0, -0.4375, 96.0)  # c: values of every accumulator tried
SAMPLE = [("float8_e4m3fn", ["bfloat16", "fixed16.4"]), ("int8", ["float16"])]
EXACT_PAIRS = 30  # pairs a case that Fraction judges


def check_pairs(name: str, accumulators: list[str], tally: Counter[str], rules: tuple[str, ...] = RULES) -> None:
    """Try all pairs of one operand format: rounded products, and sums in the given accumulators; add to the tally."""
    fmt = parse_format(name)
    assert isinstance(fmt, FloatingPoint | FixedPoint)
    every = values_of(np.arange(256), fmt).astype(np.float32)
    every = every[~np.isnan(every)]
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    for target in accumulators:
        # an infinity or its NaN is an error in fixed point
        values = every[np.isfinite(every)] if isinstance(parse_format(target), FixedPoint) else every
        column, row = values[:, None], values[None, :]
        for rule in rules:
            product = MacSpec("float32", product=Cast(target, rule))
            got = np.asarray(hwsim.matmul(column, row, product))
            with np.errstate(invalid="ignore", over="ignore"):
                exact = column.astype(np.float64) * row.astype(np.float64)
            want = rounded(exact, parse_format(target), rule) + 0.0  # the sum starts from +0
            tally["products tried"] += got.size
            tally["products differ"] += codes.differ(got, want, want)
            for start in STARTS:
                c = np.full((values.size, values.size), start, np.float32)
                mac = MacSpec(target, rounding=rule)
                got = np.asarray(hwsim.matmul(column, row, mac, c=c))
                want = oracle(column, row, start, target, rule)
                tally["sums tried"] += got.size
                tally["sums differ"] += codes.differ(got, want, want)
                for i, j in rng.integers(0, values.size, (EXACT_PAIRS, 2)):
                    with hwsim.backend("reference"):
                        exact = np.asarray(hwsim.matmul(column[i : i + 1], row[:, j : j + 1], mac, c=c[:1, :1]))
                    tally["Fraction tried"] += 1
                    tally["Fraction differs"] += codes.differ(got[i : i + 1, j : j + 1], exact, exact)


def oracle(column: np.ndarray, row: np.ndarray, start: float, accumulator: str, rule: str) -> np.ndarray:
    """Return c + a * b of all pairs, rounded once, in float64."""
    with np.errstate(invalid="ignore", over="ignore"):
        product = column.astype(np.float64) * row.astype(np.float64)  # exact
        total = product + start
        back = total - product  # TwoSum: what the float64 sum lost
        lost = (product - (total - back)) + (start - back)
    lost = np.where(np.isfinite(total), lost, 0.0)
    below = (lost != 0) & ((lost > 0) != (total > 0))
    odd = (total.view(np.int64) - below) | (lost != 0)  # rounded to odd: rounding once more is rounding once
    return rounded(odd.view(np.float64), parse_format(accumulator), rule)


def rounded(exact: np.ndarray, fmt: NumberFormat, rule: str) -> np.ndarray:
    """Return float64 values rounded into a format by gfloat or NumPy, in the given shape."""
    if isinstance(fmt, FixedPoint):
        return codes.fixed_round(fmt, exact.reshape(-1), rule, False).reshape(exact.shape)
    assert isinstance(fmt, FloatingPoint)
    want = codes.gfloat_round(fmt, exact.reshape(-1), rule, False)
    assert want is not None
    return want.reshape(exact.shape)


def run(operands: list[tuple[str, list[str]]]) -> Counter[str]:
    """Check operands with their accumulators and return the tally."""
    total: Counter[str] = Counter()
    for name, accumulators in operands:
        tally: Counter[str] = Counter()
        check_pairs(name, accumulators, tally)
        tried = tally["products tried"] + tally["sums tried"]
        print(f"{name:22} {tried:10d} pairs  {codes.mismatches(tally):6d} mismatches", flush=True)
        total += tally
    return total


def main() -> int:
    """Run as a script; the exit status is 1 if anything disagrees."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sample", action="store_true", help="only what `make test` runs")
    total = run(SAMPLE if parser.parse_args().sample else [(name, ACCUMULATORS) for name in OPERANDS])
    for key in ("products tried", "products differ", "sums tried", "sums differ", "Fraction tried", "Fraction differs"):
        print(f"{key:22} {total[key]:14,d}")
    print(f"mismatches             {codes.mismatches(total):14,d}")
    return int(codes.mismatches(total) > 0)


if __name__ == "__main__":
    sys.exit(main())
