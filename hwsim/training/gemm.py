"""One GEMM of training in a layer's arithmetic: its operands cast, its sum by MacSpec, its result stored."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from hwsim import kernels
from hwsim.arithmetic.mac import Chunked, Fused, MacSpec, Native
from hwsim.arithmetic.number import BlockScaled
from hwsim.arithmetic.storage import Cast
from hwsim.training.plan import READ_BY
from hwsim.training.rounded_sum import add_rounded
from hwsim.training.scaling import scale_for
from hwsim.training.step import Site
from hwsim.training.tiles import multiply_tiles


def read(stored: Tensor, site: Site, role: str, gemm: str) -> Tensor:
    """Return the stored tensor as this GEMM reads it: cast to the format of its role (blocks along the last axis)."""
    cast = site.precision.cast(role, gemm)
    if cast is None:
        return stored
    scaling = site.precision.scaling(role)
    if scaling is not None:
        if scaling.tile is not None:
            return stored  # quantized by `multiply`, which knows the tiles' place
        factor = scale_for(stored, cast.format, scaling, site, f"{gemm}.{role}")
        return cast_tensor(stored * factor, cast, site, gemm, role) * (1 / factor)
    if role == "weight" and not cast.rounding.stochastic and not isinstance(cast.format, BlockScaled):
        return read_once(stored, cast, site)
    return cast_tensor(stored, cast, site, gemm, role)


def read_once(stored: Tensor, cast: Cast, site: Site) -> Tensor:
    """Return a weight as it is read, cast once a step however often and by however many GEMMs it is read."""
    key = (stored.data_ptr(), f"{cast}{tuple(stored.shape)}{stored.stride()}")
    known = site.step.weights_read.get(key)
    if known is None:
        known = site.step.weights_read[key] = (stored, cast_tensor(stored, cast, site, "", "weight"))
    return known[1]


def read_along(stored: Tensor, axis: int, site: Site, role: str, gemm: str) -> Tensor:
    """Return the tensor as `read` does, with blocks along `axis`, the one that the GEMM reduces."""
    cast = site.precision.cast(role, gemm)
    if cast is None or axis in (-1, stored.ndim - 1) or not isinstance(cast.format, BlockScaled):
        return read(stored, site, role, gemm)
    along = stored.transpose(axis, -1).contiguous()
    return cast_tensor(along, cast, site, gemm, role).transpose(axis, -1)


def same_reading(site: Site, role: str, first: str, second: str) -> bool:
    """Return whether two GEMMs read a tensor in this role as the same values, so that one cast serves both.

    Not so for blocks (they run along each GEMM's own reduced axis) and stochastic rounding (drawn for each GEMM).
    """
    one, other = site.precision.cast(role, first), site.precision.cast(role, second)
    if one is None or other is None:
        return one is other
    scaling = site.precision.scaling(role)
    if scaling is not None and scaling.method == "delayed":
        return False  # each GEMM keeps its own history
    return one == other and not isinstance(one.format, BlockScaled) and not one.rounding.stochastic


def cast_tensor(x: Tensor, cast: Cast, site: Site, gemm: str, stage: str) -> Tensor:
    """Return x in the values of `cast`, as float32."""
    stream = site.stream(gemm, stage) if cast.rounding.stochastic else 0
    result: Tensor = kernels.cast(x.detach(), cast, stream=stream)
    if site.step.profiler is not None:
        site.step.profiler.cast(x, result, cast, site.layer, gemm, stage)
    return result if result.dtype == torch.float32 else result.float()


def multiply(
    a: Tensor,
    b: Tensor,
    site: Site,
    gemm: str,
    bias: Tensor | None = None,
    k_positions: Tensor | None = None,
    roles: tuple[str, str] | None = None,
) -> Tensor:
    """Return a @ b (the last two axes; operands already cast) summed by the layer's MacSpec for this GEMM.

    The bias, one value a column, joins the accumulator after the last product (definitions A11). `k_positions` says
    where each k stood before top-k gathered them; stochastic rounding draws its bits by it. `roles` are those of a and
    b, where they are not the ones that a linear layer's GEMM has.
    """
    precision = site.precision
    mac = precision.mac(gemm)
    if bias is not None:
        bias = read(bias, site, "bias", gemm)
    if precision.tiled:
        return multiply_tiles(a, b, site, gemm, roles or READ_BY[gemm], bias)
    if isinstance(mac.order, Native):
        product = site.step.auditor.run(torch.matmul, a, b)
        return product if bias is None else product.add_(bias)
    stream, formats = 0, precision.operand_formats(gemm)
    if is_random(mac):
        stream = site.stream(gemm, "sum")
    else:
        k_positions = None
    if site.step.profiler is not None:
        site.step.profiler.sums(a, b, mac, site, gemm, stream, formats, k_positions)
    result = site.step.auditor.run(
        kernels.matmul, a, b, mac, bias=bias, stream=stream, formats=formats, k_positions=k_positions
    )
    return result if result.dtype == torch.float32 else result.float()


def add_bias(sums: Tensor, bias: Tensor, site: Site, gemm: str = "output") -> Tensor:
    """Return the GEMM's sums with a bias of any shape added in the accumulator, before anything is stored."""
    cast = None if site.precision.tiled else result_cast(site.precision.mac(gemm))
    stream = site.stream(gemm, "bias") if cast is not None and cast.rounding.stochastic else 0
    return add_rounded(sums, read(bias, site, "bias", gemm), cast, stream)


def store(x: Tensor, site: Site, role: str, gemm: str = "", mac: MacSpec | None = None) -> Tensor:
    """Return x as it is stored in this role; a GEMM's own sums (`mac`) already in that format pass as they are.

    What `reduce` sums up is the gradient of a bias.
    """
    cast = site.precision.cast(role, "bias" if gemm == "reduce" else "")
    if cast is None:
        return x
    if mac is not None and not site.precision.tiled:
        came = result_cast(mac)
        if came is not None and came.format == cast.format:
            return x
    return cast_tensor(x, cast, site, gemm, role)


def sum_rows(x: Tensor, site: Site) -> Tensor:
    """Return the sum of a matrix over its rows in the order and accumulator of `reduce`: the bias gradient."""
    mac = site.precision.mac("reduce")
    if isinstance(mac.order, Native):
        return x.sum(0)
    ones = torch.ones(1, len(x), dtype=x.dtype, device=x.device)
    stream = site.stream("reduce", "sum") if mac.rounding.stochastic else 0
    if site.step.profiler is not None:
        site.step.profiler.sums(ones, x, mac, site, "reduce", stream)
    result = site.step.auditor.run(kernels.matmul, ones, x, mac, stream=stream)
    return result.reshape(-1).float()


@cache
def result_cast(mac: MacSpec) -> Cast | None:
    """Return how the sum that leaves the accumulator was rounded last; None for plain float32."""
    cast = mac.cast
    if isinstance(mac.order, Chunked) and mac.order.outer is not None:
        cast = mac.order.outer
    if isinstance(mac.order, Fused):
        cast = mac.order.output
    return None if str(cast) == "float32" else cast


@cache
def is_random(mac: MacSpec) -> bool:
    """Return whether sums by this MacSpec draw random bits."""
    casts = [mac.cast, result_cast(mac), mac.product if isinstance(mac.product, Cast) else None]
    return any(cast is not None and cast.rounding.stochastic for cast in casts)
