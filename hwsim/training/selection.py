"""Top-k in the backward pass: which slices of a gradient are kept, and what is remembered of the rest."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
from torch import Tensor

from hwsim import kernels
from hwsim.training.gemm import read
from hwsim.training.sparse import SparseBackprop
from hwsim.training.step import Site
from hwsim.training.ties import column_scores, decided_by_ties

CPU = torch.device("cpu")


@dataclass(frozen=True, eq=False)
class KeptRows:
    """The kept positions of a gradient of `rows` rows and `extent` columns.

    As torch index tensors: ranked over the batch, `columns` are the kept columns of every row. Ranked by example,
    `rows_of` and `columns_of` name each kept element, row after row, and `columns` are those that at least one row
    kept, ascending. They are made when asked for.
    """

    rank_over: str
    rows: int
    extent: int
    kept: int
    indices: np.ndarray  # int32, as the kernel returned them
    offsets: np.ndarray | None = None  # int64, rows + 1; by example only
    device: torch.device = CPU
    by_ties: int | None = None  # kept places that the tie rule decided; counted in recorded steps, for magnitudes

    @cached_property
    def columns(self) -> Tensor:
        """Columns that are kept at all (int64)."""
        if self.offsets is None:
            return torch.from_numpy(self.indices.astype(np.int64)).to(self.device)
        counts = np.bincount(self.indices, minlength=self.extent)
        return torch.from_numpy(np.flatnonzero(counts)).to(self.device)

    @cached_property
    def rows_of(self) -> Tensor:
        """The row of each element kept by example (int64)."""
        assert self.offsets is not None
        return torch.from_numpy(np.repeat(np.arange(self.rows), np.diff(self.offsets))).to(self.device)

    @cached_property
    def columns_of(self) -> Tensor:
        """The column of each element kept by example (int64)."""
        return torch.from_numpy(self.indices.astype(np.int64)).to(self.device)

    def mask(self, gradient: Tensor) -> Tensor:
        """Return the gradient with everything that was not kept set to 0, at full size."""
        thinned = torch.zeros_like(gradient)
        if self.rank_over == "batch":
            thinned[:, self.columns] = gradient[:, self.columns]
        else:
            thinned[self.rows_of, self.columns_of] = gradient[self.rows_of, self.columns_of]
        return thinned


def thin(gradient: Tensor, site: Site, gates: int = 1) -> tuple[Tensor, KeptRows | None]:
    """Choose what to keep of a gradient (rows x extent) at a layer's output.

    `gates`: how many gates of a recurrent layer stand side by side in the extent; they may be ranked apart.
    Returns the gradient to choose from (with the memory of earlier steps added, if there is one) and the choice; None
    when nothing is dropped: no sparse backprop here, or at least as many kept as there are.
    """
    sparse, extent = site.step.sparse, gradient.shape[1]
    kept = amount_kept(site, extent, gates)
    if kept is None or sparse is None:
        return gradient, None
    gates = gates if sparse.gates == "apart" else 1
    simplifier = site.step.simplifier
    if simplifier is not None:
        gradient = simplifier.silence(site.layer, gradient)
    chosen = None
    if kept < extent:
        if sparse.memory:
            gradient = recall(gradient, site, sparse.memory)
        chosen = choose(gradient, kept, sparse, site, gates)
        if sparse.memory:
            site.step.memories[site.id] = gradient - chosen.mask(gradient)
    if simplifier is not None:
        simplifier.count(site.layer, gradient, chosen)
    return gradient, chosen


def amount_kept(site: Site, extent: int, gates: int = 1) -> int | None:
    """Return how many of a gradient's `extent` columns this call of a layer keeps; None: no sparse backprop here."""
    sparse = site.step.sparse
    if sparse is None or site.step.domain != "train":
        return None
    if site.layer == site.step.output_layer and not sparse.output_layer:
        return None
    return _amount(sparse, site.layer, site.step.epoch, extent, gates if sparse.gates == "apart" else 1)


@lru_cache(maxsize=4096)
def _amount(sparse: SparseBackprop, layer: str, epoch: int, extent: int, gates: int) -> int | None:
    """Return how many slices of a layer's gradient are kept; None where there is no sparse backprop."""
    return gates * sparse.kept(extent // gates, epoch, layer) if sparse.covers(layer) else None


def choose(gradient: Tensor, kept: int, sparse: SparseBackprop, site: Site, gates: int = 1) -> KeptRows:
    """Rank the gradient and return what is kept of it: `kept` slices, the same number of each of `gates` parts."""
    ranked = gradient if sparse.rank == "before_cast" else read(gradient, site, "gradient", "grad_input")
    indices, offsets = _positions(ranked, kept // gates, sparse, site, gates)
    by_ties = None
    if site.step.recorder is not None and sparse.score == "magnitude":
        by_ties = _count_ties(ranked, indices, offsets, gates)
    rows, extent = gradient.shape
    return KeptRows(sparse.rank_over, rows, extent, kept, indices, offsets, gradient.device, by_ties)


def _positions(
    ranked: Tensor, kept: int, sparse: SparseBackprop, site: Site, gates: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the kept positions, `kept` of each gate, and by example the offsets of the rows."""
    rows, width = len(ranked), ranked.shape[1] // gates
    # By example, each gate of a row is ranked as a row of its own; over the batch, each gate as a matrix of its own.
    parts = [ranked.reshape(rows * gates, width)] if sparse.rank_over == "example" else list(ranked.split(width, 1))
    found = []
    for number, part in enumerate(parts):
        stage = f"select{number}" if number else "select"
        stream = site.stream("grad_input", stage) if sparse.score == "random" else 0
        found.append(kernels.select_topk(part, kept, rank_over=sparse.rank_over, score=sparse.score, stream=stream))
    if sparse.rank_over == "batch":
        if gates == 1:
            return np.asarray(found[0].indices, np.int32), None
        chosen = [np.asarray(part.indices, np.int32) + np.int32(gate * width) for gate, part in enumerate(found)]
        return np.concatenate(chosen), None
    indices, offsets = np.asarray(found[0].indices, np.int32), np.asarray(found[0].offsets, np.int64)
    if gates > 1:
        gate_of = np.repeat(np.tile(np.arange(gates, dtype=np.int32), rows), np.diff(offsets))
        indices = indices + gate_of * np.int32(width)
    return indices, offsets[::gates]


def _count_ties(ranked: Tensor, indices: np.ndarray, offsets: np.ndarray | None, gates: int) -> int:
    """Return how many kept places the tie rule decided; each gate is a ranking of its own."""
    scores = ranked.detach().cpu().numpy()
    scores = column_scores(scores) if offsets is None else np.abs(scores)
    width = scores.shape[1] // gates
    offsets = np.array([0, len(indices)]) if offsets is None else offsets
    rows = np.repeat(np.arange(len(scores)), np.diff(offsets))
    rankings = rows * gates + indices // width  # ascending: rows in order, and gates in order in a row
    ends = np.cumsum(np.bincount(rankings, minlength=len(scores) * gates))
    return decided_by_ties(scores.reshape(-1, width), indices % width, np.concatenate([[0], ends]))


def recall(gradient: Tensor, site: Site, eta: float) -> Tensor:
    """Return the gradient plus eta times what this place of the batch dropped in its last step (arXiv 1905.10194).

    The papers do not say what a batch of another size does: here it starts without memory.
    """
    memory = site.step.memories.get(site.id)
    if memory is None or memory.shape != gradient.shape:
        return gradient
    return gradient + float(np.float32(eta)) * memory
