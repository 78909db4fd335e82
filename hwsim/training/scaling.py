"""Per-tensor scales for operands of narrow formats: a power of two that moves a tensor into the format's range.

The operand is multiplied, cast, and divided again. Because the scale is a power of two, a floating-point sum of such
operands equals the sum of the unscaled codes scaled at the end, as long as nothing leaves the accumulator's range.
"""

from __future__ import annotations

from math import floor, isfinite, log2

from torch import Tensor

from hwsim.arithmetic.number import BlockScaled, NumberFormat
from hwsim.training.plan import Scaling
from hwsim.training.step import Site

LARGEST_EXPONENT = 100  # a scale beyond 2^100 either way would itself leave float32's range


def scale_for(x: Tensor, number: NumberFormat, scaling: Scaling, site: Site, key: str) -> float:
    """Return the factor to multiply x with before its cast, and note x's largest magnitude if the scale is delayed."""
    if scaling.method == "current":
        return factor_for(float(x.abs().max()) if x.numel() else 0.0, number, scaling.margin)
    name = f"{site.id}.{key}"
    if site.step.recomputing and name in site.step.factors:
        return site.step.factors[name]  # that of the first run, before this step's magnitudes were known
    history = site.step.magnitudes.setdefault(name, [])
    largest = max(history) if history else float(x.abs().max())
    if site.step.domain == "train":
        history.append(float(x.abs().max()))
        del history[: -scaling.history]
    factor = site.step.factors[name] = factor_for(largest, number, scaling.margin)
    return factor


def factor_for(largest: float, number: NumberFormat, margin: int = 0) -> float:
    """Return the largest power of two that keeps `largest` within the format, less `margin` binades.

    1 for a tensor of zeros, and where the largest magnitude is not finite.
    """
    assert not isinstance(number, BlockScaled)  # those bring their own scales
    if largest == 0 or not isfinite(largest):
        return 1.0
    exponent = floor(log2(float(number.largest) / largest))
    if largest * 2.0**exponent > number.largest:  # log2 rounded up
        exponent -= 1
    return 2.0 ** max(-LARGEST_EXPONENT, min(LARGEST_EXPONENT, exponent - margin))
