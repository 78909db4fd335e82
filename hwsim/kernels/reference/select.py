"""The definition of top-k selection: sort by (score descending, index ascending), drop zeros, keep the first."""

from __future__ import annotations

import numpy as np

from hwsim.kernels.random_bits import word


def select(
    g: np.ndarray, kept: int, over_batch: bool, random: bool, stream: int
) -> tuple[np.ndarray, np.ndarray, bool]:
    """Return kept positions (int32, ascending in each row), row offsets (int64) and whether g (rows x n) holds a NaN.

    Over the batch there is one row of positions.
    """
    rows, n = g.shape
    if over_batch:
        scores = [[_column_score(g, j, random, stream) for j in range(n)]]
    else:
        scores = [[_score(float(g[r, j]), r * n + j, random, stream) for j in range(n)] for r in range(rows)]
    indices: list[int] = []
    offsets = [0]
    for row in scores:
        ranked = sorted((j for j in range(n) if row[j] > 0), key=lambda j: (-row[j], j))
        indices += sorted(ranked[:kept])
        offsets.append(len(indices))
    return np.array(indices, np.int32), np.array(offsets, np.int64), bool(np.isnan(g).any())


def _score(value: float, index: int, random: bool, stream: int) -> float:
    if not random:
        return abs(value)
    return 1 + (word(stream, index) >> 1) if value != 0 else 0


def _column_score(g: np.ndarray, column: int, random: bool, stream: int) -> float:
    total = 0.0
    for value in g[:, column]:
        total += abs(float(value))
    return _score(total, column, random, stream)
