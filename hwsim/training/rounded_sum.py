"""Sums of two tensors, added exactly and rounded once (definitions A2)."""

from __future__ import annotations

import torch
from torch import Tensor

from hwsim import kernels
from hwsim.arithmetic.storage import Cast


def add_rounded(x: Tensor, y: Tensor, cast: Cast | None, stream: int = 0) -> Tensor:
    """Return x + y rounded once by `cast` (None: to float32, nearest even). Operands are float32 and broadcast."""
    if cast is None:
        return x + y
    result: Tensor = kernels.cast(add_to_odd(x, y), cast, stream=stream)
    return result if result.dtype == torch.float32 else result.float()


def add_to_odd(x: Tensor, y: Tensor) -> Tensor:
    """Return x + y in float64, rounded to odd, so that any later rounding acts as if on the exact sum.

    A float64 sum of two float32 values is inexact when their exponents are far apart. The error of the addition is
    found by TwoSum; where there is one and the last bit is even, the sum is moved one step towards the error, which
    makes the last bit odd: a rounding to 24 bits or fewer then sees on which side of a tie the exact sum lies.
    """
    a, b = x.double(), y.double()
    total = a + b
    from_b = total - a
    error = (a - (total - from_b)) + (b - from_b)
    if not error.any():
        return total
    even = (total.view(torch.int64) & 1) == 0
    wrong = even & (error != 0) & total.isfinite()
    toward = torch.where(error > 0, torch.inf, -torch.inf).to(total.dtype)
    return torch.where(wrong, torch.nextafter(total, toward), total)
