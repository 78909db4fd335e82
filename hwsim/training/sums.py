"""Sums that are no GEMM, taken by the plan's `reduce`: softmax denominators, losses, statistics (definitions A12)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from hwsim import kernels
from hwsim.arithmetic.mac import Native
from hwsim.arithmetic.storage import Cast
from hwsim.errors import UnsupportedError
from hwsim.training.gemm import is_random
from hwsim.training.step import Site


def sum_last(x: Tensor, site: Site, stage: str, key: str = "reduce") -> Tensor:
    """Return the sum over the last axis (kept, with length 1), elements in ascending order, as the MacSpec says.

    `stage` names the sum among those of the same call, so that each draws random bits of its own.
    """
    mac = site.precision.mac(key)
    if isinstance(mac.order, Native):
        return x.sum(-1, keepdim=True)
    rows = x.reshape(-1, x.shape[-1])
    ones = torch.ones(x.shape[-1], 1, dtype=torch.float32, device=x.device)
    stream = site.stream(key, stage) if is_random(mac) else 0
    total: Tensor = site.step.auditor.run(kernels.matmul, rows, ones, mac, stream=stream)
    return total.float().reshape(*x.shape[:-1], 1)


class AddUp(torch.autograd.Function):
    """The sum over the last axis, times a factor in float32: 1, or 1/n for a mean."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, divisor: int, site: Site) -> Tensor:
        """Add up by `reduce`."""
        ctx.shape, ctx.divisor = x.shape, divisor
        return (sum_last(x, site, "sum").squeeze(-1).double() / divisor).float()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Hand the gradient to every element."""
        shared: Tensor = (gradients[0].double() / ctx.divisor).float()
        return shared.unsqueeze(-1).expand(ctx.shape), None, None


def add_up(site: Site, name: str, input: Tensor, dim: Any = None, keepdim: bool = False, *, axis: Any = None) -> Tensor:
    """Emulate `torch.sum` and `torch.mean` over some axes or all of them, in the order of memory."""
    dim = axis if dim is None else dim
    given = range(input.ndim) if dim is None or dim == () else (dim if isinstance(dim, tuple | list) else (dim,))
    axes = sorted(a % max(1, input.ndim) for a in given)
    kept = [a for a in range(input.ndim) if a not in axes]
    rows = input.permute((*kept, *axes)).reshape([*(input.shape[a] for a in kept), -1])
    total: Tensor = AddUp.apply(rows, rows.shape[-1] if name == "mean" else 1, site)
    return total.reshape([1 if a in axes else size for a, size in enumerate(input.shape)]) if keepdim else total


def embedding_bag(
    site: Site, input: Tensor, weight: Tensor, offsets: Tensor | None = None, max_norm: float | None = None,
    norm_type: float = 2, scale_grad_by_freq: bool = False, mode: str = "mean", sparse: bool = False,
    per_sample_weights: Tensor | None = None, include_last_offset: bool = False, padding_idx: int | None = None,
) -> Tensor:  # fmt: skip
    """Emulate `torch.nn.functional.embedding_bag` for bags of one length: rows gathered, then added up by `reduce`.

    Raises UnsupportedError for bags of several lengths, per-sample weights, a padding index and renormalized weights,
    unless the plan lets torch run them in float32.
    """
    given = [
        name
        for name, there in (
            ("offsets", offsets is not None),
            ("max_norm", max_norm is not None),
            ("per_sample_weights", per_sample_weights is not None),
            ("padding_idx", padding_idx is not None),
        )
        if there
    ]
    if given or input.ndim != 2:
        if site.step.plan.uncovered == "error":
            what = " and ".join(given) or f"an input of {input.ndim} axes"
            raise UnsupportedError(
                f"layer {site.layer!r}: embedding_bag with {what} is not emulated; use bags of one length, or set "
                "uncovered: float32 in the plan to run it as torch does"
            )
        site.step.uncovered.add("embedding_bag")
        with site.step.auditor.allowed():
            bags: Tensor = functional.embedding_bag(
                input, weight, offsets, max_norm, norm_type, scale_grad_by_freq, mode, sparse, per_sample_weights,
                include_last_offset, padding_idx,
            )  # fmt: skip
            return bags
    rows = functional.embedding(input, weight, scale_grad_by_freq=scale_grad_by_freq, sparse=sparse)
    return rows.amax(1) if mode == "max" else add_up(site, mode, rows, 1)


def rounded(x: Tensor, cast: Cast | None, site: Site, gemm: str, stage: str) -> Tensor:
    """Return float64 values rounded once: by the cast, or to float32 where there is none."""
    if cast is None:
        return x.float()
    stream = site.stream(gemm, stage) if cast.rounding.stochastic else 0
    stored: Tensor = kernels.cast(x.detach(), cast, stream=stream)
    return stored.float()
