"""Statistics of what top-k kept, from the recorded steps of a workload."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from hwsim.training.result import LayerSparsity
from hwsim.workload import OpKind, Selection, Workload

PAIRS = 256  # of rows that are compared for their overlap in one step: neighbors, so the sample is fixed


def measure_sparsity(workload: Workload, norm_shares: Mapping[str, Sequence[float]]) -> tuple[LayerSparsity, ...]:
    """Return, for each layer with top-k, means over the recorded steps (see `LayerSparsity`).

    `norm_shares` holds, by layer, the kept part of the gradient's sum of squares in each recorded step.
    """
    layers = []
    for op in workload.ops:
        if op.kind is not OpKind.SELECT or op.selection is None:
            continue
        selection = workload.selections[op.selection]
        steps = range(len(selection.indices))
        unions = [selection.union(step) for step in steps]
        shares = norm_shares.get(op.layer)
        layers.append(
            LayerSparsity(
                layer=op.layer,
                extent=selection.extent,
                kept_share=_mean([float(selection.row_counts(step).mean()) / selection.extent for step in steps])
                or 0.0,
                union_share=_mean([len(union) / selection.extent for union in unions]) or 0.0,
                norm_share=_mean(list(shares)) if shares else None,
                example_overlap=_mean([o for step in steps if (o := example_overlap(selection, step)) is not None]),
                step_overlap=_mean([jaccard(a, b) for a, b in pairwise(unions)]),
            )
        )
    return tuple(layers)


def example_overlap(selection: Selection, step: int) -> float | None:
    """Return the mean intersection over union of neighboring rows' kept positions; None when ranked over the batch."""
    if selection.rank_over == "batch" or selection.rows < 2:
        return None
    offsets, indices = selection.offsets[step], selection.indices[step]
    rows = [indices[offsets[r] : offsets[r + 1]] for r in range(min(selection.rows, PAIRS + 1))]
    return _mean([jaccard(a, b) for a, b in pairwise(rows)])


def jaccard(one: np.ndarray, other: np.ndarray) -> float:
    """Return intersection over union of two sets of positions; 1 for two empty ones."""
    union = len(np.union1d(one, other))
    return len(np.intersect1d(one, other)) / union if union else 1.0


def _mean(values: list[float]) -> float | None:
    return float(np.mean(values)) if values else None
