"""Top-k: which slices of a gradient are kept. Every back end gives the same indices.

Ranked by magnitude (or by random scores); ties go to the lowest index; zeros are never kept, so fewer than `kept` may
be; a NaN is an error. Over the batch, a column's score is the sum of |g| over the rows, added in float64 in row order.
`kept` of the whole extent or more means no selection at all: every position stands in the result, zeros included.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from hwsim.errors import SpecError, UnsupportedError
from hwsim.kernels import backends


@dataclass(frozen=True, eq=False)
class Kept:
    """Kept positions in [0, extent), ascending.

    With `offsets` (example scope), row r keeps ``indices[offsets[r]:offsets[r + 1]]``; without, one set for all rows.
    """

    indices: np.ndarray  # int32
    offsets: np.ndarray | None  # int64, rows + 1
    extent: int
    rows: int

    def row(self, r: int) -> np.ndarray:
        """Return the positions that row r keeps."""
        return self.indices if self.offsets is None else self.indices[self.offsets[r] : self.offsets[r + 1]]

    def mask(self) -> np.ndarray:
        """Return rows x extent booleans: which elements are kept."""
        kept = np.zeros((self.rows, self.extent), bool)
        if self.offsets is None:
            kept[:, self.indices] = True
        else:
            kept[np.repeat(np.arange(self.rows), np.diff(self.offsets)), self.indices] = True
        return kept


def select_topk(
    g: Any,
    kept: int,
    rank_over: Literal["example", "batch"] = "example",
    score: Literal["magnitude", "random"] = "magnitude",
    stream: int = 0,
) -> Kept:
    """Return the positions of the `kept` highest scores, per row (example) or for all rows together (batch).

    Args:
        g: (rows, ...): numpy array or torch tensor, float32 or float64; all axes but the first are flattened.
        kept: how many positions, 1 or more.
        score: "magnitude" ranks by |g|; "random" by ``1 + (word(stream, i) >> 1)`` where g is not zero, i being the
            row-major index of the element (example) or of the column (batch).
        stream: random stream for "random".

    Raises:
        SpecError: a NaN in g, or an argument that is not allowed.
    """
    if rank_over not in ("example", "batch"):
        raise SpecError(f"rank_over: got {rank_over!r}, expected example or batch")
    if score not in ("magnitude", "random"):
        raise SpecError(f"score: got {score!r}, expected magnitude or random")
    if not isinstance(kept, int | np.integer) or kept < 1:
        raise SpecError(f"kept: got {kept!r}, expected an integer of 1 or more")
    device = backends.device_of(g)
    if device != "cpu" and backends.forced() is None:
        device = "cpu"  # no GPU back end selects; on the host the positions are the same
    name = backends.choose(device)
    array = g.detach().cpu().numpy() if backends.is_tensor(g) else np.asarray(g)
    if array.ndim < 1 or array.dtype not in (np.float32, np.float64):
        raise SpecError(f"select_topk: got shape {array.shape} of {array.dtype}, expected (rows, ...) of float32")
    rows = array.shape[0]
    flat = np.ascontiguousarray(array.reshape(rows, -1) if array.size else array.reshape(rows, 0))
    extent = flat.shape[1]
    if kept >= extent:
        refuse_nan(bool(np.isnan(flat).any()))
        everything = np.arange(extent, dtype=np.int32)
        if rank_over == "batch":
            return Kept(everything, None, extent, rows)
        return Kept(np.tile(everything, rows), np.arange(rows + 1, dtype=np.int64) * extent, extent, rows)
    if name == "reference":
        from hwsim.kernels.reference.select import select
    elif name == "triton":
        raise UnsupportedError("select_topk: the triton back end has no selection of its own; use numba")
    else:
        from hwsim.kernels.numba_cpu.select import select
    indices, offsets, has_nan = select(flat, int(kept), rank_over == "batch", score == "random", stream)
    refuse_nan(has_nan)
    return Kept(indices, None if rank_over == "batch" else offsets, extent, rows)


def refuse_nan(has_nan: bool) -> None:
    """Raise SpecError if there is a NaN among what was to be ranked."""
    if has_nan:
        raise SpecError("select_topk: got NaN in the gradient, which has no rank")
