"""Numbers on tensors: quantize, encode, matmul, convolution, top-k selection; one folder a back end.

The public functions load on first use, so that importing this package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

# name -> the module that defines it
_HOME = {
    "backend": "hwsim.kernels.backends",
    "quantize": "hwsim.kernels.casts",
    "cast": "hwsim.kernels.casts",
    "encode": "hwsim.kernels.codes",
    "decode": "hwsim.kernels.codes",
    "all_values": "hwsim.kernels.codes",
    "matmul": "hwsim.kernels.gemm",
    "conv_output": "hwsim.kernels.convolution",
    "conv_grad_input": "hwsim.kernels.convolution",
    "conv_grad_weight": "hwsim.kernels.convolution",
    "select_topk": "hwsim.kernels.selection",
}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'hwsim.kernels' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value
