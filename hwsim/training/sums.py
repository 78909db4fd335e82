"""Sums that are no GEMM, taken by the plan's `reduce`: softmax denominators, losses, statistics (definitions A12)."""

from __future__ import annotations

import torch
from torch import Tensor

from hwsim import kernels
from hwsim.arithmetic.mac import Native
from hwsim.arithmetic.storage import Cast
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


def rounded(x: Tensor, cast: Cast | None, site: Site, gemm: str, stage: str) -> Tensor:
    """Return float64 values rounded once: by the cast, or to float32 where there is none."""
    if cast is None:
        return x.float()
    stream = site.stream(gemm, stage) if cast.rounding.stochastic else 0
    stored: Tensor = kernels.cast(x.detach(), cast, stream=stream)
    return stored.float()
