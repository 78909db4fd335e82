"""One GEMM of training in a layer's arithmetic: its operands cast, its sum by MacSpec, its result stored."""

from __future__ import annotations

import torch
from torch import Tensor

from hwsim import kernels
from hwsim.arithmetic.mac import MacSpec, Native
from hwsim.arithmetic.number import BlockScaled
from hwsim.arithmetic.storage import Cast
from hwsim.training.rounded_sum import add_rounded
from hwsim.training.step import Site


def read(stored: Tensor, site: Site, role: str, gemm: str) -> Tensor:
    """Return the stored tensor as this GEMM reads it: cast to the format of its role (blocks along the last axis)."""
    cast = site.precision.cast(role, gemm)
    return stored if cast is None else cast_tensor(stored, cast, site, gemm, role)


def read_along(stored: Tensor, axis: int, site: Site, role: str, gemm: str) -> Tensor:
    """Return the tensor as `read` does, with blocks along `axis`, the one that the GEMM reduces."""
    cast = site.precision.cast(role, gemm)
    if cast is None:
        return stored
    if axis in (-1, stored.ndim - 1) or not isinstance(cast.format, BlockScaled):
        return cast_tensor(stored, cast, site, gemm, role)
    along = stored.transpose(axis, -1).contiguous()
    return cast_tensor(along, cast, site, gemm, role).transpose(axis, -1)


def same_reading(site: Site, role: str, first: str, second: str) -> bool:
    """Return whether two GEMMs read a tensor in this role as the same values, so that one cast serves both.

    Not so for blocks (they run along each GEMM's own reduced axis) and stochastic rounding (drawn for each GEMM).
    """
    one, other = site.precision.cast(role, first), site.precision.cast(role, second)
    if one is None or other is None:
        return one is other
    return one == other and not isinstance(one.format, BlockScaled) and not one.rounding.stochastic


def cast_tensor(x: Tensor, cast: Cast, site: Site, gemm: str, stage: str) -> Tensor:
    """Return x in the values of `cast`, as float32."""
    stream = site.stream(gemm, stage) if cast.rounding.stochastic else 0
    result: Tensor = kernels.cast(x.detach(), cast, stream=stream)
    return result if result.dtype == torch.float32 else result.float()


def multiply(a: Tensor, b: Tensor, site: Site, gemm: str) -> Tensor:
    """Return a @ b (the last two axes; operands already cast) summed by the layer's MacSpec for this GEMM."""
    mac = site.precision.mac(gemm)
    if isinstance(mac.order, Native):
        return site.step.auditor.run(torch.matmul, a, b)
    stream = site.stream(gemm, "sum") if mac.rounding.stochastic else 0
    result: Tensor = kernels.matmul(a, b, mac, stream=stream)
    return result if result.dtype == torch.float32 else result.float()


def add_bias(sums: Tensor, bias: Tensor, site: Site, gemm: str = "output") -> Tensor:
    """Return the GEMM's sums with the bias added in the accumulator, before anything is stored (contracts A11)."""
    cast = accumulator_cast(site.precision.mac(gemm))
    stream = site.stream(gemm, "bias") if cast is not None and cast.rounding.stochastic else 0
    return add_rounded(sums, read(bias, site, "bias", gemm), cast, stream)


def store(x: Tensor, site: Site, role: str, gemm: str = "", mac: MacSpec | None = None) -> Tensor:
    """Return x as it is stored in this role; a GEMM's own sums (`mac`) already in that format pass as they are."""
    cast = site.precision.cast(role)
    if cast is None or (mac is not None and cast.format == mac.accumulator):
        return x
    return cast_tensor(x, cast, site, gemm, role)


def sum_rows(x: Tensor, site: Site) -> Tensor:
    """Return the sum of a matrix over its rows in the order and accumulator of `reduce`: the bias gradient."""
    mac = site.precision.mac("reduce")
    if isinstance(mac.order, Native):
        return x.sum(0)
    ones = torch.ones(1, len(x), dtype=x.dtype, device=x.device)
    stream = site.stream("reduce", "sum") if mac.rounding.stochastic else 0
    result: Tensor = kernels.matmul(ones, x, mac, stream=stream)
    return result.reshape(-1).float()


def accumulator_cast(mac: MacSpec) -> Cast | None:
    """Return how the accumulator rounds one addition; None for a plain float32 addition."""
    return None if str(mac.cast) == "float32" else mac.cast
