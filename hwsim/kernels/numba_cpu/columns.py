"""The backward products of a small linear layer, ranked over the batch, from the few columns that were kept.

A BLAS is as fast per product, but each call of one costs as much as a small layer's whole product does, and it wants
its operands gathered and its result scattered. Here one compiled call ranks, multiplies and writes each result where it
belongs. Sums are fused multiply-adds over the kept columns (grad_input) or the rows of the batch (grad_weight),
ascending; native order promises no bits, but these are the same whoever asks what was kept.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from hwsim.kernels.numba_cpu.compiled import compiled
from hwsim.kernels.numba_cpu.matmul_tile import copy_vectors
from hwsim.kernels.numba_cpu.select import largest_scores
from hwsim.kernels.numba_cpu.vector_ir import INT64, SHORT_VECTORS, Lanes, counted_loop

ROWS = 6  # of a tile: with its columns 12 sums, which is what 16 registers hold beside the operands
VECTORS = 1 if SHORT_VECTORS else 2  # of 16 float32
WIDE = 16 * VECTORS  # columns of a tile
MOST_WORK = 1 << 24  # multiply-accumulates of one product from which on a BLAS, and its threads, are as fast


def is_small(rows: int, kept: int, width: int) -> bool:
    """Return whether `multiply_columns` takes such products: from one tile's width on, and up to `MOST_WORK`."""
    return width >= WIDE and 0 < rows * kept * width <= MOST_WORK


@intrinsic(prefer_literal=True)
def _tile(_typing, rows, a, a_row, a_term, b, terms, places, column):  # type: ignore[no-untyped-def]
    """Write the sum of a[row, term] * b[term] over `terms` terms to `rows` x `WIDE` places.

    Args:
        rows: a literal. a, a_row, a_term: address and strides in bytes of the left operand.
        b: address of the packed right operand, `WIDE` float32 a term.
        places: address of one i64 for each row: the address of the result's row. column: offset in it, in bytes.
    """
    if not isinstance(rows, types.Literal):
        return None
    height = rows.literal_value

    def generate(context: Any, builder: ir.IRBuilder, _signature: Any, values: Any) -> Any:
        _emit_tile(builder, height, *values[1:])
        return context.get_dummy_value()

    return types.void(rows, *([types.int64] * 7)), generate


def _emit_tile(
    b: ir.IRBuilder, rows: int, left: Any, row_stride: Any, term_stride: Any, right: Any, terms: Any, places: Any,
    column: Any,
) -> None:  # fmt: skip
    lanes = Lanes(b, 32)

    def add(_term: Any, a: Any, packed: Any, *sums: Any) -> list[Any]:
        vectors = [lanes.load(b.add(packed, INT64(64 * v))) for v in range(VECTORS)]
        new = []
        for r in range(rows):
            factor = lanes.spread(lanes.load_scalar(b.add(a, b.mul(row_stride, INT64(r)))))
            new += [lanes.fma(factor, vectors[v], sums[r * VECTORS + v]) for v in range(VECTORS)]
        return [b.add(a, term_stride), b.add(packed, INT64(64 * VECTORS)), *new]

    start = [left, right, *[lanes.number(0.0)] * (rows * VECTORS)]
    _, _, *sums = counted_loop(b, "columns", terms, start, add, at_least_one=True)
    for r in range(rows):
        address = b.add(lanes.load_scalar(b.add(places, INT64(8 * r)), INT64), column)
        for v in range(VECTORS):
            lanes.store(sums[r * VECTORS + v], b.add(address, INT64(64 * v)))


@compiled
def _multiply(left, a_row, a_term, source, terms, width, places):  # type: ignore[no-untyped-def]
    """places[r] = sum of left[r, t] * source[terms[t]] over t, for `width` columns; `terms` are row numbers.

    `places` are addresses, strides of the left operand in bytes. The last tile does some rows or columns again where
    sizes are no multiples of its own.
    """
    rows, count = len(places), len(terms)
    packed = np.empty((count, WIDE), np.float32)
    for first in range(0, width, WIDE):
        column = min(first, width - WIDE)
        for t in range(count):
            place = source.ctypes.data + 4 * (np.int64(terms[t]) * width + column)
            copy_vectors(32, VECTORS, place, packed.ctypes.data + 64 * VECTORS * t)
        for begin in range(0, rows, ROWS if rows >= ROWS else 1):
            r = min(begin, rows - ROWS) if rows >= ROWS else begin
            a, to = left.ctypes.data + r * a_row, places.ctypes.data + 8 * r
            if rows >= ROWS:
                _tile(ROWS, a, a_row, a_term, packed.ctypes.data, count, to, 4 * column)
            else:
                _tile(1, a, a_row, a_term, packed.ctypes.data, count, to, 4 * column)
    return packed[0, 0]  # so that it lives until here


@compiled
def multiply_columns(g, columns, w, x, grad_input, grad_weight, dirty):  # type: ignore[no-untyped-def]
    """Compute g[:, columns] @ w[columns], and the rows `columns` of g.T @ x; the rest of grad_weight becomes 0.

    Args:
        g: float32, rows x out, at least one row. columns: ascending. w: out x in. x: rows x in; all contiguous.
        grad_input: rows x in, or no rows: not wanted. grad_weight: out x in, or no rows.
        dirty: which rows of grad_weight hold something.
    """
    rows, kept, width = g.shape[0], len(columns), w.shape[1]
    if kept == 0:
        grad_input[:, :] = np.float32(0)
    compact = np.empty((rows, kept), np.float32)
    for r in range(rows):
        for c in range(kept):
            compact[r, c] = g[r, columns[c]]
    if len(grad_input) and kept:
        places = np.empty(rows, np.int64)
        for r in range(rows):
            places[r] = grad_input.ctypes.data + 4 * r * width
        _multiply(compact, 4 * kept, 4, w, columns, width, places)
    if len(grad_weight):
        places = np.empty(kept, np.int64)
        for c in range(kept):
            places[c] = grad_weight.ctypes.data + 4 * np.int64(columns[c]) * width
            dirty[columns[c]] = False
        if kept:
            _multiply(compact, 4, 4 * kept, x, np.arange(rows), width, places)
        for j in range(len(dirty)):
            if dirty[j]:
                grad_weight[j, :] = np.float32(0)
                dirty[j] = False
        for c in range(kept):
            dirty[columns[c]] = True


@compiled
def rank_and_multiply(g, kept, w, x, grad_input, grad_weight, dirty, grad_bias):  # type: ignore[no-untyped-def]
    """Rank over the batch, then `multiply_columns`; return whether g has a NaN, and then nothing is multiplied.

    grad_bias: becomes the sum of the rows of g; of no length if that is not wanted.
    """
    scores, sums = np.zeros(g.shape[1], np.float64), np.zeros(g.shape[1], np.float64)
    for r in range(g.shape[0]):
        row = g[r]
        for j in range(row.shape[0]):
            value = np.float64(row[j])
            scores[j] += abs(value)
            sums[j] += value
    for j in range(len(grad_bias)):
        grad_bias[j] = np.float32(sums[j])
    columns, has_nan = largest_scores(scores, kept)
    if not has_nan:
        multiply_columns(g, columns, w, x, grad_input, grad_weight, dirty)
    return has_nan


@compiled
def sum_rows(g):  # type: ignore[no-untyped-def]
    """Return the sum of the rows of g (float32) as `rank_and_multiply` takes it."""
    sums = np.zeros(g.shape[1], np.float64)
    for r in range(g.shape[0]):
        row = g[r]
        for j in range(row.shape[0]):
            sums[j] += np.float64(row[j])
    return sums.astype(np.float32)
