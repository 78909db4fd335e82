"""GEMMs whose operands carry one scale a tile, as DeepSeek-V3 trains in FP8 (arXiv 2412.19437, section 3.3).

Each operand is cut into tiles of `across` by `along`, `along` running along the axis that this GEMM reduces. A tile's
scale s is its largest magnitude over the format's largest value, in float32 (or the next power of two above); its
elements are stored as the format's nearest values to x / s. The GEMM multiplies these codes, one tile's length of k
after the other from an accumulator of 0, and promotes each partial sum p into a float32 total:

    total = float32(total + p * float32(s_a * s_b))        one rounding, a fused multiply-add

The bias joins the total last.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from hwsim import kernels
from hwsim.arithmetic.number import BlockScaled
from hwsim.training.plan import Scaling
from hwsim.training.rounded_sum import add_to_odd
from hwsim.training.step import Site


def multiply_tiles(
    a: Tensor, b: Tensor, site: Site, gemm: str, roles: tuple[str, str], bias: Tensor | None = None
) -> Tensor:
    """Return a @ b (..., m, n) of stored operands (..., m, k) and (..., k, n), each quantized here by its role."""
    (codes_a, scales_a), (codes_b, scales_b) = (
        quantize_tiles(x, site, gemm, role) for x, role in zip((a, b.transpose(-2, -1)), roles, strict=True)
    )
    precision = site.precision
    mac, formats = precision.mac(gemm), (precision.cast(roles[0], gemm), precision.cast(roles[1], gemm))
    known: Any = tuple(None if cast is None else cast.format for cast in formats)
    along = tile_of(site, roles[0])[1]
    total: Tensor | None = None
    for number, start in enumerate(range(0, a.shape[-1], along)):
        part = slice(start, start + along)
        stream = site.stream(gemm, f"sum{number}") if mac.rounding.stochastic else 0
        left, right = codes_a[..., part], codes_b[..., part].transpose(-2, -1)
        p = site.step.auditor.run(kernels.matmul, left, right, mac, stream=stream, formats=known)
        scale = scales_a[..., :, number : number + 1] * scales_b[..., :, number : number + 1].transpose(-2, -1)
        product = p.double() * scale.double()  # exact: two significands of 24 bits
        total = (product if total is None else add_to_odd(total, product)).float()
    assert total is not None
    return total if bias is None else total + bias


def quantize_tiles(x: Tensor, site: Site, gemm: str, role: str) -> tuple[Tensor, Tensor]:
    """Return the codes of x (..., rows, k) as values of the format, and their scales (..., rows, tiles along k)."""
    cast, scaling = site.precision.cast(role, gemm), site.precision.scaling(role)
    assert cast is not None and scaling is not None and not isinstance(cast.format, BlockScaled)
    scales = tile_scales(x, scaling, float(cast.format.largest))
    along = tile_of(site, role)[1]
    each = scales.repeat_interleave(along, -1)[..., : x.shape[-1]]
    stream = site.stream(gemm, role) if cast.rounding.stochastic else 0
    codes: Tensor = kernels.cast(x.detach().double() / each.double(), cast, stream=stream)
    if site.step.profiler is not None:
        site.step.profiler.cast(x, codes.float() * each, cast, site.layer, gemm, role)
    return codes.float(), scales


def tile_scales(x: Tensor, scaling: Scaling, largest: float) -> Tensor:
    """Return the scale of each element's tile, once for each row and each tile along the last axis; 1 for zeros."""
    assert scaling.tile is not None
    across, along = scaling.tile
    rows, k = x.shape[-2:]
    padded = functional.pad(x.abs(), (0, -k % along, 0, -rows % across))
    tiles = padded.unflatten(-1, (-1, along)).unflatten(-3, (-1, across))  # ..., row tiles, across, k tiles, along
    amax = tiles.amax((-3, -1))
    scale = (amax.double() / largest).float()
    if scaling.scale == "power_of_two":
        mantissa, exponent = torch.frexp(scale)
        scale = torch.ldexp(torch.ones_like(scale), exponent - (mantissa == 0.5).int())
    scale = torch.where((amax > 0) & scale.isfinite() & (scale > 0), scale, 1.0)
    return scale.repeat_interleave(across, -2)[..., :rows, :]


def tile_of(site: Site, role: str) -> tuple[int, int]:
    """Return the tile of a role: across and along."""
    scaling = site.precision.scaling(role)
    assert scaling is not None and scaling.tile is not None
    return scaling.tile
