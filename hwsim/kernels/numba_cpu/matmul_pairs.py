"""Integer GEMMs by pairs of 16-bit products (`tile_pairs`): operands laid out in pairs of k, sums written as floats."""

from __future__ import annotations

import numpy as np

from hwsim.kernels.numba_cpu.compiled import compiled
from hwsim.kernels.numba_cpu.matmul_tile import read32, read64, transpose_block, write32, write64
from hwsim.kernels.numba_cpu.matrix import address_of, share_rows
from hwsim.kernels.numba_cpu.scratch import scratch
from hwsim.kernels.numba_cpu.threads import threads
from hwsim.kernels.numba_cpu.tile_pairs import COLUMNS, ROWS, interleave, tile_pairs, widen_sums, widen_tile
from hwsim.kernels.numba_cpu.whole_numbers import Wholes

_STRIDE = 4 * COLUMNS  # bytes of one pair of k in a panel of the right operand
_BLOCK = 192 << 10  # bytes of panels that stay in the second cache while rows pass
_SPARE = 64  # bytes between panels and rows: they do not meet in the same few cache sets


def multiply(left: Wholes, right: Wholes, k: int, out: np.ndarray, most: int, shift: int, scale: float) -> None:
    """Write left @ right into `out` (contiguous, float32 or float64).

    Args:
        left, right: 16-bit codes.
        most: terms (at least 4) whose sum 32 bits hold; longer sums are made of several, added in `out`.
        shift: upper bits of 32 that are replaced by the sign below them (wrap-around). scale: value of one unit.
    """
    m, n = out.shape
    pairs = -(-k // 2)
    rows = -(-m // ROWS) * ROWS
    row = pairs * 4 // 64 * 64 + 64 + _SPARE
    panel = -(-pairs // COLUMNS) * COLUMNS * _STRIDE + _SPARE  # whole blocks of 16 pairs
    at = address_of(scratch("panels", -(-n // COLUMNS) * panel))
    codes = right.codes
    if right.across:
        _lay_across(address_of(codes), codes.strides[0], n, pairs, at, panel, _STRIDE)
    else:
        _lay_along(address_of(codes), codes.strides[0], k, n, at, panel)
    codes = left.codes
    if left.across:
        turned = scratch("turned", (rows + COLUMNS) * row)
        _turn(address_of(codes), codes.strides[0], k, m, address_of(turned), row)
        a, a_row = address_of(turned), row
    else:
        a, a_row = address_of(codes), codes.strides[0]
    pairs += pairs & 1  # the codes of the left operand end in zeros
    step = pairs if most >= k else most // 4 * 2  # wrapped sums cannot be made of several
    for first in range(0, pairs, step):
        count = min(step, pairs - first)

        def share(begin: int, end: int, first: int = first, count: int = count) -> int:
            return _multiply(
                a + 4 * first, a_row, at + _STRIDE * first, panel, count, address_of(out), out.strides[0],
                8 * out.itemsize, begin, end, m, n, shift, scale, first > 0,
            )  # fmt: skip

        share_rows(share, m, m * n * 2 * count, threads())


@compiled
def _multiply(  # type: ignore[no-untyped-def]
    a, a_row, panels, panel, pairs, out, out_row, bits, begin, end, m, n, shift, scale, add
):  # fmt: skip
    state_array = np.empty(ROWS * COLUMNS, np.int32)
    strip_array = np.empty(COLUMNS, np.float64)
    state, strip = state_array.ctypes.data, strip_array.ctypes.data
    size = bits // 8
    block = max(1, _BLOCK // panel) * COLUMNS
    for start in range(0, n, block):
        for row in range(begin, end, ROWS):
            # the last tile does some rows of the one before again, unless it stands alone
            top = max(min(row, m - ROWS), 0)
            for first in range(start, min(start + block, n), COLUMNS):
                columns = min(COLUMNS, n - first)
                tile_pairs(a + top * a_row, a_row, panels + first // COLUMNS * panel, state, pairs)
                if columns == COLUMNS and top + ROWS <= end and not add:
                    if bits == 32:
                        widen_tile(32, state, out + top * out_row + first * size, out_row, shift, scale)
                    else:
                        widen_tile(64, state, out + top * out_row + first * size, out_row, shift, scale)
                    continue
                for r in range(row - top, min(end - top, ROWS)):
                    source, target = state + 4 * COLUMNS * r, out + (top + r) * out_row + first * size
                    _widen(bits, columns, source, target, strip, shift, scale, add)
    return 0 * (state_array.size + strip_array.size)


@compiled
def _widen(bits, columns, source, target, strip, shift, scale, add):  # type: ignore[no-untyped-def]
    whole = columns == COLUMNS
    if bits == 32:
        if add and whole:
            widen_sums(32, 1, source, target, shift, scale, 1)
        else:
            widen_sums(32, 1, source, target if whole else strip, shift, scale, 0)
    elif add and whole:
        widen_sums(64, 1, source, target, shift, scale, 1)
    else:
        widen_sums(64, 1, source, target if whole else strip, shift, scale, 0)
    if whole:
        return
    for j in range(columns):
        if bits == 32:
            before = read32(target + 4 * j) if add else np.float32(0)
            write32(target + 4 * j, read32(strip + 4 * j) + before)
        else:
            before = read64(target + 8 * j) if add else 0.0
            write64(target + 8 * j, read64(strip + 8 * j) + before)


@compiled
def _lay_along(codes, line, k, n, panels, panel):  # type: ignore[no-untyped-def]
    """Lay codes k x n (filled up in n) out in panels of pairs."""
    for i in range(0, k, 2):
        first = codes + i * line
        second = first + line if i + 1 < k else 0
        for j in range(0, n, COLUMNS):
            there = second + 2 * j if second != 0 else 0
            interleave(first + 2 * j, there, panels + j // COLUMNS * panel + i // 2 * _STRIDE)


@compiled
def _lay_across(codes, line, lines, pairs, target, panel, stride):  # type: ignore[no-untyped-def]
    """Lay codes whose lines run along k (filled up in k) out in panels of pairs: blocks of 16 x 16 are transposed."""
    scratch_array = np.zeros(16 * 16, np.int32)
    scratch = scratch_array.ctypes.data
    for j in range(0, lines, COLUMNS):
        some = min(COLUMNS, lines - j)
        for i in range(0, pairs, COLUMNS):
            source, row = codes + j * line + 4 * i, line
            if some < COLUMNS:
                for r in range(some):
                    for c in range(16):
                        write32(scratch + 64 * r + 4 * c, read32(source + r * line + 4 * c))
                source, row = scratch, 64
            transpose_block(32, source, row, target + j // COLUMNS * panel + i * stride, stride)
    return 0 * scratch_array.size


@compiled
def _turn(codes, line, k, m, target, row):  # type: ignore[no-untyped-def]
    """Turn codes k x m (filled up in m) into rows of pairs, m x k."""
    block_array = np.zeros(16 * 16, np.int32)
    block = block_array.ctypes.data
    for i in range(0, k, 2 * COLUMNS):
        for j in range(0, m, COLUMNS):
            for p in range(COLUMNS):
                place = i + 2 * p
                if place >= k:
                    for c in range(16):
                        write32(block + 64 * p + 4 * c, np.float32(0))
                    continue
                first = codes + place * line + 2 * j
                interleave(first, first + line if place + 1 < k else 0, block + 64 * p)
            transpose_block(32, block, 64, target + j * row + 2 * i, row)
    return 0 * block_array.size
