"""`hwsim doctor`: what this machine can do, and why not more."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from pathlib import Path


def doctor() -> None:
    """Say what this machine can do and why not more: versions, back ends, GPU, data, thread settings.

    \b
    Example:
      hwsim doctor
    """
    from hwsim.cli.screen import print_table

    rows = []
    for name, look in _CHECKS.items():
        try:
            found = look()
        except Exception as error:  # a broken library must be reported, whatever it raises
            found = f"broken: {type(error).__name__}: {' '.join(str(error).split())}"
        rows.append((name, found))
    print_table("", ("what", "found"), rows)


def _versions() -> str:
    from hwsim.provenance import versions

    return ", ".join(f"{name} {version}" for name, version in versions().items())


def _processor() -> str:
    from hwsim.provenance import device

    return f"{device()}; {_vector_instructions()}"


def _vector_instructions() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return "vector instructions unknown"
    flags = next((line for line in text.splitlines() if line.startswith("flags")), "").split()
    wanted = [flag for flag in ("avx2", "avx512f", "avx512_vnni", "amx_bf16", "amx_int8") if flag in flags]
    return ", ".join(wanted) or "no AVX2: the compiled kernels are slower"


def _matrix_products() -> str:
    from hwsim.kernels.numba_cpu.matmul_blas import BYTE_PRODUCTS, integer_product_works
    from hwsim.kernels.numba_cpu.tile16 import HALF_LANES
    from hwsim.kernels.numba_cpu.vector_ir import EXPLICIT, SHORT_VECTORS

    vectors = "AVX-512: 16 float32 lanes" if EXPLICIT else "AVX2: 8 float32 lanes" if SHORT_VECTORS else "other vectors"
    halves = "float16 in its own lanes" if HALF_LANES else "float16 in float32 lanes"
    by_bytes = BYTE_PRODUCTS and integer_product_works()
    return f"{vectors}; {halves}; 8-bit integers by {'products of bytes' if by_bytes else 'exact float32 products'}"


def _compiled_code() -> str:
    from importlib import import_module

    from hwsim.kernels.numba_cpu import compiled

    import_module("hwsim.kernels.numba_cpu.quantize")  # importing kernels is what tries the cache
    return compiled.cache_problem or "cached between runs"


def _threads() -> str:
    import torch

    from hwsim.kernels.numba_cpu.threads import threads

    limits = [f"{name}={os.environ[name]}" for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS") if name in os.environ]
    return f"kernels use {threads()}, torch {torch.get_num_threads()}" + (f" ({', '.join(limits)})" if limits else "")


def _backends() -> str:
    from hwsim.kernels.backends import NAMES, missing

    return "\n".join(f"{name}: {missing(name) or 'ready'}" for name in NAMES)


def _gpu() -> str:
    import torch

    if not torch.cuda.is_available():
        build = torch.version.cuda
        return (
            "none: torch is a CPU build" if build is None else f"none: torch is built for CUDA {build}, no device found"
        )
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return ", ".join(names)


def _extras() -> str:
    import importlib.util

    packages = {"gpu": "triton", "sweep": "optuna", "interop": "onnx"}
    there = {extra: importlib.util.find_spec(package) is not None for extra, package in packages.items()}
    return "\n".join(
        f"{extra}: ready" if ready else f"{extra}: not installed (pip install 'hwsim[{extra}]')"
        for extra, ready in there.items()
    )


def _data() -> str:
    from hwsim.cli.listing import Kind, rows_of

    _, rows = rows_of(Kind.DATA)
    source = os.environ.get("HWSIM_DATA")
    where = f"HWSIM_DATA={source}" if source else "HWSIM_DATA is not set"
    return "\n".join([where, *(f"{name}: {state}" for name, state in rows)])


_CHECKS: dict[str, Callable[[], str]] = {
    "system": lambda: f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
    "versions": _versions,
    "processor": _processor,
    "products": _matrix_products,
    "threads": _threads,
    "back ends": _backends,
    "compiled": _compiled_code,
    "GPU": _gpu,
    "extras": _extras,
    "data": _data,
}
