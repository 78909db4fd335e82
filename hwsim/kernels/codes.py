"""Bit patterns of whole tensors: `encode` to codes, `decode` back, `all_values` of a format."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np

from hwsim.arithmetic.codec import all_codes, decode_code
from hwsim.arithmetic.named import parse_format
from hwsim.arithmetic.number import BlockScaled, FixedPoint, FloatingPoint, NumberFormat, carrier_of
from hwsim.arithmetic.rounding import Overflow, Rounding
from hwsim.arithmetic.storage import Cast, NanRule
from hwsim.errors import SpecError
from hwsim.kernels import backends, random_bits
from hwsim.kernels.casts import as_blocks_shape, as_floats, broadcast_scale, cast_numpy, tensor_scale_of

TABLE_BITS = 16  # formats up to here decode by table


class BlockCodes(NamedTuple):
    """A tensor in a block format: codes of the elements (shape of x), codes of the scales, scale of the tensor."""

    elements: Any
    scales: Any  # the axis of the blocks has one entry a block
    tensor_scale: float


def encode(
    x: Any,
    format: str | NumberFormat,
    rounding: str | Rounding = "nearest_even",
    overflow: str | Overflow = "native",
    seed: int = 0,
    step: int = 0,
    scale: Any = None,
    *,
    axis: int = -1,
    nan: str | NanRule = "error",
) -> Any:
    """Return the codes of x in a format, after the same rounding as `quantize` (see there for the arguments).

    Returns:
        Unsigned integers of 8, 16, 32 or 64 bits, the smallest that holds the format, in the shape of x (a torch tensor
        if x is one: uint8, else int32 or int64); `BlockCodes` for block formats.

    Raises:
        SpecError: as `quantize`.
    """
    made = Cast(format, rounding, overflow, nan)
    stream = random_bits.stream(seed, stage="cast", step=step)
    tensor = backends.is_tensor(x)
    values = _floats_of(x)
    if isinstance(made.format, BlockScaled):
        codes = _encode_blocks(values, made, stream, scale, axis)
        return BlockCodes(_like(codes[0], tensor), _like(codes[1], tensor), codes[2])
    if scale is not None:
        values = np.asarray(values, np.float64) / broadcast_scale(scale, values.shape)
    name = "reference" if backends.forced() == "reference" else "numba"
    return _like(codes_of(cast_numpy(values, made, stream, None, None, -1, name), made.format), tensor)


def decode(codes: Any, format: str | NumberFormat, scale: Any = None, *, axis: int = -1) -> Any:
    """Return the values that codes stand for: float32 if it holds every value of the format, else float64.

    Args:
        codes: integers (numpy or torch), or `BlockCodes` for a block format.
        format: the format of the codes. scale: multiplied in (element formats). axis: axis of the blocks.

    Raises:
        SpecError: a code with more bits than the format.
    """
    fmt = parse_format(format)
    if isinstance(fmt, BlockScaled):
        if not isinstance(codes, BlockCodes):
            raise SpecError(f"decode {fmt}: got {type(codes).__name__}, expected BlockCodes (elements and scales)")
        return _like(_decode_blocks(codes, fmt, axis), backends.is_tensor(codes.elements))
    array = _integers(codes)
    values = values_of(array, fmt)
    if scale is not None:
        values = (values * broadcast_scale(scale, values.shape)).astype(values.dtype)
    return _like(values, backends.is_tensor(codes))


def all_values(format: str | NumberFormat) -> np.ndarray:
    """Return every finite value of an element format of 24 bits at most, ascending, each once (0 stands for -0 too).

    Raises:
        UnsupportedError: a block format, or too many values to list.
    """
    fmt = parse_format(format)
    codes = np.arange(len(all_codes(fmt)))  # refuses block formats
    assert not isinstance(fmt, BlockScaled)
    values = values_of(codes, fmt)
    return np.unique(values[np.isfinite(values)] + np.float32(0))


def codes_of(values: np.ndarray, fmt: FloatingPoint | FixedPoint) -> np.ndarray:
    """Return the codes of values that the format holds, as the smallest unsigned integers."""
    kind = np.dtype(f"u{max(1, 1 << max(0, (fmt.bits - 1).bit_length() - 3))}")
    wide = values.astype(np.float64)
    if isinstance(fmt, FixedPoint):
        return (np.ldexp(wide, fmt.fraction_bits).astype(np.int64) & ((1 << fmt.bits) - 1)).astype(kind)
    magnitude = np.abs(np.where(np.isfinite(wide), wide, 0))
    exponent = np.maximum(np.frexp(magnitude)[1] - 1, fmt.emin)
    count = np.ldexp(magnitude, fmt.mantissa_bits - exponent).astype(np.int64)
    code = ((exponent.astype(np.int64) - fmt.emin) << fmt.mantissa_bits) + count
    code = np.where(count == 0, 0, code if fmt.zero else code - (1 << fmt.mantissa_bits))
    if fmt.infinities:
        code = np.where(np.isinf(wide), fmt.infinity_code, code)
    if fmt.signed:
        code = code | (np.signbit(wide).astype(np.int64) << (fmt.bits - 1))
    if fmt.has_nan:
        code = np.where(np.isnan(wide), fmt.nan_code, code)
    return code.astype(kind)


def values_of(codes: np.ndarray, fmt: FloatingPoint | FixedPoint) -> np.ndarray:
    """Return the values of codes in the format's carrier.

    Raises:
        SpecError: a code with more bits than the format.
    """
    if codes.size and (int(codes.min()) < 0 or int(codes.max()) >> fmt.bits):
        raise SpecError(f"decode {fmt}: got codes {codes.min()} to {codes.max()}, expected 0 to {(1 << fmt.bits) - 1}")
    if fmt.bits <= TABLE_BITS:
        return _table(fmt)[codes.astype(np.int64)]
    wide = codes.astype(np.int64)
    if isinstance(fmt, FixedPoint):
        signed = wide - ((wide >> (fmt.bits - 1)) << fmt.bits) if fmt.signed else wide
        return np.ldexp(signed.astype(np.float64), -fmt.fraction_bits).astype(carrier_of(fmt))
    magnitude = wide & ((1 << (fmt.exponent_bits + fmt.mantissa_bits)) - 1)
    negative = (wide >> (fmt.exponent_bits + fmt.mantissa_bits)) & 1 == 1
    field, mantissa = magnitude >> fmt.mantissa_bits, magnitude & ((1 << fmt.mantissa_bits) - 1)
    hidden = np.where(field > 0, 1 << fmt.mantissa_bits, 0) if fmt.zero else np.int64(1 << fmt.mantissa_bits)
    exponent = np.maximum(field, 1 if fmt.zero else 0) - fmt.bias - fmt.mantissa_bits
    value = np.ldexp((mantissa + hidden).astype(np.float64), exponent.astype(np.int32))
    special = magnitude > fmt.largest_code
    infinite = special & fmt.infinities & (magnitude == fmt.largest_code + 1)
    value = np.where(special, np.where(infinite, np.inf, np.nan), value)
    value = np.where(negative & ~np.isnan(value), -value, value)
    if not fmt.negative_zero and fmt.signed:
        value = np.where(negative & (magnitude == 0), np.nan, value)
    return value.astype(carrier_of(fmt))


@cache
def _table(fmt: FloatingPoint | FixedPoint) -> np.ndarray:
    table = np.array([decode_code(fmt, code) for code in range(1 << fmt.bits)], dtype=carrier_of(fmt))
    table.setflags(write=False)
    return table


def _encode_blocks(
    x: np.ndarray, made: Cast, stream: int, scale: Any, axis: int
) -> tuple[np.ndarray, np.ndarray, float]:
    fmt = made.format
    assert isinstance(fmt, BlockScaled)
    shape = as_blocks_shape(x.shape, axis)
    given, tensor_scale = np.ascontiguousarray(x).reshape(shape), tensor_scale_of(scale, made)
    if backends.forced() == "reference":
        from hwsim.kernels.reference.quantize import cast_blocks

        _, elements, scales, found = cast_blocks(given, made, stream, tensor_scale)
    else:
        from hwsim.kernels.numba_cpu.blocks import cast_blocks_with_scales

        values, scales, found = cast_blocks_with_scales(given, made, stream, tensor_scale)
        unit = np.repeat(scales * found, fmt.block, axis=1)[:, : shape[1]]
        # The values are elements times unit (rounded to float32 at most once), so the nearest element is the element.
        nearest = Cast(fmt.element, overflow="saturate", nan="zero")
        elements = cast_numpy(values / unit, nearest, 0, None, None, -1, "numba")
    # Elements of a poisoned block are never read: their codes are 0.
    codes = codes_of(np.where(np.isnan(elements), 0, elements).astype(np.float64), fmt.element).reshape(x.shape)
    scale_codes = codes_of(scales, fmt.scale)
    if x.ndim:
        axis %= x.ndim
        scale_codes = scale_codes.reshape(*x.shape[:axis], scales.shape[1], *x.shape[axis + 1 :])
    return codes, scale_codes, found


def _decode_blocks(codes: BlockCodes, fmt: BlockScaled, axis: int) -> np.ndarray:
    elements, scales = _integers(codes.elements), _integers(codes.scales)
    shape = as_blocks_shape(elements.shape, axis)
    unit = values_of(scales, fmt.scale).astype(np.float64).reshape(shape[0], -1, shape[2]) * codes.tensor_scale
    unit = np.repeat(unit, fmt.block, axis=1)[:, : shape[1]]
    values = values_of(elements, fmt.element).astype(np.float64).reshape(shape) * unit
    limit = float(np.finfo(np.float32).max)
    return np.clip(values, -limit, limit).astype(np.float32).reshape(elements.shape)


def _floats_of(x: Any) -> np.ndarray:
    if not backends.is_tensor(x):
        return as_floats(x)
    data = x.detach().cpu()
    return as_floats((data if data.element_size() >= 4 else data.float()).numpy())


def _integers(codes: Any) -> np.ndarray:
    array = codes.detach().cpu().numpy() if backends.is_tensor(codes) else np.asarray(codes)
    if array.dtype.kind not in "iu":
        raise SpecError(f"decode: got data of type {array.dtype}, expected integers")
    return array


def _like(array: np.ndarray, tensor: bool) -> Any:
    if not tensor:
        return array
    import torch

    signed = {"uint16": np.int32, "uint32": np.int64, "uint64": np.int64}.get(array.dtype.name)
    return torch.from_numpy(array if signed is None else array.astype(signed))
