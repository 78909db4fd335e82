"""Top-k in the backward pass: which slices of a gradient are kept, and what is remembered of the rest."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hwsim import kernels
from hwsim.training.gemm import read
from hwsim.training.sparse import SparseBackprop
from hwsim.training.step import Site


@dataclass(frozen=True, eq=False)
class KeptRows:
    """The kept positions of a gradient of `rows` rows and `extent` columns, as torch index tensors.

    Ranked over the batch, `columns` are the kept columns of every row. Ranked by example, `rows_of` and `columns_of`
    name each kept element, row after row, and `columns` are those that at least one row kept, ascending.
    """

    rank_over: str
    rows: int
    extent: int
    kept: int
    columns: Tensor  # int64
    indices: np.ndarray  # int32, as the kernel returned them
    offsets: np.ndarray | None = None  # int64, rows + 1; by example only
    rows_of: Tensor | None = None
    columns_of: Tensor | None = None

    def mask(self, gradient: Tensor) -> Tensor:
        """Return the gradient with everything that was not kept set to 0, at full size."""
        thinned = torch.zeros_like(gradient)
        if self.rank_over == "batch":
            thinned[:, self.columns] = gradient[:, self.columns]
        else:
            assert self.rows_of is not None and self.columns_of is not None
            thinned[self.rows_of, self.columns_of] = gradient[self.rows_of, self.columns_of]
        return thinned


def thin(gradient: Tensor, site: Site, full: int | None = None) -> tuple[Tensor, KeptRows | None]:
    """Choose what to keep of a gradient (rows x extent) at a layer's output.

    Returns the gradient to choose from (with the memory of earlier steps added, if there is one) and the choice; None
    when nothing is dropped: no sparse backprop here, or at least as many kept as there are.
    """
    sparse = site.step.sparse
    if sparse is None or not sparse.covers(site.layer) or site.step.domain != "train":
        return gradient, None
    if site.layer == site.step.output_layer and not sparse.output_layer:
        return gradient, None
    extent = gradient.shape[1]
    kept = sparse.kept(full or extent, site.step.epoch, site.layer)
    simplifier = site.step.simplifier
    if simplifier is not None:
        gradient = simplifier.silence(site.layer, gradient)
    chosen = None
    if kept < extent:
        if sparse.memory:
            gradient = recall(gradient, site, sparse.memory)
        chosen = choose(gradient, kept, sparse, site)
        if sparse.memory:
            site.step.memories[site.id] = gradient - chosen.mask(gradient)
    if simplifier is not None:
        simplifier.count(site.layer, gradient, chosen)
    return gradient, chosen


def choose(gradient: Tensor, kept: int, sparse: SparseBackprop, site: Site) -> KeptRows:
    """Rank the gradient and return what is kept of it."""
    ranked = gradient if sparse.rank == "before_cast" else read(gradient, site, "gradient", "grad_input")
    stream = site.stream("grad_input", "select") if sparse.score == "random" else 0
    found = kernels.select_topk(ranked, kept, rank_over=sparse.rank_over, score=sparse.score, stream=stream)
    indices = np.asarray(found.indices, dtype=np.int32)
    flat = torch.from_numpy(indices.astype(np.int64))
    if sparse.rank_over == "batch":
        return KeptRows("batch", len(gradient), gradient.shape[1], kept, flat.to(gradient.device), indices)
    offsets = np.asarray(found.offsets, dtype=np.int64)
    rows = torch.from_numpy(np.repeat(np.arange(len(gradient)), np.diff(offsets)))
    columns = torch.from_numpy(np.flatnonzero(np.bincount(indices, minlength=gradient.shape[1])))
    return KeptRows(
        "example",
        len(gradient),
        gradient.shape[1],
        kept,
        columns.to(gradient.device),
        indices,
        offsets,
        rows.to(gradient.device),
        flat.to(gradient.device),
    )


def recall(gradient: Tensor, site: Site, eta: float) -> Tensor:
    """Return the gradient plus eta times what this place of the batch dropped in its last step (arXiv 1905.10194).

    The papers do not say what a batch of another size does: here it starts without memory.
    """
    memory = site.step.memories.get(site.id)
    if memory is None or memory.shape != gradient.shape:
        return gradient
    return gradient + float(np.float32(eta)) * memory
