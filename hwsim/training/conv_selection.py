"""Top-k on the gradient of a convolution's output: single elements (c, h, w) or whole channels."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from hwsim.training.selection import KeptRows, thin
from hwsim.training.step import Site


@dataclass(frozen=True, eq=False)
class ThinnedMaps:
    """What the backward GEMMs of a convolution work on.

    `gradient` (n, channels, oh, ow) has 0 where nothing was kept; where whole channels of the batch were kept it holds
    only those, and `channels` says which. `ranked` is the matrix that was ranked, `kept` the choice from it.
    """

    gradient: Tensor
    channels: Tensor | None
    ranked: Tensor
    kept: KeptRows | None


def thin_maps(gradient: Tensor, site: Site, groups: int) -> ThinnedMaps:
    """Choose what to keep of a gradient (n, c, oh, ow) at a convolution's output.

    The papers leave the granularity open (arXiv 1709.05804): `unit: element` ranks all (c, h, w) of an example, or of
    the batch, against each other; `unit: channel` ranks channels by their sum of magnitudes.
    """
    sparse = site.step.sparse
    if sparse is None or sparse.unit == "element":
        flat = gradient.flatten(1)
        flat, kept = thin(flat, site)
        thinned = gradient if kept is None else kept.mask(flat).reshape(gradient.shape)
        return ThinnedMaps(thinned, None, flat, kept)
    scores = gradient.abs().double().sum((2, 3)).float()
    _, kept = thin(scores, site)
    if kept is None:
        return ThinnedMaps(gradient, None, gradient.flatten(1), None)
    if kept.rank_over == "batch" and groups == 1:
        return ThinnedMaps(gradient[:, kept.columns].contiguous(), kept.columns, scores, kept)
    chosen = kept.mask(scores) != 0  # a channel is kept only if its sum is not 0
    return ThinnedMaps(gradient * chosen[:, :, None, None], None, scores, kept)
