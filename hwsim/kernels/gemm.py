"""matmul: one GEMM in the arithmetic of a MacSpec, on whatever back end the data's place asks for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from hwsim.arithmetic.mac import Accelerator, MacSpec, Native, parse_mac
from hwsim.arithmetic.number import NumberFormat
from hwsim.arithmetic.storage import Cast
from hwsim.errors import SpecError, UnsupportedError
from hwsim.kernels import backends, random_bits
from hwsim.kernels.casts import cast
from hwsim.kernels.reference.matmul import Stage, result_carrier, result_cast, stage_stream, start_format

REFERENCE_WORK = 1 << 22  # multiply-accumulates that the reference may do where no faster path is exact (about 10 s)


def matmul(
    a: Any,
    b: Any,
    mac: str | MacSpec = "float32",
    c: Any = None,
    seed: int = 0,
    step: int = 0,
    *,
    bias: Any = None,
    stream: int | None = None,
    out: Any = None,
    counters: Any = None,
    formats: tuple[NumberFormat | None, NumberFormat | None] = (None, None),
    k_positions: Any = None,
    row_positions: Any = None,
) -> Any:
    """Return a @ b, each product and each sum in the arithmetic of `mac`.

    Args:
        a: (..., m, k), b: (..., k, n): numpy arrays or torch tensors, float32 (float64 where a format needs it), any
            strides; leading axes broadcast.
        mac: a MacSpec, its text, or the name of real hardware ("h200.float8_e4m3fn.float32.wgmma").
        c: start values, broadcast to (..., m, n); rounded to nearest even into the format that holds the sum.
        seed, step: what stochastic rounding draws from.
        bias: n values, each added to its column after the last product.
        stream: random stream, instead of seed and step.
        out: where to write; contiguous, of the result's shape and carrier.
        counters: a `hwsim.kernels.counters.Counters` that is added to.
        formats: formats that a and b are known to hold, which saves a look at their values.
        k_positions: original position of each k, where k was compacted. row_positions: original row of each row of a.
            Both only matter to stochastic rounding.

    Returns:
        (..., m, n), numpy or torch as a is; float32, or float64 where the accumulator's values need it.

    Raises:
        SpecError: shapes or dtypes that do not fit, or a sum that the accumulator makes an error.
        UnsupportedError: this back end cannot do the case.

    >>> matmul([[1.0, 2.0]], [[3.0], [4.0]], "int8")
    array([[11.]], dtype=float32)
    """
    spec = mac if isinstance(mac, MacSpec) else parse_mac(mac)
    a, b = _operand(a, "a"), _operand(b, "b")
    if a.ndim < 2 or b.ndim < 2 or a.shape[-1] != b.shape[-2]:
        got = f"a of {tuple(a.shape)} and b of {tuple(b.shape)}"
        raise SpecError(f"matmul: got {got}, expected (..., m, k) and (..., k, n)")
    name = backends.choose(backends.device_of(a))
    order = type(spec.order)
    if order is Native:
        return _native(a, b, c, bias, out, name)
    if order is Accelerator:
        raise SpecError("matmul: order 'accelerator' must be resolved by a mapping first (docs/definitions.md A6)")
    if stream is None:
        stream = random_bits.stream(seed, step=step) if is_random(spec) else 0
    if name == "triton":
        from hwsim.kernels.triton_gpu import gemm as triton_gemm

        if counters is not None:
            raise UnsupportedError("matmul: the triton back end counts nothing; use numba")
        return triton_gemm.matmul(a, b, spec, c, bias, stream, out, k_positions, row_positions)
    if name == "torch":
        raise UnsupportedError("matmul: the torch back end has no accumulators of its own; use numba or triton")
    return _on_cpu(a, b, spec, c, bias, stream, out, counters, formats, k_positions, row_positions, name)


def _on_cpu(
    a: Any, b: Any, mac: MacSpec, c: Any, bias: Any, stream: int, out: Any, counters: Any,
    formats: tuple[NumberFormat | None, NumberFormat | None], k_positions: Any, row_positions: Any, name: str,
) -> Any:  # fmt: skip
    a, b = (x.detach() if backends.is_tensor(x) else x for x in (a, b))
    result, values = _result(a, b, mac, out)
    m, k, n = values.shape[-2], a.shape[-1], values.shape[-1]
    start = None if c is None else np.broadcast_to(_start_values(c, mac), values.shape)
    if values.ndim > 2 and b.ndim == 2 and row_positions is None:
        # one tall GEMM; its row-major output index is the batched one's
        a, values = a.reshape(-1, k), values.reshape(-1, n)
        start = None if start is None else start.reshape(-1, n)
    places = None if k_positions is None else np.asarray(k_positions, np.int64)
    batch = values.shape[:-2]
    for number, at in enumerate(np.ndindex(*batch) if batch else [()]):
        indices = None
        if batch or row_positions is not None:
            rows = np.arange(m) if row_positions is None else np.asarray(row_positions, np.int64)
            indices = (number * m + rows) * n
        one = Job(
            _item(a, at, batch), _item(b, at, batch), mac, values[at], None if start is None else start[at],
            None if bias is None else _numpy(bias), stream, places, indices, formats, counters,
        )  # fmt: skip
        one.run(name)
    return result


def _result(a: Any, b: Any, mac: MacSpec, out: Any) -> tuple[Any, np.ndarray]:
    """Return the result to hand out, and a numpy view of it to write into."""
    if a.ndim == 2 and b.ndim == 2:
        shape: tuple[int, ...] = (a.shape[0], b.shape[1])
    else:
        try:
            batch = np.broadcast_shapes(tuple(a.shape[:-2]), tuple(b.shape[:-2]))
        except ValueError:
            raise SpecError(
                f"matmul: got a of {tuple(a.shape)} and b of {tuple(b.shape)}, whose leading axes do not broadcast"
            ) from None
        shape = (*batch, a.shape[-2], b.shape[-1])
    carrier = result_carrier(mac)
    if out is None:
        if not backends.is_tensor(a):
            out = np.empty(shape, carrier)
            return out, out
        import torch

        out = torch.empty(shape, dtype=getattr(torch, carrier))
        return out, out.numpy()
    contiguous = out.is_contiguous() if backends.is_tensor(out) else out.flags.c_contiguous
    if tuple(out.shape) != shape or str(out.dtype).removeprefix("torch.") != carrier or not contiguous:
        raise SpecError(f"matmul: got out of {tuple(out.shape)}, {out.dtype}, expected contiguous {shape}, {carrier}")
    return out, out.detach().numpy() if backends.is_tensor(out) else out


def _start_values(c: Any, mac: MacSpec) -> np.ndarray:
    """Return c as float64 values of the format that holds the sum."""
    values = _numpy(c)
    fmt = start_format(mac)
    if fmt is not None:
        values = cast(np.ascontiguousarray(values), Cast(fmt, "nearest_even", result_cast(mac).overflow))
    return np.asarray(values, np.float64)


def _item(x: Any, at: tuple[int, ...], batch: tuple[int, ...]) -> Any:
    """Return one matrix of a batch that may have to be broadcast."""
    if x.ndim == 2:
        return x
    axes = len(x.shape) - 2
    return x[tuple(0 if size == 1 else i for i, size in zip(at[len(batch) - axes :], x.shape[:-2], strict=True))]


def _numpy(x: Any) -> np.ndarray:
    x = x.detach().numpy() if backends.is_tensor(x) else np.asarray(x)
    return x if x.dtype in (np.float32, np.float64) else x.astype(np.float64)


@dataclass
class Job:
    """One two-dimensional GEMM on the CPU; results go to `out`."""

    a: Any
    b: Any
    mac: MacSpec
    out: np.ndarray
    start: np.ndarray | None
    bias: np.ndarray | None
    stream: int
    k_positions: np.ndarray | None
    indices: np.ndarray | None
    formats: tuple[NumberFormat | None, NumberFormat | None]
    counters: Any

    def run(self, name: str) -> None:
        """Run on the named back end; without a forced one, small jobs that numba cannot do go to the reference."""
        if name == "reference":
            self._reference()
            return
        from hwsim.kernels.numba_cpu import matmul as compiled

        work = self.out.size * self.a.shape[1]
        try:
            compiled.multiply(
                self.a, self.b, self.mac, self.out, self.start, self.bias, self.formats, self.stream,
                self.k_positions, self.indices, self.counters,
            )  # fmt: skip
        except UnsupportedError:
            if backends.forced() is not None or work > REFERENCE_WORK or self.counters is not None:
                raise
            self._reference()

    def _reference(self) -> None:
        from hwsim.kernels.reference import matmul as reference

        n = self.out.shape[1]
        indices = None if self.indices is None else self.indices[:, None] + np.arange(n)
        self.out[...] = reference.matmul(
            _numpy(self.a), _numpy(self.b), self.mac, self.start, self.bias, self.stream,
            None if self.k_positions is None else self.k_positions.tolist(), indices,
        )  # fmt: skip
        if self.counters is not None:
            raise UnsupportedError("matmul: counters need the numba back end")


def _native(a: Any, b: Any, c: Any, bias: Any, out: Any, name: str) -> Any:
    """float32, summed in whatever order the BLAS of this machine takes."""
    if name == "reference":
        raise UnsupportedError("matmul: order native has no reference (its order is the machine's)")
    import torch

    numpy_in = not backends.is_tensor(a)
    x, y = (torch.from_numpy(np.ascontiguousarray(v)) if not backends.is_tensor(v) else v for v in (a, b))
    target = torch.from_numpy(out) if isinstance(out, np.ndarray) else out
    if bias is not None and c is None and x.ndim == 2 and y.ndim == 2:
        result = torch.addmm(torch.as_tensor(bias), x, y, out=target)
    else:
        result = torch.matmul(x, y, out=target)
        for more in (c, bias):
            if more is not None:
                result = result.add_(torch.as_tensor(more))
    if not numpy_in:
        return result
    return out if out is not None else result.numpy()


def bias_mac(mac: MacSpec) -> MacSpec:
    """Return the arithmetic of the one addition that a bias is."""
    last = result_cast(mac)
    return MacSpec(last.format, last.rounding, last.overflow)


def bias_stream(stream: int) -> int:
    """Return the random stream of that addition."""
    return stage_stream(stream, Stage.OUTER)


def is_random(mac: MacSpec) -> bool:
    """Return whether sums by this MacSpec draw random bits."""
    outer = getattr(mac.order, "outer", None)
    product = mac.product
    return (
        mac.rounding.stochastic
        or (outer is not None and outer.rounding.stochastic)
        or (isinstance(product, Cast) and product.rounding.stochastic)
    )


def _operand(x: Any, name: str) -> Any:
    if not backends.is_tensor(x):
        x = np.asarray(x)
        if x.dtype not in (np.float32, np.float64):
            if x.dtype.kind not in "iub":
                raise SpecError(f"matmul: got {name} of {x.dtype}, expected float32 or float64")
            x = x.astype(np.float64)
        return x
    if str(x.dtype) not in ("torch.float32", "torch.float64"):
        raise SpecError(f"matmul: got {name} of {x.dtype}, expected float32 or float64 (decode codes first)")
    return x
