"""Casting torch tensors on any device with plain tensor operations; equal to `reference` bit for bit."""

from __future__ import annotations

import math
from typing import Any

import torch

from hwsim.arithmetic.number import FLOAT32_EMAX, BlockScaled, FixedPoint, FloatingPoint, ScaleRule, carrier_of
from hwsim.arithmetic.rounding import Overflow
from hwsim.arithmetic.storage import Cast, NanRule
from hwsim.errors import SpecError
from hwsim.kernels.casts import as_blocks_shape, broadcast_scale, check_out, check_overflow, tensor_scale_of
from hwsim.kernels.reference.rounding import nan_not_held
from hwsim.kernels.torch_eager.rounding import random_words, round_fixed, round_float

FLOAT32_LARGEST = torch.finfo(torch.float32).max


def cast_tensor(x: Any, cast: Cast, stream: int, scale: Any, out: Any, axis: int) -> Any:
    """Cast a tensor; the arguments are those of `hwsim.kernels.casts.cast`.

    Raises:
        SpecError: NaN or a value out of range where that is an error. UnsupportedError: a range beyond float64's.
    """
    fmt = cast.format
    data = x.detach().to(torch.float64)
    carrier = torch.float32 if carrier_of(fmt) == "float32" else torch.float64
    check_out(out, tuple(x.shape), str(carrier).removeprefix("torch."))
    if isinstance(fmt, BlockScaled):
        shape = as_blocks_shape(tuple(x.shape), axis)
        words = _words(stream, cast, data).reshape(shape) if cast.rounding.stochastic else None
        values = _cast_blocks(data.reshape(shape), cast, words, tensor_scale_of(scale, cast))
        result = values.reshape(x.shape).to(torch.float32)
    else:
        factor = None
        if scale is not None:
            factor = torch.from_numpy(broadcast_scale(scale, tuple(x.shape))).to(x.device)
            data = data / factor
        result = _cast_elements(data, cast, stream).to(carrier)
        if factor is not None:
            result = (result.double() * factor).to(carrier)  # a 0-dim factor would not widen float32
    if out is None:
        return result
    out.copy_(result)
    return out


def _cast_elements(data: torch.Tensor, cast: Cast, stream: int) -> torch.Tensor:
    fmt = cast.format
    if cast.nan is NanRule.ERROR and not fmt.has_nan and bool(torch.isnan(data).any()):
        raise nan_not_held(cast)
    words = _words(stream, cast, data) if cast.rounding.stochastic else None
    if isinstance(fmt, FixedPoint):
        if cast.overflow is Overflow.WRAP and bool(torch.isinf(data).any()):
            raise SpecError(f"cast to {cast}: got an infinity, expected finite values with overflow wrap")
        result = round_fixed(data, cast, words)
    else:
        result = _canonical_float64(data, cast) if _is_float64(fmt) else round_float(data, cast, words)
    if cast.overflow is Overflow.ERROR:
        check_overflow(data.cpu().numpy(), result.cpu().numpy(), cast, stream)
    return result


def _is_float64(fmt: Any) -> bool:
    return isinstance(fmt, FloatingPoint) and fmt.precision == 53 and fmt.exponent_bits == 11


def _canonical_float64(data: torch.Tensor, cast: Cast) -> torch.Tensor:
    data = torch.where(torch.isnan(data), math.nan, data)
    return data.clamp(-cast.format.largest, cast.format.largest) if cast.overflow is Overflow.SATURATE else data


def _words(stream: int, cast: Cast, data: torch.Tensor) -> torch.Tensor:
    """Return the random word of each element by its row-major index."""
    index = torch.arange(data.numel(), dtype=torch.int64, device=data.device)
    return random_words(stream, index).reshape(data.shape)


def _cast_blocks(x: torch.Tensor, cast: Cast, words: torch.Tensor | None, tensor_scale: float | None) -> torch.Tensor:
    """Return float64 values of x (outer, n, inner) in a block format along the middle axis."""
    fmt = cast.format
    assert isinstance(fmt, BlockScaled)
    if cast.overflow is Overflow.SATURATE:
        x = torch.where(torch.isinf(x), torch.copysign(torch.full_like(x, FLOAT32_LARGEST), x), x)
    outer, n, inner = x.shape
    blocks = -(-n // fmt.block)
    padding = (0, 0, 0, blocks * fmt.block - n)
    tiles = torch.nn.functional.pad(x, padding).reshape(outer, blocks, fmt.block, inner)
    if words is not None:
        words = torch.nn.functional.pad(words, padding).reshape(tiles.shape)
    poisoned = ~torch.isfinite(tiles).all(dim=2, keepdim=True)
    clean = torch.where(poisoned, 0.0, tiles)
    amax = clean.abs().amax(dim=2, keepdim=True) if clean.numel() else clean[:, :, :1]
    element = Cast(fmt.element, cast.rounding, Overflow.SATURATE)
    round_element = round_fixed if isinstance(fmt.element, FixedPoint) else round_float
    if fmt.scale_rule is ScaleRule.TWO_LEVEL:
        scale = _tensor_scale(x, fmt) if tensor_scale is None else tensor_scale
        wanted = amax / (fmt.element.largest * scale)
        block_scale = round_float(wanted, Cast(fmt.scale, overflow="saturate"), None)
        unit = torch.where(block_scale == 0, fmt.scale.smallest_subnormal, block_scale) * scale
        values = (round_element(clean / unit, element, words) * unit).clamp(-FLOAT32_LARGEST, FLOAT32_LARGEST)
    else:
        values = round_element(clean, element, words, _scale_exponent(amax, fmt))
    values = torch.where(poisoned, math.nan, values)
    return values.reshape(outer, blocks * fmt.block, inner)[:, :n]


def _scale_exponent(amax: torch.Tensor, fmt: BlockScaled) -> torch.Tensor:
    """Return e of each block's scale 2**e (int64)."""
    mantissa, exponent = torch.frexp(amax)
    exponent = exponent.to(torch.int64) - 1 - fmt.element.emax
    if fmt.scale_rule is ScaleRule.ROUND_UP:
        exponent = exponent + (mantissa > math.frexp(fmt.element.largest)[0])
    exponent = torch.where(amax == 0, -FLOAT32_EMAX, exponent)
    return exponent.clamp(-FLOAT32_EMAX, FLOAT32_EMAX - fmt.element.emax)


def _tensor_scale(x: torch.Tensor, fmt: BlockScaled) -> float:
    finite = x[torch.isfinite(x)]
    amax = float(finite.abs().max()) if finite.numel() else 0.0
    wanted = torch.tensor(amax / (fmt.element.largest * fmt.scale.largest), dtype=torch.float64)
    scale = float(wanted.clamp(max=FLOAT32_LARGEST).to(torch.float32))
    return scale or 2.0**-149
