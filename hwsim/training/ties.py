"""Where equal magnitudes break the ranking of top-k: kept places that only the tie rule gave to their holders.

Quantized gradients have few distinct magnitudes, so the lowest one that is kept is often shared by more elements than
places are left; the lowest indices get them (definitions A14), whatever the gradient meant.
"""

from __future__ import annotations

import numpy as np


def decided_by_ties(scores: np.ndarray, indices: np.ndarray, offsets: np.ndarray) -> int:
    """Return how many kept places went to the lowest index among equals, some of which were not kept.

    `scores` (rows x extent) are what was ranked, `indices` and `offsets` what each row kept. Where a row keeps every
    element of its lowest kept score, nothing was decided by a tie.
    """
    counts = np.diff(offsets)
    rows = np.repeat(np.arange(len(scores)), counts)
    kept = scores[rows, indices]
    lowest = np.full(len(scores), -1.0)  # no score is negative: a row that keeps nothing has no equals
    lowest[counts > 0] = np.minimum.reduceat(kept, offsets[:-1][counts > 0]) if len(kept) else []
    equal = (scores == lowest[:, None]).sum(1)
    equal_kept = np.bincount(rows[kept == lowest[rows]], minlength=len(scores))
    return int(equal_kept[equal > equal_kept].sum())


def column_scores(gradient: np.ndarray) -> np.ndarray:
    """Return the scores (1 x columns) by which columns are ranked over the batch: sums of |g|, in float64."""
    total = np.zeros(gradient.shape[1])
    for row in gradient:
        total += np.abs(row.astype(np.float64))
    return total[None]
