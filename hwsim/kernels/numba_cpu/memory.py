"""Arrays at addresses: one compiled call over the memory of many tensors, without an array object for each."""

from __future__ import annotations

from typing import Any

from numba import carray, types
from numba.extending import intrinsic

from hwsim.kernels.numba_cpu.compiled import compiled


@intrinsic
def _float_pointer(typing_context, address):  # type: ignore[no-untyped-def]
    target = types.CPointer(types.float32)

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.inttoptr(arguments[0], context.get_value_type(target))

    return target(types.int64), generate


@compiled
def floats_at(address: Any, count: Any) -> Any:
    """Return the `count` contiguous float32 at an address as an array; whoever owns them must outlive it."""
    return carray(_float_pointer(address), (count,))
