"""The dense GEMMs of a linear layer and the passes of a convolution, on the real machine.

Axes (k reduced) and stored layouts, as a torch layer keeps them, with x (batch, in), weight (out, in), g = dL/dy
(batch, out):
output       y  = x  weight^T    a row-major, b read across its layout
grad_input   dx = g  weight      both row-major
grad_weight  dw = g^T x          a read across its layout
FP8 library kernels of Hopper read both operands along k only; there both are stored so, and the transposes that a
training step needs for it are measured as `memory/transpose`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from hwsim.measurement.cases import Case
from hwsim.measurement.prepared import (
    TOLERANCE,
    Prepared,
    UnavailableError,
    check_product,
    element_bytes,
    generator,
    normal,
    relative_error,
    set_precision,
    stored,
)
from hwsim.measurement.record import Check


def prepare(case: Case, device: torch.device) -> Prepared:
    """Make a `dense_gemm` case ready on `device`."""
    set_precision(case.dtype)
    m, n, k = case["m"], case["n"], case["k"]
    a, b = operands(case.operation, m, n, k, case.dtype, generator(case.id, device), case.kernel)
    out_dtype = "bfloat16" if case.dtype.startswith("float8") else case.dtype
    result = torch.empty((m, n), dtype=stored(out_dtype), device=device)
    call = _multiply(case, a, b, result)

    def check() -> Check:
        result.fill_(float("nan"))  # an element that is not written stays NaN and fails the check
        call()
        return check_product(
            result, a.float() if a.element_size() == 1 else a, b.float() if b.element_size() == 1 else b, case.dtype
        )

    traffic = (m * k + k * n) * element_bytes(case.dtype) + m * n * element_bytes(out_dtype)
    return Prepared(call, check, 2 * m * n * k, traffic, launches=1 if case.kernel == "triton" else 0)


def operands(
    gemm: str, m: int, n: int, k: int, dtype: str, source: torch.Generator, kernel: str = "cublas"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a (m, k) and b (k, n) as views of tensors stored the way that GEMM finds them."""
    if dtype.startswith("float8"):
        first = "float8_e5m2" if gemm != "output" and kernel == "cublas" else dtype  # gradients travel as e5m2
        return normal((m, k), first, source), normal((n, k), dtype, source).t()
    a = normal((k, m), dtype, source).t() if gemm == "grad_weight" else normal((m, k), dtype, source)
    b = normal((n, k), dtype, source).t() if gemm == "output" else normal((k, n), dtype, source)
    return a, b


def _multiply(case: Case, a: torch.Tensor, b: torch.Tensor, result: torch.Tensor) -> Callable[[], torch.Tensor]:
    """Return the call that writes a @ b into `result`."""
    if case.kernel == "triton":
        from hwsim.measurement.triton_gemm import gemm

        return lambda: gemm(a, b, result, tf32=case.dtype == "tf32")
    if case.dtype.startswith("float8"):
        if a.device.type != "cuda" or not hasattr(torch, "_scaled_mm"):
            raise UnavailableError("torch._scaled_mm on a CUDA device")
        one = torch.ones((), dtype=torch.float32, device=a.device)
        return lambda: torch._scaled_mm(a, b, one, one, out_dtype=result.dtype, use_fast_accum=True, out=result)
    return lambda: torch.mm(a, b, out=result)


def prepare_convolution(case: Case, device: torch.device) -> Prepared:
    """Make one pass of a convolution ready: channels-last, padding (filter - 1) / 2, the library's default
    algorithm."""
    set_precision(case.dtype)
    torch.backends.cudnn.benchmark = False
    source = generator(case.id, device)
    batch, channels, size, filters = case["batch"], case["channels"], case["size"], case["out_channels"]
    width, stride = case["filter"], case["stride"]
    padding = (width - 1) // 2
    out_size = (size + 2 * padding - width) // stride + 1
    memory = torch.channels_last
    x = normal((batch, channels, size, size), case.dtype, source).contiguous(memory_format=memory)
    weight = normal((filters, channels, width, width), case.dtype, source).contiguous(memory_format=memory)
    g = normal((batch, filters, out_size, out_size), case.dtype, source).contiguous(memory_format=memory)
    geometry = ([stride, stride], [padding, padding], [1, 1], False, [0, 0], 1)

    def run(x: torch.Tensor, weight: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
        if case.operation == "output":
            return torch.ops.aten.convolution(x, weight, None, *geometry)
        wanted = [case.operation == "grad_input", case.operation == "grad_weight", False]
        grads = torch.ops.aten.convolution_backward(g, x, weight, None, *geometry, wanted)
        return grads[0] if wanted[0] else grads[1]

    def check() -> Check:
        result = run(x, weight, g)
        set_precision("float32")
        with torch.backends.cudnn.flags(enabled=False):  # another implementation than the one measured
            if case.operation == "grad_weight":
                chosen = torch.tensor([0, filters // 2, filters - 1], device=device)
                reference = run(x.float(), weight[chosen].float(), g[:, chosen].float())
                sample = result[chosen]
            else:
                reference, sample = run(x[:1].float(), weight.float(), g[:1].float()), result[:1]
        set_precision(case.dtype)
        error = relative_error(sample, reference) if bool(torch.isfinite(result).all()) else float("nan")
        # The float32 reference itself carries about 1e-6 * sqrt(length of the sum).
        return Check(
            "float32 convolution without cuDNN, a slice", error, max(TOLERANCE[case.dtype], 1e-4), sample.numel()
        )

    macs = batch * out_size**2 * filters * channels * width**2
    moved = {"output": (x, weight, g), "grad_input": (g, weight, x), "grad_weight": (x, g, weight)}[case.operation]
    return Prepared(lambda: run(x, weight, g), check, 2 * macs, sum(t.numel() * t.element_size() for t in moved))
