"""GEMM term by term: for orders that are no running sum (pairwise) and products that are no product (tables).

A row of terms for one k and a panel of columns is formed in float64, then added where the order says, by the same
vector steps as everywhere. Slower than the tile, and needs no case of its own.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np

from hwsim.arithmetic.mac import Chunked, MacSpec, Pairwise, ProductTable, Sequential
from hwsim.arithmetic.storage import Cast
from hwsim.errors import UnsupportedError
from hwsim.kernels.numba_cpu.compiled import compiled
from hwsim.kernels.numba_cpu.matmul_driver import set_processor_mode
from hwsim.kernels.numba_cpu.matmul_plan import empty_block, general_recipe, parameter_block, processor_mode, rule_for
from hwsim.kernels.numba_cpu.matmul_tile import Recipe, join, tile
from hwsim.kernels.numba_cpu.revision import REVISION
from hwsim.kernels.numba_cpu.threads import run_slices

WIDTH = 32  # columns of a panel
VECTORS = 4  # of float64, in a panel
SEQUENTIAL, CHUNKED, PAIRWISE = range(3)
ROW_WORK = 1 << 18  # terms that are worth a thread


def multiply(
    a: np.ndarray, b: np.ndarray, mac: MacSpec, out: np.ndarray, start: np.ndarray | None,
    keys: np.ndarray, outer_keys: np.ndarray, index: np.ndarray, totals: np.ndarray | None = None,
) -> None:  # fmt: skip
    """Compute one GEMM. Arguments as `matmul.run`; `index` holds each row's first output index.

    With `totals`, add to it what happened: swamped, overflowed, terms (`matmul_counts`). In a tree, a node is swamped
    that equals one of its two branches although the other is not 0.

    Raises:
        UnsupportedError: this order, or operands whose products float64 does not hold.
    """
    order, product = mac.order, mac.product
    number = {Sequential: SEQUENTIAL, Chunked: CHUNKED, Pairwise: PAIRWISE}.get(type(order))
    if number is None or (number == PAIRWISE and mac.rounding.stochastic):
        raise UnsupportedError(f"matmul: {mac} has no vector kernel")
    k = a.shape[1]
    outer_cast = (order.outer or mac.cast) if isinstance(order, Chunked) else mac.cast
    inner, outer = general_recipe(mac.cast), general_recipe(outer_cast)
    table, codes_a, codes_b = np.zeros(1), np.zeros((1, 1), np.int32), np.zeros((1, 1), np.int32)
    rule, block = "none", empty_block(64)
    if isinstance(product, ProductTable):
        table = np.frombuffer(product.values, "<f8")
        codes_a, codes_b = _codes(a, product.left), _codes(b, product.right)
        codes_a <<= product.right.bits
    elif isinstance(product, Cast):
        if product.rounding.stochastic:
            raise UnsupportedError("matmul: a stochastic product has no vector kernel")
        rule, block = rule_for(product, 64), parameter_block(product, 64)
    left, right = (np.ascontiguousarray(x, np.float64) for x in (a, b))
    first = np.zeros(out.shape) if start is None else np.ascontiguousarray(start, np.float64)
    by_table, counting = isinstance(product, ProductTable), totals is not None
    function = kernel(Recipe(64, "near", "none", rule), inner, outer, number, by_table, counting)
    limits = np.array([mac.accumulator.lowest, mac.accumulator.largest])  # type: ignore[union-attr]
    blocks = np.concatenate([empty_block(64), block])
    inner_block, outer_block = parameter_block(mac.cast, 64), parameter_block(outer_cast, 64)
    chunk = order.size if isinstance(order, Chunked) else max(k, 1)
    last = number == PAIRWISE and (start is not None or k < 2)

    def share(begin: int, end: int) -> None:
        function(
            left, right, codes_a, codes_b, table, first, out, begin, end, chunk, last,
            processor_mode(inner), processor_mode(outer), blocks.ctypes.data, inner_block.ctypes.data,
            outer_block.ctypes.data, keys.ctypes.data, outer_keys.ctypes.data, index, limits, found,
        )  # fmt: skip

    found = np.zeros(3) if totals is None else totals
    if counting:
        share(0, out.shape[0])
    else:
        run_slices(share, out.shape[0], max(1, ROW_WORK // max(1, out.shape[1] * k)))


def _codes(x: np.ndarray, fmt: Any) -> np.ndarray:
    from hwsim.kernels.codes import encode

    return np.ascontiguousarray(encode(np.ascontiguousarray(x), fmt)).astype(np.int32)


@cache
def kernel(leaf: Recipe, inner: Recipe, outer: Recipe, order: int, by_table: bool, counting: bool) -> Any:
    """Return the compiled loops."""
    return _build(str(leaf), str(inner), str(outer), order, by_table, counting, REVISION)


@compiled
def _count(before, term, after, columns, limits, tree, found):  # type: ignore[no-untyped-def]
    """Count one addition for each column: before + term = after."""
    for j in range(columns):
        x, y, z = before[j], term[j], after[j]
        if not (np.isfinite(x) and np.isfinite(y)) or y == 0 or (tree and x == 0):
            continue
        if not limits[0] < z < limits[1]:
            found[1] += 1
        elif z == x or (tree and z == y):
            found[0] += 1


def _build(leaf: str, inner: str, outer: str, order: int, by_table: bool, counting: bool, revision: str) -> Any:
    groups = WIDTH // 16

    @compiled
    def run(  # type: ignore[no-untyped-def]
        a, b, codes_a, codes_b, table, start, out, begin, end, chunk, add_start_last, inner_mode, outer_mode,
        blocks, inner_block, outer_block, keys, outer_keys, index, limits, found,
    ):  # fmt: skip
        _ = revision
        before = np.zeros(WIDTH)
        k, n = a.shape[1], out.shape[1]
        panel = np.zeros((k + 1, WIDTH))
        stack = np.zeros((64, WIDTH))  # pairwise: finished subtrees; else row 0 is the sum, row 1 the term
        total = np.zeros((1, WIDTH))
        places = np.zeros(groups, np.uint32)
        for first in range(0, n, WIDTH):
            columns = min(WIDTH, n - first)
            for i in range(k):
                for j in range(columns):
                    panel[i, j] = b[i, first + j]
            for row in range(begin, end):
                for g in range(groups):
                    places[g] = np.uint32(index[row] + first + 16 * g)
                total[:] = 0.0
                for j in range(columns):
                    total[0, j] = start[row, first + j]
                if order == SEQUENTIAL:
                    stack[0, :] = total[0, :]
                depth = 0
                for i in range(k):
                    if order == CHUNKED and i % chunk == 0:
                        stack[0, :] = 0.0
                    at = depth if order == PAIRWISE else 1
                    term = stack[at:].ctypes.data
                    if by_table:
                        line = codes_a[row, i]
                        for j in range(columns):
                            stack[at, j] = table[line + codes_b[i, first + j]]
                    else:
                        stack[at, :] = -0.0  # the one number that added to x leaves every x alone
                        tile(leaf, 1, VECTORS, a[row, i:].ctypes.data, 0, 0, panel[i:].ctypes.data, 0, term, 1, blocks,
                             0, 0)  # fmt: skip
                    if counting:
                        for j in range(columns):
                            found[2] += np.isfinite(stack[at, j]) and stack[at, j] != 0
                    if order == PAIRWISE:
                        depth += 1
                        count = i + 1
                        while count & 1 == 0:
                            if counting:
                                before[:] = stack[depth - 2]
                            set_processor_mode(np.int32(inner_mode))
                            join(inner, 64, groups, stack[depth - 2 :].ctypes.data, stack[depth - 1 :].ctypes.data,
                                 inner_block, keys, places.ctypes.data)  # fmt: skip
                            set_processor_mode(np.int32(0))
                            if counting:
                                _count(before, stack[depth - 1], stack[depth - 2], columns, limits, True, found)
                            depth -= 1
                            count >>= 1
                        continue
                    if counting:
                        before[:] = stack[0]
                    set_processor_mode(np.int32(inner_mode))
                    join(inner, 64, groups, stack.ctypes.data, term, inner_block, keys + 8 * i, places.ctypes.data)
                    if counting:
                        _count(before, stack[1], stack[0], columns, limits, False, found)
                    if order == CHUNKED and (i % chunk == chunk - 1 or i == k - 1):
                        set_processor_mode(np.int32(outer_mode))
                        join(outer, 64, groups, total.ctypes.data, stack.ctypes.data, outer_block,
                             outer_keys + 8 * (i // chunk), places.ctypes.data)  # fmt: skip
                    set_processor_mode(np.int32(0))
                if order == PAIRWISE:
                    set_processor_mode(np.int32(inner_mode))
                    while depth > 1:
                        if counting:
                            before[:] = stack[depth - 2]
                        join(inner, 64, groups, stack[depth - 2 :].ctypes.data, stack[depth - 1 :].ctypes.data,
                             inner_block, keys, places.ctypes.data)  # fmt: skip
                        if counting:
                            _count(before, stack[depth - 1], stack[depth - 2], columns, limits, True, found)
                        depth -= 1
                    if k == 0:  # a zero of c's own sign: under `down` any other one would turn +0 into -0
                        for j in range(WIDTH):
                            stack[0, j] = math.copysign(0.0, total[0, j])
                    if add_start_last:
                        if counting:
                            before[:] = stack[0]
                        join(inner, 64, groups, stack.ctypes.data, total.ctypes.data, inner_block, keys,
                             places.ctypes.data)  # fmt: skip
                        if counting:
                            _count(before, total[0], stack[0], columns, limits, True, found)
                    set_processor_mode(np.int32(0))
                for j in range(columns):
                    value = total[0, j] if order == CHUNKED else stack[0, j]
                    out[row, first + j] = np.nan if np.isnan(value) else value

    return run
