"""How fast the emulation kernels run on the device, and that they give the reference's bits there.

These are not kernels of real arithmetic: they compute what another machine would compute (see `hwsim.kernels`).
"""

from __future__ import annotations

import importlib

import numpy as np
import torch

from hwsim.arithmetic.mac import MacSpec
from hwsim.measurement.cases import Case
from hwsim.measurement.prepared import Prepared, UnavailableError, generator, normal
from hwsim.measurement.record import Check


def prepare(case: Case, device: torch.device) -> Prepared:
    """Make an `emulation` case ready: `quantize_ROUNDING` into case.dtype, or `matmul_mac` with accumulator
    case.dtype."""
    try:
        import hwsim

        importlib.import_module("hwsim.kernels.gemm")
    except ImportError as error:
        raise UnavailableError(f"hwsim.kernels: {error}") from None
    source = generator(case.id, device)
    if case.operation.startswith("quantize_"):
        rounding = case.operation.removeprefix("quantize_")
        x = normal((case["n"],), "float32", source) * 4
        # Values of every magnitude, subnormal and overflowing ones included, at the front where they are compared.
        exponents = torch.randint(-40, 20, (1024,), generator=source, device=device)
        x[:1024] *= torch.pow(2.0, exponents.float())

        def quantize() -> torch.Tensor:
            return hwsim.quantize(x, case.dtype, rounding, seed=1, step=2)

        def check_quantize() -> Check:
            got = quantize()[:2048].cpu().numpy()
            with hwsim.backend("reference"):
                wanted = np.asarray(hwsim.quantize(x[:2048].cpu().numpy(), case.dtype, rounding, seed=1, step=2))
            return bits_equal(got, wanted)

        return Prepared(quantize, check_quantize, case["n"], 8 * case["n"], launches=1)
    m, n, k = case["m"], case["n"], case["k"]
    a, b = normal((m, k), "bfloat16", source).float(), normal((k, n), "bfloat16", source).float()
    mac = kernels_mac(case.dtype)

    def multiply() -> torch.Tensor:
        return hwsim.matmul(a, b, mac, seed=1, step=2)

    def check_matmul() -> Check:
        small_a, small_b = a[:4, :256].contiguous(), b[:256, :8].contiguous()
        got = hwsim.matmul(small_a, small_b, mac, seed=1, step=2).cpu().numpy()
        with hwsim.backend("reference"):
            wanted = np.asarray(hwsim.matmul(small_a.cpu().numpy(), small_b.cpu().numpy(), mac, seed=1, step=2))
        first = bits_equal(got, wanted)
        # The same kernel at the full size: a corner that does not depend on the rest must not change.
        whole = multiply()[:4, :8].cpu().numpy()
        part = hwsim.matmul(a[:4].contiguous(), b[:, :8].contiguous(), mac, seed=1, step=2).cpu().numpy()
        second = bits_equal(whole, part)
        return first if not first.passed else second

    return Prepared(multiply, check_matmul, 2 * m * n * k, 4 * (m * k + k * n + m * n), launches=1)


def kernels_mac(accumulator: str) -> MacSpec:
    """A MAC whose accumulator is rounded to nearest even at every step."""
    return MacSpec(accumulator=accumulator)


def bits_equal(got: np.ndarray, wanted: np.ndarray) -> Check:
    """Compare float32 values bit for bit; error is the share of different elements."""
    same = np.asarray(got, np.float32).view(np.uint32) == np.asarray(wanted, np.float32).view(np.uint32)
    return Check("the reference back end, bit for bit", 1.0 - float(same.mean()), 0.0, int(same.size))
