"""Casting a tensor on the GPU: every float and fixed-point format, every rounding, equal bit for bit to `reference`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import triton
import triton.language as tl

from hwsim.arithmetic.number import BlockScaled, carrier_of
from hwsim.arithmetic.storage import Cast
from hwsim.errors import SpecError, UnsupportedError
from hwsim.kernels.casts import broadcast_scale, check_out
from hwsim.kernels.random_bits import word
from hwsim.kernels.reference.rounding import round_exact
from hwsim.kernels.triton_gpu.rounding import (
    carrier_bits,
    join_stream,
    may_go_wrong,
    random_word,
    round_bits,
    rule_of,
    stream_parts,
)

if TYPE_CHECKING:
    import torch

BLOCK = 1024


@triton.jit(do_not_specialize=["low", "middle", "high"])
def _quantize(
    x,
    out,
    trouble,
    n,
    low,
    middle,
    high,
    RULE: tl.constexpr,
    WIDE: tl.constexpr,
    REPORT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < n
    bits = tl.load(x + index, mask=inside, other=1.0).to(tl.float64).to(tl.int64, bitcast=True)
    word = bits
    if RULE[6] == 6:
        first = tl.program_id(0).to(tl.int64) * BLOCK
        word = random_word(join_stream(low, middle, high), index, first >> 32, first * 0)
    result, wrong = round_bits(bits, word, RULE)
    if WIDE:
        tl.store(out + index, result, mask=inside)
    else:
        tl.store(out + index, carrier_bits(result), mask=inside)
    if REPORT:
        tl.atomic_max(trouble, tl.max((wrong & inside).to(tl.int32), axis=0))


def cast_tensor(
    x: Any, cast: Cast, stream: int = 0, scale: Any = None, out: Any = None, axis: int = -1
) -> torch.Tensor:
    """Return a torch tensor cast on its device; arguments as in `hwsim.kernels.cast`.

    A cast under which some value is an error (a NaN in a format without one, overflow: error) waits for the device.

    Raises:
        SpecError: such a value, or arguments that do not fit. UnsupportedError: block formats, which other back ends
        do.
    """
    import torch

    del axis  # of block formats only
    if isinstance(cast.format, BlockScaled):
        raise UnsupportedError(
            f"backend triton: got block format {cast.format}, expected a float or fixed-point format"
        )
    if cast.rounding.stochastic and x.numel() >= 1 << 42:
        raise UnsupportedError("backend triton: a tensor of 2^42 elements or more")
    carrier = carrier_of(cast.format)
    check_out(out, tuple(x.shape), carrier)
    values = x.detach() if x.dtype in (torch.float32, torch.float64) else _widened(x.detach())
    factor = None
    if scale is not None:
        factor = torch.from_numpy(np.ascontiguousarray(broadcast_scale(scale, tuple(x.shape)))).to(x.device)
        values = values.double() / factor
    values = values.contiguous()
    result = torch.empty(x.shape, dtype=getattr(torch, carrier), device=x.device)
    rule = rule_of(cast)
    report = may_go_wrong(rule)
    trouble = torch.zeros(1, dtype=torch.int32, device=x.device)
    if values.numel():
        codes = result.view(torch.int64 if carrier == "float64" else torch.int32)
        _quantize[(triton.cdiv(values.numel(), BLOCK),)](
            values,
            codes,
            trouble,
            values.numel(),
            *stream_parts(stream),
            RULE=rule,
            WIDE=carrier == "float64",
            REPORT=report,
            BLOCK=BLOCK,
            num_warps=4,
            enable_fp_fusion=False,
        )
    if report and int(trouble):
        raise_first(values.cpu().numpy().reshape(-1), cast, stream)
    if factor is not None:
        result = (result * factor).to(result.dtype)
    if out is None:
        return result
    out.copy_(result)
    return out


def raise_first(values: np.ndarray, cast: Cast, stream: int) -> None:
    """Raise what the reference raises for the first value that the cast makes an error.

    Raises:
        SpecError: always; without the value if none of the first thousand suspects is one.
    """
    fmt = cast.format
    suspects = np.flatnonzero(~((values >= fmt.lowest) & (values <= fmt.largest)))[:1000]  # type: ignore[union-attr]
    for place in suspects:
        round_exact(float(values[place]), cast, word(stream, int(place)))
    raise SpecError(f"cast to {cast}: got a value that {fmt} cannot hold")


def _widened(x: torch.Tensor) -> torch.Tensor:
    """Return float16, bfloat16, FP8 and small integers as float32 or float64, exactly."""
    import torch

    if x.dtype.is_floating_point:
        return x.float()
    if x.dtype in (torch.bool, torch.int8, torch.uint8, torch.int16, torch.int32):
        return x.double()
    raise SpecError(f"x: got data of type {x.dtype}, expected float32 or float64")
