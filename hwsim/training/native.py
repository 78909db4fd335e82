"""The backward pass of a linear layer in float32 and native order on the CPU: only what was kept is multiplied.

Ranked over the batch, a small layer is done in one compiled call (`kernels.numba_cpu.columns`); for a larger one the
kept columns and the rows of the weight that they meet are gathered for the machine's BLAS.
Ranked by example, each row adds up its own few rows. Where much is kept, the whole masked gradient is multiplied: a
BLAS is several times faster per product, and gathering takes time. Orders that hwsim defines, and casts, are `linear`'s
matter.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from hwsim.kernels import backends
from hwsim.kernels.numba_cpu import columns, rows, select
from hwsim.kernels.selection import refuse_nan
from hwsim.training.gemm import sum_rows
from hwsim.training.gradient_buffers import GradientBuffer, fresh
from hwsim.training.selection import KeptRows, amount_kept
from hwsim.training.step import Site

BREAK_EVEN = 0.25  # share of the elements kept by example from which on the whole product is faster
MOST, MOST_FAR = 0.7, 0.5  # the same for columns kept over the batch: of a weight in the cache, and of a larger one
NEAR = 1 << 23  # elements of a weight that a last-level cache holds

NO_ROWS = np.empty((0, 0), np.float32)
NO_FLAGS = np.empty(0, bool)


def is_native(gradient: Tensor, site: Site) -> bool:
    """Return whether this layer's backward pass is plain float32 in native order, on the CPU."""
    on_cpu = gradient.is_cpu and backends.forced() in (None, "numba")
    return on_cpu and gradient.dtype == torch.float32 and site.precision.plain_gradients


def small_layer_gradients(
    gradient: Tensor, x: Tensor, weight: Tensor, site: Site, gates: int, wants: tuple[bool, ...]
) -> tuple[Tensor | None, Tensor | None, Tensor | None] | None:
    """Return (dL/dx, dL/dW, dL/db) of a small layer ranked over the batch; None where `linear` goes another way.

    Ranking, all three and the rest of the weight's gradient are one compiled call.
    """
    kept = _kept_of_small_layer(gradient, weight, site, gates)
    if kept is None:
        return None
    x, weight = x.detach().contiguous(), weight.detach().contiguous()
    x_gradient, weight_gradient, *places = _room(x, weight, site, wants)
    bias = gradient.new_empty(gradient.shape[1] if wants[2] else 0)
    g = gradient.detach().numpy()
    backends.choose()  # numba's work, noted as such
    refuse_nan(columns.rank_and_multiply(g, kept, weight.numpy(), x.numpy(), *places, bias.numpy()))
    return x_gradient, weight_gradient, bias if wants[2] else None


def bias_gradient(gradient: Tensor, weight: Tensor, site: Site, gates: int) -> Tensor:
    """Return the sum of a gradient's rows, with the bits of `small_layer_gradients` where that would be asked."""
    if is_native(gradient, site) and _kept_of_small_layer(gradient, weight, site, gates) is not None:
        return torch.from_numpy(columns.sum_rows(gradient.detach().numpy()))
    return sum_rows(gradient, site)


def _kept_of_small_layer(gradient: Tensor, weight: Tensor, site: Site, gates: int) -> int | None:
    """Return how many columns a layer keeps, if it is small, ranked over the batch and nobody asks for more."""
    sparse = site.step.sparse
    if sparse is None or sparse.rank_over != "batch" or not site.precision.plain_bias or _asks_more(site, gates):
        return None
    kept = amount_kept(site, gradient.shape[1], gates)
    if kept is None or kept >= gradient.shape[1] or _is_most(kept, weight):
        return None
    return kept if columns.is_small(len(gradient), kept, weight.shape[1]) else None


def _asks_more(site: Site, gates: int) -> bool:
    """Return whether top-k here needs more than a ranking by magnitude of the whole gradient."""
    step, sparse = site.step, site.step.sparse
    if step.simplifier is not None:
        return True
    return sparse is not None and (
        sparse.memory > 0 or sparse.score != "magnitude" or (gates > 1 and sparse.gates == "apart")
    )


def unwatched_gradients(
    gradient: Tensor, x: Tensor, weight: Tensor, site: Site, gates: int, wants: tuple[bool, ...]
) -> tuple[Tensor | None, Tensor | None] | None:
    """Return what `thin` and `native_gradients` together do, in fewer steps; None if somebody asks what was kept."""
    sparse = site.step.sparse
    if site.step.simplifier is not None:
        return None
    kept = amount_kept(site, gradient.shape[1], gates)
    if kept is None or sparse is None or kept >= gradient.shape[1]:
        return _dense(gradient, x, weight, site, wants)
    if _asks_more(site, gates):
        return None
    backends.choose()  # numba's work, noted as such
    g, x, weight = gradient.detach().numpy(), x.detach().contiguous(), weight.detach().contiguous()
    if sparse.rank_over == "batch":
        whole = _is_most(kept, weight)
        rows_met = weight.numpy() if wants[0] and not whole else NO_ROWS
        met, compact, weights, has_nan = select.gathered_over_batch(g, rows_met, kept)
        refuse_nan(has_nan)
        if whole:
            return _dense(torch.from_numpy(rows.spread(compact, met, g.shape[1])), x, weight, site, wants)
        return _of_columns(met, compact, weights, x, weight, site, wants)
    if kept > BREAK_EVEN * g.shape[1]:
        masked, used = select.masked_by_example(g, kept)
        refuse_nan(used < 0)
        if used > BREAK_EVEN * g.size:  # not so if many elements are 0
            return _dense(torch.from_numpy(masked), x, weight, site, wants)
    indices, offsets, has_nan = select.kept_by_example(g, kept)
    refuse_nan(has_nan)
    return _by_example(g, indices, offsets, x, weight, site, wants)


def native_gradients(
    gradient: Tensor, x: Tensor, weight: Tensor, kept: KeptRows | None, site: Site, wants: tuple[bool, ...]
) -> tuple[Tensor | None, Tensor | None]:
    """Return (dL/dx, dL/dW) of the gradient (rows x out) at the output, from what was kept of it (None: from all)."""
    if kept is None:
        return _dense(gradient, x, weight, site, wants)
    gradient, x, weight = gradient.detach(), x.detach().contiguous(), weight.detach().contiguous()
    backends.choose()  # numba's work, noted as such
    if kept.rank_over == "batch":
        if _is_most(kept.kept, weight):
            return _dense(kept.mask(gradient), x, weight, site, wants)
        if columns.is_small(len(gradient), kept.kept, weight.shape[1]):
            x_gradient, weight_gradient, *places = _room(x, weight, site, wants)
            columns.multiply_columns(gradient.numpy(), kept.indices, weight.numpy(), x.numpy(), *places)
            return x_gradient, weight_gradient
        compact, weights = rows.gather(gradient.numpy(), weight.numpy() if wants[0] else NO_ROWS, kept.indices)
        return _of_columns(kept.indices, compact, weights, x, weight, site, wants)
    g, indices, offsets = gradient.numpy(), kept.indices, kept.offsets
    assert offsets is not None
    if len(indices) > BREAK_EVEN * g.size:
        return _dense(torch.from_numpy(rows.keep_only(g, indices, offsets)), x, weight, site, wants)
    return _by_example(g, indices, offsets, x, weight, site, wants)


def _by_example(
    g: np.ndarray, indices: np.ndarray, offsets: np.ndarray, x: Tensor, weight: Tensor, site: Site,
    wants: tuple[bool, ...],
) -> tuple[Tensor | None, Tensor | None]:  # fmt: skip
    x_gradient = weight_gradient = None
    if wants[0]:
        x_gradient = torch.empty_like(x)
        rows.grad_input_by_example(g, weight.numpy(), indices, offsets, x_gradient.numpy())
    if wants[1]:
        weight_gradient, buffer = _lend(weight, site)
        rows.grad_weight_by_example(g, x.numpy(), indices, offsets, buffer.array, buffer.dirty)
    return x_gradient, weight_gradient


def _dense(
    gradient: Tensor, x: Tensor, weight: Tensor, site: Site, wants: tuple[bool, ...]
) -> tuple[Tensor | None, Tensor | None]:
    run, weight_gradient = site.step.auditor.run, None
    x_gradient = run(torch.mm, gradient, weight) if wants[0] else None
    if wants[1] and site.step.buffers is not None:
        weight_gradient, buffer = _lend(weight, site)
        run(torch.mm, gradient.t(), x, out=weight_gradient)
        buffer.dirty[:] = True
    elif wants[1]:
        weight_gradient = run(torch.mm, gradient.t(), x)
    return x_gradient, weight_gradient


def _is_most(kept: int, weight: Tensor) -> bool:
    """Return whether so many columns are kept over the batch that the whole masked product is faster."""
    share = MOST if weight.numel() <= NEAR else MOST_FAR
    return kept >= share * weight.shape[0]


def _room(
    x: Tensor, weight: Tensor, site: Site, wants: tuple[bool, ...]
) -> tuple[Tensor | None, Tensor | None, np.ndarray, np.ndarray, np.ndarray]:
    """Return tensors for the gradients that are wanted, and the arrays that a kernel writes them by."""
    x_gradient, weight_gradient, grad_input, grad_weight, dirty = None, None, NO_ROWS, NO_ROWS, NO_FLAGS
    if wants[0]:
        x_gradient = torch.empty_like(x)
        grad_input = x_gradient.numpy()
    if wants[1]:
        weight_gradient, buffer = _lend(weight, site)
        grad_weight, dirty = buffer.array, buffer.dirty
    return x_gradient, weight_gradient, grad_input, grad_weight, dirty


def _of_columns(
    kept: np.ndarray, compact: np.ndarray, weights: np.ndarray, x: Tensor, weight: Tensor, site: Site,
    wants: tuple[bool, ...],
) -> tuple[Tensor | None, Tensor | None]:  # fmt: skip
    """Return the gradients from the gathered columns of the gradient and the rows of the weight that they meet."""
    run, x_gradient, weight_gradient = site.step.auditor.run, None, None
    g = torch.from_numpy(compact)
    if wants[0]:
        x_gradient = run(torch.mm, g, torch.from_numpy(weights))
    if wants[1]:
        product = run(torch.mm, g.t(), x)
        weight_gradient, buffer = _lend(weight, site)
        rows.scatter(product.numpy(), kept, buffer.array, buffer.dirty)
    return x_gradient, weight_gradient


def _lend(weight: Tensor, site: Site) -> tuple[Tensor, GradientBuffer]:
    shape = (weight.shape[0], weight.shape[1])
    return fresh(shape) if site.step.buffers is None else site.step.buffers.lend(shape)
