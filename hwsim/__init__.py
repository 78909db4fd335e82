"""hwsim: train real networks in emulated arithmetic, and cost the same steps on an accelerator model.

The public names are loaded when first used, so that ``import hwsim`` costs nothing that a program does not need.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from hwsim.advice import advise
    from hwsim.arithmetic.mac import MacSpec
    from hwsim.arithmetic.named import parse_format
    from hwsim.arithmetic.storage import Cast
    from hwsim.arithmetic.variance_retention import accumulator_width
    from hwsim.assignment.procedure import assign
    from hwsim.catalog import (
        load_accelerator,
        load_experiment,
        load_model,
    )
    from hwsim.errors import HwsimError, SpecError, UnsupportedError
    from hwsim.pipeline import run
    from hwsim.simulation.engine import simulate
    from hwsim.training.plan import PrecisionPlan
    from hwsim.training.recipe import Recipe
    from hwsim.training.softmax_width import softmax_bits
    from hwsim.training.sparse import SparseBackprop
    from hwsim.workload import Workload

# name -> the module that defines it
_HOME = {
    # what a number is, and sums of them
    "Cast": "hwsim.arithmetic.storage",
    "accumulator_width": "hwsim.arithmetic.variance_retention",
    "MacSpec": "hwsim.arithmetic.mac",
    "named_mac": "hwsim.arithmetic.mac",
    "parse_format": "hwsim.arithmetic.named",
    # on tensors
    "backend": "hwsim.kernels.backends",
    "all_values": "hwsim.kernels",
    "decode": "hwsim.kernels",
    "encode": "hwsim.kernels",
    "matmul": "hwsim.kernels",
    "quantize": "hwsim.kernels",
    "select_topk": "hwsim.kernels",
    # training
    "PrecisionPlan": "hwsim.training.plan",
    "Recipe": "hwsim.training.recipe",
    "SparseBackprop": "hwsim.training.sparse",
    "softmax_bits": "hwsim.training.softmax_width",
    "emulate": "hwsim.training.emulation",
    "emulated": "hwsim.training.emulation",
    "train": "hwsim.training.loop",
    "advise": "hwsim.advice",
    # machines
    "Workload": "hwsim.workload",
    "simulate": "hwsim.simulation.engine",
    # files, and the whole path
    "load_accelerator": "hwsim.catalog",
    "load_experiment": "hwsim.catalog",
    "load_model": "hwsim.catalog",
    "run": "hwsim.pipeline",
    "assign": "hwsim.assignment.procedure",
    # errors
    "HwsimError": "hwsim.errors",
    "SpecError": "hwsim.errors",
    "UnsupportedError": "hwsim.errors",
}

__all__ = ["__version__", *_HOME]  # noqa: PLE0604 - the names stand in the table above


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'hwsim' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
