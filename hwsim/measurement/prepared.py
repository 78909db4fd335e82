"""A case made ready to run: its tensors, its call, the check of its result, and the work that it does."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from hwsim.measurement.record import Check

# Largest ||result - float64 reference|| / ||reference|| of a right kernel; a wrong index or a lost block is near 1.
# float8 is wide because Hopper keeps 13 fraction bits while it adds products (with fast accumulation).
TOLERANCE = {
    "float32": 1e-5,
    "tf32": 2e-3,
    "float16": 2e-3,
    "bfloat16": 1.2e-2,
    "float8_e4m3fn": 3e-2,
    "float8_e5m2": 3e-2,
    "uint8": 0.0,
}
STORED = {"tf32": "float32"}  # tf32 is how the multiplier reads float32, not how memory holds it
SAMPLED = 64  # rows and columns of a product that are recomputed


@dataclass
class Prepared:
    """What the worker needs to check and time one case."""

    call: Callable[[], Any]
    check: Callable[[], Check]  # runs `call` itself
    flops: int
    bytes: int
    launches: int = 0  # 0: not known
    graph: bool = True  # worth capturing into a CUDA graph
    wall: bool = False  # timed as a loop with its launches (an eager training step)


class UnavailableError(Exception):
    """This device or build cannot run the case; `str` says what is missing."""


def stored(dtype: str) -> torch.dtype:
    """Return the torch dtype that memory holds for a format name; raises UnavailableError if this torch has none."""
    found = getattr(torch, STORED.get(dtype, dtype), None)
    if not isinstance(found, torch.dtype):
        raise UnavailableError(f"this torch has no dtype {dtype}")
    return found


def set_precision(dtype: str) -> None:
    """Let float32 matrix products and convolutions use the tf32 multiplier, or forbid it."""
    tf32 = dtype == "tf32"
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32


def generator(name: str, device: torch.device) -> torch.Generator:
    """A generator of random data that depends on the case's name alone."""
    return torch.Generator(device=device).manual_seed(zlib.crc32(name.encode()))


def normal(shape: tuple[int, ...], dtype: str, source: torch.Generator) -> torch.Tensor:
    """Standard normal values stored in `dtype` (never zeros: they draw less power and run faster)."""
    wide = torch.randn(shape, generator=source, device=source.device, dtype=torch.float32)
    return wide.to(stored(dtype))


def relative_error(result: torch.Tensor, reference: torch.Tensor) -> float:
    """||result - reference|| / ||reference|| in float64; NaN if the result holds anything that is not finite."""
    result, reference = result.double(), reference.double()
    if not bool(torch.isfinite(result).all()):
        return float("nan")
    scale = float(reference.norm())
    return float((result - reference).norm()) / (scale or 1.0)


def check_product(
    result: torch.Tensor, a: torch.Tensor, b: torch.Tensor, dtype: str, rows: torch.Tensor | None = None
) -> Check:
    """Compare sampled elements of `result` (m, n) with the float64 product of a (m, k) and b (k, n).

    The first and last rows and columns are always among the sample; the whole result must be finite. `rows`: only these
    rows of the result are meant to hold the product (an index into m), all others must be exactly 0.
    """
    if not bool(torch.isfinite(result.float() if result.element_size() == 1 else result).all()):
        return Check("float64 product", float("nan"), TOLERANCE[dtype], result.numel())
    m, n = result.shape
    chosen_rows, chosen_columns = _spread(m, result.device), _spread(n, result.device)
    reference = a[chosen_rows].double() @ b[:, chosen_columns].double()
    if rows is not None:
        held = torch.zeros(m, dtype=torch.bool, device=result.device)
        held[rows.long()] = True
        reference *= held[chosen_rows][:, None]
    sample = result[chosen_rows][:, chosen_columns]
    return Check(
        f"float64 product at {reference.numel()} sampled elements; all elements finite",
        relative_error(sample, reference),
        TOLERANCE[dtype],
        reference.numel(),
    )


def check_equal(result: torch.Tensor, reference: torch.Tensor, against: str) -> Check:
    """Compare element by element, exactly; error is the share of different elements."""
    different = int((result != reference).sum()) if result.shape == reference.shape else reference.numel()
    return Check(against, different / max(1, reference.numel()), 0.0, reference.numel())


def check_close(result: torch.Tensor, reference: torch.Tensor, dtype: str, against: str) -> Check:
    """Compare all elements with a reference computed in more precision."""
    return Check(against, relative_error(result, reference), TOLERANCE[dtype], reference.numel())


def element_bytes(dtype: str) -> int:
    """Bytes of one stored element."""
    return stored(dtype).itemsize


def _spread(extent: int, device: torch.device) -> torch.Tensor:
    """Up to SAMPLED positions, evenly spread, both ends included."""
    count = min(SAMPLED, extent)
    return torch.linspace(0, extent - 1, count, dtype=torch.float64, device=device).round().long()
