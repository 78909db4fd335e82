"""The loops around the tile of 16-bit lanes: operands converted once, rows, columns, chunks, start and result."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np

from hwsim.kernels.numba_cpu.compiled import compiled
from hwsim.kernels.numba_cpu.matmul_driver import _gather, _pack
from hwsim.kernels.numba_cpu.matmul_tile import copy_vectors, read32, read64, transpose_block, write32
from hwsim.kernels.numba_cpu.matrix import Matrix, Patches, address_of, share_rows
from hwsim.kernels.numba_cpu.revision import REVISION
from hwsim.kernels.numba_cpu.scratch import scratch
from hwsim.kernels.numba_cpu.threads import threads
from hwsim.kernels.numba_cpu.tile16 import (
    KIND_FLOAT32,
    KIND_HALF,
    KIND_WHOLE,
    LANES,
    Recipe16,
    join16,
    narrow32,
    part,
    tile16,
    widen32,
    write16,
)
from hwsim.kernels.numba_cpu.vector_ir import SHORT_VECTORS
from hwsim.kernels.numba_cpu.whole_numbers import Wholes

WIDE = 64  # columns of a full tile: two vectors
SLIM = 32
STRIP = 64  # rows converted at a time, so that what lies between stays in the nearest cache
FEW_ROWS = 4  # rows of the tile for what the full one leaves


@cache
def kernel(recipe: Recipe16) -> Callable[..., int]:
    """Return the compiled GEMM of a recipe, float32 in and out.

    The function takes addresses, and strides in bytes::

        f(left, left_row, b, b_k, b_n, start, start_row, start_n, out, out_row, first_row, last_row, n, k, chunk,
          low, high, scale, start_scale, offset, shift, step, k_table, n_table, codes)

    left: the left operand from `narrowed`, consecutive in k. b: float32, times `scale` an integer of 16 bits; or
    (`codes` 1 or 2) lines of 16-bit integers along n or along k, `b_k` bytes apart and filled up (`whole_numbers`).
    start: float64 (0: none), `* start_scale - offset` is its integer. A result is ((sum + offset) >> shift) * step.
    k_table, n_table: as in `matmul_driver.kernel`.
    """
    rows, wide = (4 if recipe.order == "kahan" else 12), WIDE
    if SHORT_VECTORS:  # 16 registers: 12 sums, two vectors of b, one of a, one product
        rows, wide = 6, SLIM
    return _build(str(recipe), recipe.kind, recipe.outer, rows, wide, recipe.states, REVISION)


def _build(text: str, kind: int, outer: str, most: int, wide: int, states: int, revision: str) -> Callable[..., int]:
    chunked = outer != "none"
    total_kind = KIND_FLOAT32 if outer == "float32" else kind
    vectors = wide // LANES
    total_size = 4 if outer == "float32" else 2

    @compiled
    def multiply(  # type: ignore[no-untyped-def]
        left, left_row, b, b_k, b_n, start, start_row, start_n, out, out_row, first_row, last_row, n, k, chunk,
        low, high, scale, start_scale, offset, shift, step, k_table, n_table,
        codes,
    ):  # fmt: skip
        _ = revision
        state_array = np.empty(states * most * wide * 2 + 64, np.uint8)
        state = (state_array.ctypes.data + 63) // 64 * 64
        total_array = np.empty((most * wide * 4 if chunked else 0) + 64, np.uint8)
        total = (total_array.ctypes.data + 63) // 64 * 64
        panel_array = np.empty(k * wide * 2 + 64, np.uint8)
        panel = (panel_array.ctypes.data + 63) // 64 * 64
        strip_array = np.empty(STRIP * wide * 4 + 64, np.uint8)
        strip = (strip_array.ctypes.data + 63) // 64 * 64
        mask = -(1 << shift)
        for first in range(0, n, wide):
            columns = min(wide, n - first)
            width = SLIM if columns <= SLIM else wide
            if k_table != 0:
                for begin in range(0, k, STRIP):
                    some = min(STRIP, k - begin)
                    _gather(32, b, k_table + 8 * begin, n_table + 8 * first, strip, columns, width, some)
                    _narrow_strip(kind, strip, width * 4, width, some, panel + begin * width * 2, width * 2, scale)
            elif codes == 1:
                for i in range(k):
                    for j in range(0, width * 2, 64):
                        copy_vectors(32, 1, b + i * b_k + first * 2 + j, panel + i * width * 2 + j)
            elif codes == 2:
                _turn_codes(b + first * b_k, b_k, k, columns, panel, width, strip)
            else:
                _narrow(kind, b + first * b_n, b_k, b_n, k, columns, width, panel, width * 2, strip, scale)
            row = first_row
            while row < last_row:
                rows = 1
                if row + most <= last_row:
                    rows = most
                elif last_row - first_row >= FEW_ROWS:
                    rows = FEW_ROWS  # the last tile may do some rows again: cheaper than a tile of few rows
                    row = min(row, last_row - FEW_ROWS)
                if chunked:
                    _load(total_kind, start, start_row, start_n, total, row, first, rows, columns, width,
                          start_scale, offset)  # fmt: skip
                else:
                    _load(kind, start, start_row, start_n, state, row, first, rows, columns, width,
                          start_scale, offset)  # fmt: skip
                    _clear(state + rows * width * 2, (states - 1) * rows * width * 2)
                for begin in range(0, k, chunk):
                    length = min(chunk, k - begin)
                    if chunked:
                        _clear(state, states * rows * width * 2)
                    at, bt = left + row * left_row + begin * 2, panel + begin * width * 2
                    if width == wide:
                        if rows == most:
                            tile16(text, most, vectors, at, left_row, bt, wide * 2, state, length, low, high)
                        elif rows == FEW_ROWS:
                            tile16(text, FEW_ROWS, vectors, at, left_row, bt, wide * 2, state, length, low, high)
                        else:
                            tile16(text, 1, vectors, at, left_row, bt, wide * 2, state, length, low, high)
                    elif rows == most:
                        tile16(text, most, 1, at, left_row, bt, SLIM * 2, state, length, low, high)
                    elif rows == FEW_ROWS:
                        tile16(text, FEW_ROWS, 1, at, left_row, bt, SLIM * 2, state, length, low, high)
                    else:
                        tile16(text, 1, 1, at, left_row, bt, SLIM * 2, state, length, low, high)
                    if chunked:
                        join16(text, rows * width // 32, total, state, mask, low, high)
                for r in range(rows):
                    target = out + (row + r) * out_row + first * 4
                    if chunked:
                        _widen(total_kind, total + r * width * total_size, total_size, target, columns, strip,
                               offset, shift, step)  # fmt: skip
                    else:
                        _widen(kind, state + r * width * 2, 2, target, columns, strip, offset, shift, step)
                row += rows
        # the arrays must live until here: above, only their addresses are used
        return 0 * (state_array.size + total_array.size + panel_array.size + strip_array.size)

    return multiply


@cache
def narrowed(kind: int) -> Callable[..., int]:
    """Return the compiled conversion of a left operand to 16 bits.

    f(a, a_row, a_k, rows, k, target, target_row, scale): each row of `target` holds k numbers, filled up to 32.
    """
    return _build_narrowed(kind, REVISION)


def _build_narrowed(kind: int, revision: str) -> Callable[..., int]:
    @compiled
    def narrow(a, a_row, a_k, rows, k, target, target_row, scale):  # type: ignore[no-untyped-def]
        _ = revision
        strip = np.empty(STRIP * WIDE * 4, np.uint8)
        for first in range(0, k, WIDE):
            columns = min(WIDE, k - first)
            width = SLIM if columns <= SLIM else WIDE
            at = a + first * a_k
            _narrow(
                kind, at, a_row, a_k, rows, columns, width, target + 2 * first, target_row, strip.ctypes.data, scale
            )
        return 0 * strip.size

    return narrow


@compiled
def _narrow(kind, source, row, column, rows, columns, width, target, target_row, strip, scale):  # type: ignore[no-untyped-def]
    """Convert rows x columns float32 of any strides to rows of 16 bits, filled up with zeros to `width`."""
    if column == 4 and columns == width:
        _narrow_strip(kind, source, row, width, rows, target, target_row, scale)
        return
    for begin in range(0, rows, STRIP):
        some = min(STRIP, rows - begin)
        _pack(32, source + begin * row, row, column, strip, columns, width, some)
        _narrow_strip(kind, strip, width * 4, width, some, target + begin * target_row, target_row, scale)


@compiled
def _narrow_strip(kind, source, row, width, rows, target, target_row, scale):  # type: ignore[no-untyped-def]
    for i in range(rows):
        for j in range(0, width, 32):
            if kind == KIND_HALF:
                narrow32(KIND_HALF, source + i * row + 4 * j, target + i * target_row + 2 * j, scale)
            else:
                narrow32(KIND_WHOLE, source + i * row + 4 * j, target + i * target_row + 2 * j, scale)


@compiled
def _turn_codes(source, line, k, columns, panel, width, strip):  # type: ignore[no-untyped-def]
    """Turn `columns` lines of k 16-bit integers into k rows of `width`: blocks of 16 lines x 16 pairs."""
    block, spare = strip, strip + 16 * 64
    for j in range(0, columns, 16):
        for i in range(0, k, 32):
            at, row = source + j * line + 2 * i, line
            if columns - j < 16:
                at, row = spare + 64, 64
                for r in range(columns - j):
                    copy_vectors(32, 1, source + (j + r) * line + 2 * i, at + 64 * r)
            transpose_block(32, at, row, block, 64)
            for p in range(min(16, (k - i + 1) // 2)):
                target = panel + (i + 2 * p) * width * 2 + j * 2
                part(block + 64 * p, target, target + width * 2 if i + 2 * p + 1 < k else spare)


@compiled
def _clear(address, size):  # type: ignore[no-untyped-def]
    for i in range(0, size, 4):
        write32(address + i, np.float32(0))


@compiled
def _load(kind, start, start_row, start_n, state, row, first, rows, columns, width, scale, offset):  # type: ignore[no-untyped-def]
    """Put the start values of a tile into its state; 0 where there are none."""
    size = 4 if kind == KIND_FLOAT32 else 2
    if start == 0 and offset == 0:
        _clear(state, rows * width * size)
        return
    for r in range(rows):
        for j in range(width):
            value = 0.0
            if j < columns and start != 0:
                value = read64(start + (row + r) * start_row + (first + j) * start_n)
            place = state + (r * width + j) * size
            if kind == KIND_FLOAT32:
                write32(place, np.float32(value))
            elif kind == KIND_HALF:
                write16(KIND_HALF, place, value)
            else:
                write16(KIND_WHOLE, place, value * scale - offset)


@compiled
def _widen(kind, source, size, target, columns, strip, offset, shift, step):  # type: ignore[no-untyped-def]
    """Write one row of results as float32."""
    whole = columns // 32 * 32
    for j in range(0, columns, 32):
        place = target + 4 * j if j < whole else strip
        if kind == KIND_HALF:
            widen32(KIND_HALF, source + j * size, place, offset, shift, step)
        elif kind == KIND_WHOLE:
            widen32(KIND_WHOLE, source + j * size, place, offset, shift, step)
        else:
            widen32(KIND_FLOAT32, source + j * size, place, offset, shift, step)
    for j in range(whole, columns):
        write32(target + 4 * j, read32(strip + 4 * (j - whole)))


class Numbers(NamedTuple):
    """How the values of an integer kernel stand for numbers (see `kernel`); halves need none of it."""

    left_scale: float = 1.0
    scale: float = 1.0
    start_scale: float = 1.0
    offset: int = 0
    shift: int = 0
    step: float = 1.0


def run(
    recipe: Recipe16, left: Matrix, right: Matrix | Patches, out: np.ndarray, start: np.ndarray | None, chunk: int,
    limits: tuple[int, int], numbers: Numbers, wholes: tuple[Wholes, Wholes] | None = None,
) -> None:  # fmt: skip
    """Run one GEMM of float32 operands into `out` (float32), its rows shared among threads where that pays.

    Args:
        wholes: the operands as integers of 16 bits, times what `numbers.left_scale` says; used up.
    """
    k_places = n_places = None
    if isinstance(right, Patches):
        k_places, n_places = right.k_places * 4, right.n_places * 4
        right = Matrix(address_of(right.values), len(k_places), len(n_places), 0, 0, 32, right.values)
    m, k, n = left.rows, left.columns, right.columns
    b, b_k, kind_of_codes = right.address, right.row, 0
    pitch = (k + SLIM - 1) // SLIM * SLIM * 2 + 64  # one line more: rows do not meet in the same few cache sets
    if wholes is None or wholes[0].across:
        codes = scratch("codes", m * pitch)
        narrowed(recipe.kind)(left.address, left.row, left.column, m, k, address_of(codes), pitch, numbers.left_scale)
    else:
        codes, pitch = wholes[0].codes, wholes[0].codes.strides[0]
        up = math.frexp(numbers.left_scale)[1] - 1 + wholes[0].lsb
        if up:
            np.left_shift(codes, up, out=codes)
    codes_at = address_of(codes)
    if wholes is not None:
        other = wholes[1]
        b, b_k, kind_of_codes = address_of(other.codes), other.codes.strides[0], 2 if other.across else 1
    function = kernel(recipe)
    first = (0, 0, 0) if start is None else (address_of(start), *start.strides)
    tables = (0, 0) if k_places is None or n_places is None else (address_of(k_places), address_of(n_places))
    target = address_of(out)

    def share(begin: int, end: int) -> int:
        return function(
            codes_at, pitch, b, b_k, right.column, *first, target, out.strides[0], begin, end, n, k,
            chunk, *limits, *numbers[1:], *tables, kind_of_codes,
        )  # fmt: skip

    share_rows(share, m, m * n * k, threads())
