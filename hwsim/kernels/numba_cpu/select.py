"""Top-k selection: find the lowest kept score bit by bit, then collect.

The codes of non-negative floats grow with their values, so the k-th largest score is the largest code that at least k
scores reach. It is built from the top bit down, one vectorized count a bit: faster than sorting, and free of branches
that depend on the data.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hwsim.kernels.numba_cpu.compiled import compiled
from hwsim.kernels.numba_cpu.rows import gather
from hwsim.kernels.random_bits import M1, M2, key

INFINITY = (np.uint32(0x7F80_0000), np.uint64(0x7FF0_0000_0000_0000))  # as codes of float32 and float64


def select(
    g: np.ndarray, kept: int, over_batch: bool, random: bool, stream: int
) -> tuple[np.ndarray, np.ndarray, bool]:
    """See `hwsim.kernels.reference.select.select`; g is C-contiguous, float32 or float64."""
    rows, n = g.shape
    if over_batch:
        g = _column_sums(g).reshape(1, n)
        rows = 1
    codes: Any
    if random:
        if np.isnan(g).any():
            return np.zeros(0, np.int32), np.zeros(rows + 1, np.int64), True
        codes = np.empty((rows, n), np.uint32)
        for high in range(0, max(g.size, 1), 1 << 32):  # the key changes every 2**32 elements
            keyed = key(stream, 0, high >> 32)
            part = slice(high, min(high + (1 << 32), g.size))
            _random_scores(g.reshape(-1)[part], codes.reshape(-1)[part], keyed & 0xFFFF_FFFF, keyed >> 32)
    else:
        codes = g.view(np.uint32 if g.dtype == np.float32 else np.uint64)
    indices = np.empty(rows * min(kept, n) + 1, np.int32)
    offsets = np.zeros(rows + 1, np.int64)
    wide = codes.dtype == np.uint64
    highest = codes.dtype.type(np.iinfo(codes.dtype).max) if random else INFINITY[wide]
    used = _collect(codes, kept, 64 if wide else 32, highest, indices, offsets)
    return indices[: max(used, 0)], offsets, used < 0


@compiled
def _column_sums(g):  # type: ignore[no-untyped-def]
    total = np.zeros(g.shape[1], np.float64)
    for i in range(g.shape[0]):
        row = g[i]
        for j in range(row.shape[0]):
            total[j] += abs(np.float64(row[j]))
    return total


@compiled
def _random_scores(g, codes, low, high):  # type: ignore[no-untyped-def]
    for i in range(g.shape[0]):
        x = np.uint32(np.uint32(i) ^ np.uint32(low))
        x = np.uint32(np.uint32(x ^ np.uint32(x >> np.uint32(16))) * np.uint32(M1))
        x = np.uint32(np.uint32(x ^ np.uint32(x >> np.uint32(15))) ^ np.uint32(high))
        x = np.uint32(x * np.uint32(M2))
        x = np.uint32(x ^ np.uint32(x >> np.uint32(15)))
        codes[i] = np.uint32(0) if g[i] == 0 else np.uint32(np.uint32(1) + np.uint32(x >> np.uint32(1)))


@compiled
def _lowest_kept(row, kept, bits, scores):  # type: ignore[no-untyped-def]
    """Write the codes without sign bit to `scores`; return the lowest kept, how many of how many such, the largest.

    A lowest of 0 stands for a row with fewer codes above 0 than are kept, and is not kept itself.
    """
    one = row.dtype.type(1)
    mask = row.dtype.type((one << row.dtype.type(bits - 1)) - one)
    largest = row.dtype.type(0)
    for j in range(row.size):
        scores[j] = row[j] & mask
        largest = max(largest, scores[j])
    lowest = row.dtype.type(0)
    for place in range(bits - 2, -1, -1):
        trial = row.dtype.type(lowest | (one << row.dtype.type(place)))
        if trial > largest:
            continue
        reached = np.int32(0)
        for j in range(row.size):
            reached = np.int32(reached + np.int32(scores[j] >= trial))
        if reached >= kept:
            lowest = trial
            if reached == kept:
                break
    above, equal = np.int32(0), np.int32(0)
    for j in range(row.size):
        above = np.int32(above + np.int32(scores[j] > lowest))
        equal = np.int32(equal + np.int32(scores[j] == lowest))
    ties = kept - above if lowest > 0 else 0
    return lowest, ties, equal, largest


@compiled
def _collect(codes, kept, bits, highest, indices, offsets):  # type: ignore[no-untyped-def]
    """Write the positions of the `kept` largest codes of each row (sign bit ignored); return how many in all.

    -1 if a code is above `highest`: a NaN. `indices` has room for one more than are kept.
    """
    used = 0
    n = codes.shape[1]
    scores = np.empty(n, codes.dtype)
    for r in range(codes.shape[0]):
        lowest, ties, _, largest = _lowest_kept(codes[r], kept, bits, scores)
        if largest > highest:
            return -1
        if kept < n // 8:  # branches on few are foreseen
            for j in range(n):
                if scores[j] > lowest or (ties > 0 and scores[j] == lowest):
                    ties -= scores[j] == lowest
                    indices[used] = j
                    used += 1
        else:  # no branch: the next place is written in any case, and taken if it counts
            for j in range(n):
                tied = (scores[j] == lowest) & (ties > 0)
                indices[used] = j
                used += (scores[j] > lowest) | tied
                ties -= tied
        offsets[r + 1] = used
    return used


@compiled
def masked_by_example(g, kept):  # type: ignore[no-untyped-def]
    """Return g (float32) with 0 where its rows keep nothing by magnitude, and how much they keep; -1 for NaN."""
    out = np.empty_like(g)
    codes = g.view(np.uint32)
    n = g.shape[1]
    scores = np.empty(n, np.uint32)
    zero, used = np.float32(0), 0
    for r in range(g.shape[0]):
        row, target = g[r], out[r]
        lowest, ties, equal, largest = _lowest_kept(codes[r], kept, 32, scores)
        if largest > INFINITY[0]:
            return out, -1
        used += kept if lowest > 0 else n - equal
        if lowest == 0:
            for j in range(n):
                target[j] = row[j] if scores[j] > lowest else zero
        elif ties == equal:
            for j in range(n):
                target[j] = row[j] if scores[j] >= lowest else zero
        else:
            for j in range(n):
                tied = (scores[j] == lowest) & (ties > 0)
                target[j] = row[j] if (scores[j] > lowest) | tied else zero
                ties -= tied
    return out, used


@compiled
def kept_by_example(g, kept):  # type: ignore[no-untyped-def]
    """Return (indices, offsets, whether there is a NaN) of what the rows of g (float32) keep by magnitude."""
    indices = np.empty(g.shape[0] * kept + 1, np.int32)
    offsets = np.zeros(g.shape[0] + 1, np.int64)
    used = _collect(g.view(np.uint32), kept, 32, INFINITY[0], indices, offsets)
    return indices[: max(used, 0)], offsets, used < 0


@compiled
def largest_scores(scores, kept):  # type: ignore[no-untyped-def]
    """Return (positions, whether there is a NaN) of the `kept` largest scores (float64, not negative)."""
    indices = np.empty(kept + 1, np.int32)
    offsets = np.zeros(2, np.int64)
    used = _collect(scores.view(np.uint64).reshape((1, len(scores))), kept, 64, INFINITY[1], indices, offsets)
    return indices[: max(used, 0)], used < 0


@compiled
def gathered_over_batch(g, w, kept):  # type: ignore[no-untyped-def]
    """Return (columns, g[:, columns], w[columns], whether there is a NaN) of the columns of g (float32) that are kept.

    No rows of w if it has none.
    """
    columns, has_nan = largest_scores(_column_sums(g), kept)
    compact, weights = gather(g, w, columns)
    return columns, compact, weights, has_nan
