"""The loops around the tile: panels of b, rows of a, chunks of k, the start value and the result.

One compiled function per recipe, made on first use and cached on disk. It releases the GIL, so that several Python
threads may each take a share of the rows: no second thread pool stands beside torch's.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
from numba import types

from hwsim.kernels.numba_cpu.compiled import compiled
from hwsim.kernels.numba_cpu.matmul_tile import (
    Recipe,
    copy_vectors,
    join,
    read32,
    read64,
    read_whole,
    store_vectors,
    tile,
    transpose_block,
    write32,
    write64,
)
from hwsim.kernels.numba_cpu.revision import REVISION
from hwsim.kernels.numba_cpu.vector_ir import SHORT_VECTORS

NARROW = 16  # columns of the tile for a narrow rest
PACK_ROWS = 24  # fewer rows than this do not repay copying a b whose columns are contiguous already

set_processor_mode = types.ExternalFunction("fesetround", types.int32(types.int32))


@cache
def kernel(recipe: Recipe, outer: Recipe | None, store_bits: int) -> Callable[..., int]:
    """Return the compiled GEMM of a recipe; results are stored as float32 or float64 (`store_bits`).

    With `outer`, chunks of k are summed from 0 by `recipe` and join an outer float64 sum by `outer`.
    The function takes addresses and strides in bytes::

        f(a, a_row, a_k, b, b_k, b_n, start, start_row, start_n, out, out_row, first_row, last_row, n, k, chunk,
          mode, outer_mode, blocks, outer_block, keys, outer_keys, index, k_table, n_table, counts)

    With `k_table` and `n_table` (addresses of i64 byte offsets, 0 for none), b's element (k, n) stands at
    b + k_table[k] + n_table[n] instead: a convolution's patches, which are never written out as a whole.
    `start` 0 means no start value. `keys` is the address of one u64 for each k and draw, `outer_keys` of one for each
    chunk, `index` of one u32 for each row: the row-major output index of its first column. Modes are those of
    `fesetround`. `counts` is the address of three float64 that a counting recipe adds to. It returns how many results
    are NaN.
    """
    return _build(
        str(recipe), str(outer) if outer else "", recipe.bits, store_bits, recipe.sums_kept, recipe.planes,
        len(recipe.draws), *tile_shape(recipe), REVISION,
    )


def tile_shape(recipe: Recipe) -> tuple[int, int]:
    """Return rows and vectors of a full tile: as many sums as registers hold beside what a step needs.

    Vectors are 64 bytes, one register of 32 with AVX-512, two of 16 elsewhere on x86.
    """
    if recipe.order == "pairwise":
        return 1, recipe.bits // 32  # a stack of subtrees for each vector; 16 columns, which is what the loops count in
    if not SHORT_VECTORS:
        return 4, 4
    if recipe.bits == 64:
        return 2, 2  # 16 columns, which is what the loops count in
    if recipe.states > 1:
        return 3, 1
    return (6, 1) if (recipe.sums, recipe.rule, recipe.product) == ("near", "split", "none") else (5, 1)


def _build(
    text: str, outer: str, bits: int, store_bits: int, sums: int, planes: int, draws: int, most: int, vectors: int,
    revision: str,
) -> Callable[..., int]:
    size = bits // 8
    lanes = 512 // bits
    wide = vectors * lanes
    states, counting = sums + planes, planes > 0
    slim = NARROW // lanes
    chunked = outer != ""

    @compiled
    def multiply(  # type: ignore[no-untyped-def]
        a, a_row, a_k, b, b_k, b_n, start, start_row, start_n, out, out_row, first_row, last_row, n, k, chunk,
        mode, outer_mode, blocks, outer_block, keys, outer_keys, index, k_table, n_table, counts,
    ):  # fmt: skip
        _ = revision
        nans = 0
        state_array = np.empty(states * most * wide * size + 64, np.uint8)
        state = (state_array.ctypes.data + 63) // 64 * 64
        total_array = np.empty((most * wide * 8 if chunked else 0) + 64, np.uint8)
        total = (total_array.ctypes.data + 63) // 64 * 64
        panel_array = np.empty(k * wide * size + 64, np.uint8)
        packed = (panel_array.ctypes.data + 63) // 64 * 64
        places = np.empty(most * (1 + wide // 16), np.uint32)
        spots = places.ctypes.data
        group_places = spots + 4 * most
        if mode != 0:
            set_processor_mode(np.int32(mode))
        for first in range(0, n, wide):
            columns = min(wide, n - first)
            width = NARROW if columns <= NARROW else wide
            panel = b + first * b_n
            panel_k = b_k
            if k_table != 0:
                _gather(bits, b, k_table, n_table + 8 * first, packed, columns, width, k)
                panel, panel_k = packed, width * size
            elif b_n != size or columns != width or last_row - first_row >= PACK_ROWS:
                _pack(bits, panel, b_k, b_n, packed, columns, width, k)
                panel, panel_k = packed, width * size
            row = first_row
            while row < last_row:
                rows = 1
                if last_row - first_row >= most and not counting:
                    rows = most  # the last tile may do some rows again: cheaper than a tile of few rows
                    row = min(row, last_row - most)
                elif row + most <= last_row:
                    rows = most
                left = a + row * a_row
                for r in range(rows):
                    places[r] = np.uint32(_read_index(index, row + r) + first)
                    for g in range(width // 16):
                        places[most + r * (width // 16) + g] = places[r] + np.uint32(16 * g)
                if chunked:
                    _load(64, start, start_row, start_n, total, row, first, rows, columns, width)
                else:
                    _load(bits, start, start_row, start_n, state, row, first, rows, columns, width)
                    _clear(bits, state, rows * width, states * rows * width)
                for begin in range(0, k, chunk):
                    length = min(chunk, k - begin)
                    if chunked:
                        _clear(bits, state, 0, (states if begin == 0 else sums) * rows * width)
                    at, bt, kt = left + begin * a_k, panel + begin * panel_k, keys + 8 * draws * begin
                    if width == NARROW:
                        if rows == most:
                            tile(text, most, slim, at, a_row, a_k, bt, panel_k, state, length, blocks, kt, spots)
                        else:
                            tile(text, 1, slim, at, a_row, a_k, bt, panel_k, state, length, blocks, kt, spots)
                    elif rows == most:
                        tile(text, most, vectors, at, a_row, a_k, bt, panel_k, state, length, blocks, kt, spots)
                    else:
                        tile(text, 1, vectors, at, a_row, a_k, bt, panel_k, state, length, blocks, kt, spots)
                    if chunked:
                        groups = rows * width // 16
                        outer_key = outer_keys + 8 * (begin // chunk)
                        if outer_mode != mode:
                            set_processor_mode(np.int32(outer_mode))
                        join(outer, bits, groups, total, state, outer_block, outer_key, group_places)
                        if outer_mode != mode:
                            set_processor_mode(np.int32(mode))
                if counting and k > 0:
                    _count(bits, state, sums, planes, counts, rows, columns, width)
                if chunked:
                    nans += _store(64, store_bits, total, out, out_row, row, first, rows, columns, width)
                else:
                    nans += _store(bits, store_bits, state, out, out_row, row, first, rows, columns, width)
                row += rows
        if mode != 0:
            set_processor_mode(np.int32(0))
        # the arrays must live until here: above, only their addresses are used
        return nans + 0 * (state_array.size + total_array.size + panel_array.size + places.size)

    return multiply


@compiled
def _read_index(index, row):  # type: ignore[no-untyped-def]
    return np.int64(0) if index == 0 else np.int64(_bits_of(read32(index + 4 * row)))


@compiled
def _bits_of(x):  # type: ignore[no-untyped-def]
    return np.float32(x).view(np.uint32)


@compiled
def _read(bits, address):  # type: ignore[no-untyped-def]
    return np.float64(read32(address)) if bits == 32 else read64(address)


@compiled
def _write(bits, address, value):  # type: ignore[no-untyped-def]
    if bits == 32:
        write32(address, np.float32(value))
    else:
        write64(address, value)


@compiled
def _pack(bits, b, b_k, b_n, packed, columns, width, k):  # type: ignore[no-untyped-def]
    """Copy a panel of b so that each k has `width` consecutive columns, zeros beyond the last one."""
    size = bits // 8
    lanes = 512 // bits
    if b_n == size and columns == width:
        for i in range(k):
            for j in range(0, width * size, 64):
                copy_vectors(bits, 1, b + i * b_k + j, packed + i * width * size + j)
        return
    if b_k == size and columns == width:
        for j in range(0, width, lanes):
            for i in range(0, k - lanes + 1, lanes):
                transpose_block(bits, b + j * b_n + i * b_k, b_n, packed + (i * width + j) * size, width * size)
        done = k // lanes * lanes
    else:
        done = 0
    for i in range(done, k):
        for j in range(columns):
            _write(bits, packed + (i * width + j) * size, _read(bits, b + i * b_k + j * b_n))
        for j in range(columns, width):
            _write(bits, packed + (i * width + j) * size, 0.0)


@compiled
def _gather(bits, b, k_table, n_table, packed, columns, width, k):  # type: ignore[no-untyped-def]
    """Copy a panel of b whose element (k, n) stands at b + k_table[k] + n_table[n]; runs of columns go as vectors."""
    size = bits // 8
    lanes = 512 // bits
    for group in range(0, width, lanes):
        count = min(max(columns - group, 0), lanes)
        places = n_table + 8 * group
        first = read_whole(places) if count > 0 else np.int64(0)
        together = count == lanes
        for j in range(1, count):
            together = together and read_whole(places + 8 * j) == first + j * size
        for i in range(k):
            source = b + read_whole(k_table + 8 * i)
            target = packed + (i * width + group) * size
            if together:
                copy_vectors(bits, 1, source + first, target)
                continue
            for j in range(count):
                _write(bits, target + j * size, _read(bits, source + read_whole(places + 8 * j)))
            for j in range(count, lanes):
                _write(bits, target + j * size, 0.0)


@compiled
def _clear(bits, state, begin, end):  # type: ignore[no-untyped-def]
    for i in range(begin, end):
        _write(bits, state + i * (bits // 8), 0.0)


@compiled
def _count(bits, state, sums, planes, counts, rows, columns, width):  # type: ignore[no-untyped-def]
    """Add a tile's counts (its last planes) to the totals."""
    for which in range(planes):
        plane = state + (sums + which) * rows * width * (bits // 8)
        total = read64(counts + 8 * which)
        for r in range(rows):
            for j in range(columns):
                total += _read(bits, plane + (r * width + j) * (bits // 8))
        write64(counts + 8 * which, total)


@compiled
def _load(bits, start, start_row, start_n, state, row, first, rows, columns, width):  # type: ignore[no-untyped-def]
    """Put the start values (float64) of a tile into its state; 0 where there are none."""
    size = bits // 8
    if start == 0:
        _clear(bits, state, 0, rows * width)
        return
    for r in range(rows):
        for j in range(columns):
            value = read64(start + (row + r) * start_row + (first + j) * start_n)
            _write(bits, state + (r * width + j) * size, value)
        for j in range(columns, width):
            _write(bits, state + (r * width + j) * size, 0.0)


@compiled
def _store_sixteen(bits, store_bits, source, target):  # type: ignore[no-untyped-def]
    if bits == 32:
        if store_bits == 32:
            return store_vectors(32, 32, 1, source, target)
        return store_vectors(32, 64, 1, source, target)
    if store_bits == 32:
        return store_vectors(64, 32, 1, source, target)
    return store_vectors(64, 64, 1, source, target)


@compiled
def _store(bits, store_bits, state, out, out_row, row, first, rows, columns, width):  # type: ignore[no-untyped-def]
    """Write a tile's results, every NaN as the canonical one; return how many there are."""
    nans = 0
    size, store_size = bits // 8, store_bits // 8
    for r in range(rows):
        line, target = state + r * width * size, out + (row + r) * out_row + first * store_size
        whole = columns // 16
        for group in range(whole):
            nans += _store_sixteen(bits, store_bits, line + 16 * size * group, target + 16 * store_size * group)
        for j in range(16 * whole, columns):
            value = _read(bits, line + j * size)
            if np.isnan(value):
                value = np.nan
                nans += 1
            _write(store_bits, target + j * store_size, value)
    return nans
