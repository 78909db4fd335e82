"""The backward products of a linear layer from the kept elements alone, float32 in native order (`order: native`).

Ranked by example, each row of a result is a sum over a few rows of the other operand, four at a time. Ranked over the
batch, what was kept is gathered for a BLAS and its result scattered. A weight gradient lives in a full-size matrix of
which a step writes some rows: `dirty` says which rows hold something from before, and only those are cleared.

Sums are contracted to fused multiply-adds; nothing here is promised bit for bit.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from hwsim.kernels.numba_cpu.compiled import compiled
from hwsim.kernels.numba_cpu.intrinsics import load, store, wide_vectors

NEAR = 1 << 20  # bytes of a weight matrix up to which its rows are read at random; beyond, one after the other, once
BLOCK = 2048  # columns of a result that are summed at a time, so that they stay in cache

contracted = partial(compiled, contract=True)


@contracted
def _sum_rows(values, at, begin, end, rows, width, first, n, out, to):  # type: ignore[no-untyped-def]
    """out[to + i] = sum of values[e] * rows[at[e] * width + first + i] over e in begin..end (not empty), for i below n.

    The last four are filled up with 0 times a row that counts anyway. Flat arrays: slices would take longer than sums.
    """
    zero = np.float32(0)
    for e in range(begin, end, 4):
        one, two, three = e + 1 < end, e + 2 < end, e + 3 < end
        r0 = np.int64(at[e]) * width + first
        r1 = np.int64(at[e + 1]) * width + first if one else r0
        r2 = np.int64(at[e + 2]) * width + first if two else r0
        r3 = np.int64(at[e + 3]) * width + first if three else r0
        v0 = values[e]
        v1 = values[e + 1] if one else zero
        v2 = values[e + 2] if two else zero
        v3 = values[e + 3] if three else zero
        if e == begin:
            for i in range(n):
                pair = v0 * load(rows, r0 + i) + v1 * load(rows, r1 + i)
                store(out, to + i, pair + v2 * load(rows, r2 + i) + v3 * load(rows, r3 + i))
        else:
            for i in range(n):
                pair = load(out, to + i) + v0 * load(rows, r0 + i) + v1 * load(rows, r1 + i)
                store(out, to + i, pair + v2 * load(rows, r2 + i) + v3 * load(rows, r3 + i))


@compiled
def _by_column(g, indices, offsets):  # type: ignore[no-untyped-def]
    """Return the kept elements column after column: (starts, rows, values)."""
    starts = np.zeros(g.shape[1] + 1, np.int64)
    for e in range(len(indices)):
        starts[indices[e] + 1] += 1
    for j in range(g.shape[1]):
        starts[j + 1] += starts[j]
    place = starts[:-1].copy()
    rows = np.empty(len(indices), np.int32)
    values = np.empty(len(indices), np.float32)
    for r in range(g.shape[0]):
        for e in range(offsets[r], offsets[r + 1]):
            j = indices[e]
            rows[place[j]] = r
            values[place[j]] = g[r, j]
            place[j] += 1
    return starts, rows, values


@contracted
def grad_weight_by_example(g, x, indices, offsets, out, dirty):  # type: ignore[no-untyped-def]
    """out[j] = sum of g[r, j] * x[r] over the rows r that kept column j; 0 where none did."""
    wide_vectors()
    starts, rows, values = _by_column(g, indices, offsets)
    width, source, target = x.shape[1], x.reshape(-1), out.reshape(-1)
    for j in range(g.shape[1]):
        begin, end = starts[j], starts[j + 1]
        if begin < end:
            for first in range(0, width, BLOCK):
                n = min(BLOCK, width - first)
                _sum_rows(values, rows, begin, end, source, width, first, n, target, j * width + first)
        elif dirty[j]:
            out[j, :] = np.float32(0)
        dirty[j] = begin < end


@contracted
def grad_input_by_example(g, w, indices, offsets, out):  # type: ignore[no-untyped-def]
    """out[r] = sum of g[r, j] * w[j] over the columns j that row r kept."""
    wide_vectors()
    width, source, target = w.shape[1], w.reshape(-1), out.reshape(-1)
    if w.size * 4 <= NEAR:
        values = np.empty(g.shape[1], np.float32)
        for r in range(g.shape[0]):
            begin, count = offsets[r], offsets[r + 1] - offsets[r]
            for e in range(count):
                values[e] = g[r, indices[begin + e]]
            if count == 0:
                out[r, :] = np.float32(0)
            else:
                _sum_rows(values, indices[begin:], 0, count, source, width, 0, width, target, r * width)
        return
    starts, rows, values = _by_column(g, indices, offsets)
    out[:, :] = np.float32(0)
    for first in range(0, width, BLOCK):
        n = min(BLOCK, width - first)
        for j in range(g.shape[1]):
            row = j * width + first
            for e in range(starts[j], starts[j + 1]):
                to, v = np.int64(rows[e]) * width + first, values[e]
                for i in range(n):
                    store(target, to + i, load(target, to + i) + v * load(source, row + i))


@compiled
def gather(g, w, columns):  # type: ignore[no-untyped-def]
    """Return (g[:, columns], w[columns]); no rows of w if it has none."""
    kept = np.empty((g.shape[0], len(columns)), np.float32)
    for r in range(g.shape[0]):
        for c in range(len(columns)):
            kept[r, c] = g[r, columns[c]]
    weights = np.empty((len(columns) if len(w) else 0, w.shape[1]), np.float32)
    for c in range(len(weights)):
        weights[c, :] = w[columns[c]]
    return kept, weights


@compiled
def spread(compact, columns, extent):  # type: ignore[no-untyped-def]
    """Return a matrix of `extent` columns: the compact ones at their places, 0 elsewhere."""
    out = np.zeros((compact.shape[0], extent), np.float32)
    for r in range(compact.shape[0]):
        for c in range(len(columns)):
            out[r, columns[c]] = compact[r, c]
    return out


@compiled
def scatter(compact, columns, out, dirty):  # type: ignore[no-untyped-def]
    """Write the compact rows to their places in out; what else is dirty becomes 0."""
    for c in range(len(columns)):
        out[columns[c], :] = compact[c]
        dirty[columns[c]] = False
    for j in range(len(dirty)):
        if dirty[j]:
            out[j, :] = np.float32(0)
            dirty[j] = False
    for c in range(len(columns)):
        dirty[columns[c]] = True


@compiled
def keep_only(g, indices, offsets):  # type: ignore[no-untyped-def]
    """Return g with 0 in place of what no row kept."""
    out = np.zeros_like(g)
    for r in range(g.shape[0]):
        for e in range(offsets[r], offsets[r + 1]):
            out[r, indices[e]] = g[r, indices[e]]
    return out
