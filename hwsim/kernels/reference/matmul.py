"""The definition of accumulation: one dot product under a `MacSpec`, in fractions, term by term.

A real number travels as a `Fraction` if it is finite and not zero, else as a float (zeros have signs). c is used as
it is by the orders that add it last (pairwise, exact); the orders that start from it first round it, to nearest even,
into the format that holds the sum; fused steps take it in the register of their output, float32 or float16.

Random words: the accumulation at original position k of output element i uses ``word(stream, i, k)``; other roundings
of the same step have streams of their own (`stage_stream`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import IntEnum
from fractions import Fraction

import numpy as np

from hwsim.arithmetic.codec import encode_value
from hwsim.arithmetic.mac import Chunked, Exact, Fused, Kahan, MacSpec, Pairwise, ProductTable, Sequential
from hwsim.arithmetic.number import NumberFormat, carrier_of
from hwsim.arithmetic.rounding import RoundingMode
from hwsim.arithmetic.storage import Cast
from hwsim.errors import UnsupportedError
from hwsim.kernels.random_bits import mix64, word
from hwsim.kernels.reference.fused import fused_dot
from hwsim.kernels.reference.rounding import round_exact

Real = Fraction | float


class Stage(IntEnum):
    """Which rounding of a step a random word is for."""

    ACCUMULATE = 0
    PRODUCT = 1
    OUTER = 2  # a chunk (counter: its number), c or the bias joining the sum
    TERM = 3  # Kahan: product minus compensation
    DIFFERENCE = 4  # Kahan: new sum minus old sum
    LOST = 5  # Kahan: the new compensation


def stage_stream(stream: int, stage: Stage) -> int:
    """Return the stream of one kind of rounding; accumulation uses the GEMM's own."""
    return stream if stage is Stage.ACCUMULATE else mix64(stream + stage)


def matmul(
    a: np.ndarray,
    b: np.ndarray,
    mac: MacSpec,
    c: np.ndarray | None = None,
    bias: np.ndarray | None = None,
    stream: int = 0,
    k_positions: Sequence[int] | None = None,
    indices: np.ndarray | None = None,
) -> np.ndarray:
    """Return a (m x k) times b (k x n) in the arithmetic of `mac`; the dtype is the result format's carrier.

    Args:
        c: start values, m x n. bias: n values, each added to its column after the last product.
        stream: random stream.
        k_positions: original position of each k (for random words), where k was compacted.
        indices: row-major output index of each result (for random words), m x n; by default 0, 1, 2, ...
    """
    (m, k), n = a.shape, b.shape[1]
    out = np.zeros((m, n))
    for i in range(m):
        for j in range(n):
            index = int(indices[i, j]) if indices is not None else i * n + j
            dot = Dot(mac, stream, index, k_positions)
            start = 0.0 if c is None else float(c[i, j])
            value = dot.run([float(x) for x in a[i]], [float(x) for x in b[:, j]], start, c is not None)
            if bias is not None:
                value = dot.add_outer(value, float(bias[j]), k)
            out[i, j] = value
    return out.astype(result_carrier(mac))


def result_cast(mac: MacSpec) -> Cast:
    """Return the cast that the final sum went through."""
    if isinstance(mac.order, Chunked) and mac.order.outer is not None:
        return mac.order.outer
    return mac.order.output if isinstance(mac.order, Fused) else mac.cast


def result_carrier(mac: MacSpec) -> str:
    """Return float32 or float64: what the results travel in."""
    order, fmt = mac.order, mac.accumulator
    if isinstance(order, Fused) or (isinstance(order, Chunked) and order.outer is not None):
        fmt = result_cast(mac).format
    return carrier_of(fmt)


def start_format(mac: MacSpec) -> NumberFormat | None:
    """Return the format into which c is rounded before use, None where it is used as it is."""
    if isinstance(mac.order, Pairwise | Exact):
        return None
    if isinstance(mac.order, Fused):
        fmt = mac.order.output.format
        return None if fmt.exponent_bits >= 8 else fmt  # type: ignore[union-attr]
    return result_cast(mac).format


class Dot:
    """One output element: the pieces that every order is made of."""

    def __init__(self, mac: MacSpec, stream: int, index: int, k_positions: Sequence[int] | None) -> None:
        self.mac, self.stream, self.index, self.k_positions = mac, stream, index, k_positions

    def run(self, a: list[float], b: list[float], c: float, has_c: bool) -> float:
        """Return the sum of the products of a and b, with start value c."""
        mac, order = self.mac, self.mac.order
        fmt = start_format(mac)
        if has_c and fmt is not None:
            c = round_exact(c, Cast(fmt, "nearest_even", result_cast(mac).overflow))
        if isinstance(order, Fused):
            return fused_dot(a, b, c, order)
        products = [self.product(x, y, k) for k, (x, y) in enumerate(zip(a, b, strict=True))]
        if isinstance(order, Sequential):
            return self._sequential(products, c, 0)
        if isinstance(order, Chunked):
            return self._chunked(products, c, order)
        if isinstance(order, Kahan):
            return self._kahan(products, c)
        if isinstance(order, Pairwise):
            return self._pairwise(products, c, has_c)
        if isinstance(order, Exact):
            return self._exact(products, c, has_c)
        raise UnsupportedError(f"matmul: order {order} cannot run in the reference")

    def word(self, stage: Stage, k: int) -> int:
        """Return the random word of a rounding at position k of the gathered operands."""
        original = self.k_positions[k] if self.k_positions is not None and k < len(self.k_positions) else k
        return word(stage_stream(self.stream, stage), self.index, original)

    def product(self, x: float, y: float, k: int) -> Real:
        """Return the product of two operands, after the product's own rounding or table."""
        rule = self.mac.product
        if isinstance(rule, ProductTable):
            return real(table_entry(rule, x, y))
        exact = multiply(x, y)
        return exact if rule == "exact" else real(round_exact(exact, rule, self._drawn(rule, Stage.PRODUCT, k)))

    def add(self, x: Real, y: Real, cast: Cast, stage: Stage, k: int) -> float:
        """Return x + y rounded once."""
        down = cast.rounding.mode is RoundingMode.DOWN
        return round_exact(plus(x, y, down), cast, self._drawn(cast, stage, k))

    def add_outer(self, total: float, more: float, k: int) -> float:
        """Return total + more in the format of the result (a bias)."""
        return self.add(real(total), real(more), result_cast(self.mac), Stage.OUTER, k)

    def _drawn(self, cast: Cast, stage: Stage, k: int) -> int:
        return self.word(stage, k) if cast.rounding.stochastic else 0

    def _sequential(self, products: list[Real], start: float, first: int) -> float:
        total = start
        for k, product in enumerate(products, first):
            total = self.add(real(total), product, self.mac.cast, Stage.ACCUMULATE, k)
        return total

    def _chunked(self, products: list[Real], start: float, order: Chunked) -> float:
        total = start
        outer = order.outer or self.mac.cast
        for first in range(0, len(products), order.size):
            inner = self._sequential(products[first : first + order.size], 0.0, first)
            # counted by chunk, not by position: chunks are those of the gathered operands
            drawn = word(stage_stream(self.stream, Stage.OUTER), self.index, first // order.size)
            down = outer.rounding.mode is RoundingMode.DOWN
            total = round_exact(plus(real(total), real(inner), down), outer, drawn)
        return total

    def _kahan(self, products: list[Real], start: float) -> float:
        total, lost = start, 0.0
        cast = self.mac.cast
        for k, product in enumerate(products):
            term = self.add(product, minus(real(lost)), cast, Stage.TERM, k)
            new = self.add(real(total), real(term), cast, Stage.ACCUMULATE, k)
            gained = self.add(real(new), minus(real(total)), cast, Stage.DIFFERENCE, k)
            lost = self.add(real(gained), minus(real(term)), cast, Stage.LOST, k)
            total = new
        return total

    def _pairwise(self, products: list[Real], start: float, has_start: bool) -> float:
        """Inner nodes are counted by the position of their last leaf; leaves enter unrounded."""

        def tree(first: int, last: int) -> Real:
            length = last - first
            if length == 1:
                return products[first]
            split = first + (1 << ((length - 1).bit_length() - 1))
            left, right = tree(first, split), tree(split, last)
            # nodes that end at the same leaf differ in their first one
            drawn = 0
            if self.mac.rounding.stochastic:
                drawn = word(mix64(stage_stream(self.stream, Stage.ACCUMULATE) + first), self.index, last - 1)
            down = self.mac.rounding.mode is RoundingMode.DOWN
            return real(round_exact(plus(left, right, down), self.mac.cast, drawn))

        if not products:
            return round_exact(start, self.mac.cast, self._drawn(self.mac.cast, Stage.OUTER, 0))
        total = tree(0, len(products))
        if has_start or len(products) == 1:
            return self.add(total, real(start), self.mac.cast, Stage.OUTER, len(products))
        return float(total)

    def _exact(self, products: list[Real], start: float, has_start: bool) -> float:
        down = self.mac.rounding.mode is RoundingMode.DOWN
        total: Real = real(start) if has_start else 0.0
        for product in products:
            total = plus(total, product, down)
        return round_exact(total, self.mac.cast, word(self.stream, self.index))  # one rounding: counter 0


def real(value: float) -> Real:
    """Return a float as a `Real`."""
    return Fraction(value) if value and math.isfinite(value) else value


def minus(x: Real) -> Real:
    """Return -x (zeros change sign)."""
    return -x


def multiply(x: float, y: float) -> Real:
    """Return the exact product of two floats."""
    if x and y and math.isfinite(x) and math.isfinite(y):
        return Fraction(x) * Fraction(y)
    return x * y  # a zero, infinity or NaN, which float arithmetic gets right


def plus(x: Real, y: Real, down: bool) -> Real:
    """Return the exact sum; zero from opposite signs is +0, under round-down -0."""
    if isinstance(x, Fraction) and isinstance(y, Fraction):
        total = x + y
        return total if total else (-0.0 if down else 0.0)
    for one, other in ((x, y), (y, x)):
        if isinstance(one, float) and isinstance(other, Fraction):
            return other if one == 0 else one
    assert isinstance(x, float) and isinstance(y, float)
    if x == 0 and y == 0:
        same = math.copysign(1.0, x) == math.copysign(1.0, y)
        return x if same else (-0.0 if down else 0.0)
    return x + y


def table_entry(table: ProductTable, x: float, y: float) -> float:
    """Return the product that a table holds for two operand values."""
    row, column = encode_value(table.left, x), encode_value(table.right, y)
    place = 8 * ((row << table.right.bits) + column)
    return float(np.frombuffer(table.values[place : place + 8], "<f8")[0])
