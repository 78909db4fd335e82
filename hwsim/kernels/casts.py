"""Making values representable: `quantize` for users, `cast` for the rest of hwsim; numpy arrays and torch tensors.

A tensor of a format travels as float32 if float32 holds every value of the format, else as float64 (its *carrier*).
"""

from __future__ import annotations

import math
from functools import cache, lru_cache
from typing import Any

import numpy as np

from hwsim.arithmetic.number import BlockScaled, NumberFormat, ScaleRule, carrier_of
from hwsim.arithmetic.rounding import Overflow, Rounding
from hwsim.arithmetic.storage import Cast, NanRule
from hwsim.errors import SpecError, UnsupportedError
from hwsim.kernels import backends, random_bits
from hwsim.kernels.reference.rounding import nan_not_held, round_exact


def quantize(
    x: Any,
    format: str | NumberFormat,
    rounding: str | Rounding = "nearest_even",
    overflow: str | Overflow = "native",
    seed: int = 0,
    step: int = 0,
    scale: Any = None,
    out: Any = None,
    *,
    axis: int = -1,
    nan: str | NanRule = "error",
) -> Any:
    """Return x with every element rounded once into a number format.

    Args:
        x: numpy array or torch tensor of any shape and strides; float32 or float64 (float16, bfloat16 and integers are
            widened exactly).
        format: a format or its name, e.g. "float8_e4m3fn", "fixed8.6", "mxfp4_e2m1".
        rounding: nearest_even, nearest_away, toward_zero, up, down, to_odd, stochastic (16 bits) or stochasticN.
        overflow: native, saturate, wrap (fixed point) or error.
        seed, step: choose the random bits of stochastic rounding; equal arguments give equal results.
        scale: quantize x / scale and multiply back: a number, or an array that broadcasts against x, or one whose axes
            divide those of x (one scale a block). For two-level block formats, the scale of the whole tensor.
        out: array or tensor of x's shape that receives the result (contiguous; of the carrier's type or float64).
        axis: axis along which blocks run (block formats only).
        nan: what NaN does in a format that has none: error or zero.

    Returns:
        An array (tensor) like x in the format's carrier type: float32 if it holds every value of the format, else
        float64.

    Raises:
        SpecError: a bad argument, a NaN or a value out of range where that is an error.
        UnsupportedError: the back end cannot do this case.
    """
    parts = (format, rounding, overflow, nan)
    made = _cast_of_names(*parts) if all(isinstance(part, str) for part in parts) else Cast(*parts)
    return cast(x, made, random_bits.stream(seed, stage="cast", step=step), scale, out, axis=axis)


@lru_cache(maxsize=4096)
def _cast_of_names(*names: Any) -> Cast:
    return Cast(*names)


def cast(x: Any, cast: Cast | str, stream: int = 0, scale: Any = None, out: Any = None, *, axis: int = -1) -> Any:
    """Return x stored by a `Cast`; the form that training uses. See `quantize` for the arguments."""
    made = Cast.parse(cast)
    device = backends.device_of(x)
    if device == "cuda" and isinstance(made.format, BlockScaled):
        device = "cuda without triton"  # whose back end has no block formats; torch's has
    name = backends.choose(device)
    if backends.is_tensor(x):
        if name == "torch":
            from hwsim.kernels.torch_eager.quantize import cast_tensor

            return cast_tensor(x, made, stream, scale, out, axis)
        if name == "triton":
            from hwsim.kernels.triton_gpu.quantize import cast_tensor as cast_on_gpu

            return cast_on_gpu(x, made, stream, scale, out, axis)
        return _cast_cpu_tensor(x, made, stream, scale, out, axis, name)
    if name in ("torch", "triton"):
        import torch

        given = torch.from_numpy(np.ascontiguousarray(as_floats(x)))
        with backends.backend(name):
            result = np.asarray(globals()["cast"](given, made, stream, _as_tensor(scale), None, axis=axis))
        return _deliver(result, out)
    return cast_numpy(as_floats(x), made, stream, scale, out, axis, name)


def cast_numpy(
    x: np.ndarray, cast: Cast, stream: int, scale: Any, out: np.ndarray | None, axis: int, name: str
) -> np.ndarray:
    """Cast a float32 or float64 array on the CPU by the back end `name` (reference or numba)."""
    fmt = cast.format
    if isinstance(fmt, BlockScaled):
        return _cast_blocks_numpy(x, cast, stream, scale, out, axis, name)
    factor = None if scale is None else broadcast_scale(scale, x.shape)
    values = x if factor is None else np.asarray(x, np.float64) / factor
    direct = out is not None and factor is None and out.flags.c_contiguous and out.dtype == carrier_of(fmt)
    check_out(out, x.shape, carrier_of(fmt))
    if cast.overflow is Overflow.ERROR and out is not None and np.may_share_memory(values, out):
        direct = False  # the check compares input and result: keep both
    target = out if direct and out is not None else np.empty(x.shape, carrier_of(fmt))
    if cast.overflow is Overflow.WRAP and np.isinf(values).any():
        raise SpecError(f"cast to {cast}: got an infinity, expected finite values with overflow wrap")
    if name == "reference":
        from hwsim.kernels.reference.quantize import cast_array

        target[...] = cast_array(values, cast, stream)
    else:
        from hwsim.kernels.numba_cpu.quantize import cast_into

        found_nan = cast_into(np.ascontiguousarray(values).reshape(-1), target.reshape(-1), cast, stream)
        if found_nan and not fmt.has_nan and cast.nan is NanRule.ERROR:
            raise nan_not_held(cast)
    if cast.overflow is Overflow.ERROR:
        check_overflow(values, target, cast, stream)
    if factor is not None:
        target = (target * factor).astype(target.dtype)
    return target if direct else _deliver(target, out)


def check_overflow(x: np.ndarray, result: np.ndarray, cast: Cast, stream: int) -> None:
    """Raise for the first element that rounding took out of range; `result` holds the saturated values.

    Raises:
        SpecError: there is one.
    """
    fmt = cast.format
    assert not isinstance(fmt, BlockScaled)
    at_edge = ((result == fmt.largest) & (x > fmt.largest)) | ((result == fmt.lowest) & (x < fmt.lowest))
    for index in np.flatnonzero(at_edge):
        round_exact(float(x.reshape(-1)[index]), cast, random_bits.word(stream, int(index)))


def broadcast_scale(scale: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Return a scale as float64 that broadcasts against `shape`: a number, per axis, or one entry a block.

    An axis of the scale may be 1, the axis of x, or a divisor of it (then each entry serves a block of equal length).

    Raises:
        SpecError: the shapes do not fit, or a scale is not positive and finite.
    """
    factor = np.asarray(scale.detach().cpu() if backends.is_tensor(scale) else scale, dtype=np.float64)
    if factor.size and not (np.isfinite(factor).all() and (factor > 0).all()):
        raise SpecError("scale: got a value that is zero, negative or not finite, expected positive numbers")
    if factor.ndim > len(shape):
        raise SpecError(f"scale: got shape {factor.shape}, expected one that broadcasts against {shape}")
    for axis, (have, want) in enumerate(zip(factor.shape, shape[len(shape) - factor.ndim :], strict=True)):
        if have not in (1, want):
            if have == 0 or want % have:
                raise SpecError(f"scale: got shape {factor.shape}, expected axes that are 1 or divide those of {shape}")
            factor = np.repeat(factor, want // have, axis=axis)
    return factor


def as_floats(x: Any) -> np.ndarray:
    """Return numpy data as float32 or float64, widened exactly.

    Raises:
        SpecError: data of another kind (complex, text, 64-bit integers).
    """
    array = np.asarray(x)
    if array.dtype in (np.float32, np.float64):
        return array
    if array.dtype == np.float16:
        return array.astype(np.float32)
    if array.dtype.kind == "b" or (array.dtype.kind in "iu" and array.dtype.itemsize <= 4):
        return array.astype(np.float64)
    if array.dtype.kind in "iu" and (array.size == 0 or int(np.abs(array).max()) <= 2**53):
        return array.astype(np.float64)
    if array.dtype.name in ("bfloat16",) or array.dtype.name.startswith("float8"):  # ml_dtypes
        return array.astype(np.float32)
    raise SpecError(f"x: got data of type {array.dtype}, expected float32 or float64")


def check_out(out: Any, shape: tuple[int, ...], carrier: str) -> None:
    """Refuse an `out` of another shape, or of a type that cannot hold the result.

    Raises:
        SpecError: it does not fit.
    """
    if out is None:
        return
    if tuple(out.shape) != tuple(shape):
        raise SpecError(f"out: got shape {tuple(out.shape)}, expected {tuple(shape)}")
    dtype = _name_of(out.dtype)
    if dtype not in (carrier, "float64"):
        raise SpecError(f"out: got {dtype}, expected {carrier}")


@cache  # numpy takes microseconds to spell one
def _name_of(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


def _cast_blocks_numpy(
    x: np.ndarray, cast: Cast, stream: int, scale: Any, out: np.ndarray | None, axis: int, name: str
) -> np.ndarray:
    shape = as_blocks_shape(x.shape, axis)
    check_out(out, x.shape, "float32")
    tensor_scale = tensor_scale_of(scale, cast)
    given = np.ascontiguousarray(x).reshape(shape)
    if name == "reference":
        from hwsim.kernels.reference.quantize import cast_blocks

        values = cast_blocks(given, cast, stream, tensor_scale)[0]
    else:
        from hwsim.kernels.numba_cpu.blocks import cast_blocks as cast_blocks_fast

        direct = out is not None and out.flags.c_contiguous and out.dtype == np.float32
        direct = direct and not np.may_share_memory(given, out)  # a block may be read twice
        target = out.reshape(shape) if direct and out is not None else None
        values = cast_blocks_fast(given, cast, stream, tensor_scale, target)
        if direct and out is not None:
            return out
    return _deliver(values.reshape(x.shape), out)


def tensor_scale_of(scale: Any, cast: Cast) -> float | None:
    """Return the user's scale of the whole tensor, which only two-level block formats take.

    Raises:
        UnsupportedError: a scale for a block format that finds its own. SpecError: not one positive float32 number.
    """
    if scale is None:
        return None
    fmt = cast.format
    assert isinstance(fmt, BlockScaled)
    if fmt.scale_rule is not ScaleRule.TWO_LEVEL:
        raise UnsupportedError(f"scale: {fmt} finds its own scales, expected none")
    value = np.asarray(scale, dtype=np.float64)
    if value.size != 1 or not 0 < float(value) < np.inf or float(np.float32(value.item())) != float(value):
        raise SpecError(f"scale: got {scale!r}, expected one positive float32 number for {fmt}")
    return float(value)


def as_blocks_shape(shape: tuple[int, ...], axis: int) -> tuple[int, int, int]:
    """Return (outer, n, inner) of a shape whose blocks run along `axis` (a scalar is one block of one).

    Raises:
        SpecError: no such axis.
    """
    if not shape:
        return 1, 1, 1
    if not -len(shape) <= axis < len(shape):
        raise SpecError(f"axis: got {axis}, expected {-len(shape)} to {len(shape) - 1}")
    axis %= len(shape)
    return math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])


def _deliver(result: np.ndarray, out: Any) -> Any:
    if out is None:
        return result
    check_out(out, result.shape, str(result.dtype))
    if backends.is_tensor(out):
        out.copy_(_as_tensor(result))
    else:
        out[...] = result
    return out


def _cast_cpu_tensor(x: Any, made: Cast, stream: int, scale: Any, out: Any, axis: int, name: str) -> Any:
    import torch

    data = x.detach()
    if data.device.type != "cpu":
        raise UnsupportedError(f"backend {name} works on CPU tensors, got one on {data.device}")
    if data.dtype in (torch.float16, torch.bfloat16) or str(data.dtype).startswith("torch.float8"):
        data = data.float()
    array = as_floats(data.numpy())
    check_out(out, tuple(x.shape), "float32" if isinstance(made.format, BlockScaled) else carrier_of(made.format))
    target = out.detach().numpy() if out is not None else None
    result = cast_numpy(array, made, stream, scale, target, axis, name)
    return out if out is not None else torch.from_numpy(result)


def _as_tensor(value: Any) -> Any:
    import torch

    return torch.from_numpy(value) if isinstance(value, np.ndarray) else value
