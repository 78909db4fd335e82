"""Statistics of what top-k kept, from the recorded steps of a workload."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from hwsim.training.result import LayerSparsity
from hwsim.workload import OpKind, Selection, Workload

PAIRS = 256  # of rows that are compared for their overlap in one step: neighbors, so the sample is fixed

Shares = Mapping[str, Sequence[float]]
"""By layer, one share for each recorded step."""


def measure_sparsity(workload: Workload, norm_shares: Shares, tie_shares: Shares) -> tuple[LayerSparsity, ...]:
    """Return, for each layer with top-k, means over the recorded steps (see `LayerSparsity`).

    A layer that a step calls several times, such as the recurrent part of an LSTM once for each word, has its calls
    taken together: rows of all calls are averaged, and its union holds what any call touched.
    """
    calls: dict[str, list[Selection]] = {}
    for op in workload.ops:
        if op.kind is OpKind.SELECT and op.selection is not None:
            calls.setdefault(op.layer, []).append(workload.selections[op.selection])
    return tuple(_layer(layer, found, norm_shares, tie_shares) for layer, found in calls.items())


def _layer(layer: str, calls: Sequence[Selection], norm_shares: Shares, tie_shares: Shares) -> LayerSparsity:
    extent, steps = calls[0].extent, range(len(calls[0].indices))
    counts = [np.concatenate([call.row_counts(step) for call in calls]) for step in steps]
    unions = [np.unique(np.concatenate([call.union(step) for call in calls])) for step in steps]
    overlaps = [example_overlap(call, step) for step in steps for call in calls]
    return LayerSparsity(
        layer=layer,
        extent=extent,
        kept_share=_mean([float(count.mean()) / extent for count in counts]) or 0.0,
        union_share=_mean([len(union) / extent for union in unions]) or 0.0,
        norm_share=_mean(norm_shares.get(layer, ())),
        tie_share=_mean(tie_shares.get(layer, ())),
        example_overlap=_mean([overlap for overlap in overlaps if overlap is not None]),
        step_overlap=_mean([jaccard(a, b) for a, b in pairwise(unions)]),
    )


def example_overlap(selection: Selection, step: int) -> float | None:
    """Return the mean intersection over union of neighboring rows' kept positions; None when ranked over the batch.

    Two rows that both keep nothing, as the padding behind short sentences does, say nothing and are left out.
    """
    if selection.rank_over == "batch" or selection.rows < 2:
        return None
    offsets, indices = selection.offsets[step], selection.indices[step]
    rows = [indices[offsets[r] : offsets[r + 1]] for r in range(min(selection.rows, PAIRS + 1))]
    return _mean([jaccard(a, b) for a, b in pairwise(rows) if len(a) or len(b)])


def jaccard(one: np.ndarray, other: np.ndarray) -> float:
    """Return intersection over union of two sets of positions; 1 for two empty ones."""
    union = len(np.union1d(one, other))
    return len(np.intersect1d(one, other)) / union if union else 1.0


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if len(values) else None
