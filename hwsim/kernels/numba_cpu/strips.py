"""What the casts into block formats share: strips of whole blocks and their random words."""

from __future__ import annotations

import numba
import numpy as np
from numba import uint32

from hwsim.kernels.numba_cpu import rounding

FLOAT32_LARGEST = float(np.finfo(np.float32).max)
RUN = 1 << 16  # counters whose random words share `rounding.run_key`


def lanes_of(block: int, most: int = 64) -> int:
    """Return how many elements of a block are looked at together: the largest divisor of its length up to `most`."""
    return max(lanes for lanes in range(1, most + 1) if block % lanes == 0)


@numba.njit
def blocks_in_run(place, block, most):  # type: ignore[no-untyped-def]
    """Return how many blocks from `place` on may be done in one strip, and whether all their counters are of one run.

    A block across the edge of a run is a strip of its own.
    """
    whole = (RUN - (place & (RUN - 1))) // block
    return min(most, max(whole, 1)), whole > 0


@numba.njit
def word_at(index, keys):  # type: ignore[no-untyped-def]
    """Return the random word of one element from the (low, high) keys of every 2**32."""
    span = index >> 32
    return rounding.random_word(uint32(index), keys[span, 0], keys[span, 1])


@numba.njit
def counters(size):  # type: ignore[no-untyped-def]
    """Return 0, 1, 2, ...: the compiler takes an address that it needs anyway as the counter, lane by lane."""
    numbers = np.empty(size, np.uint32)
    for i in range(size):
        numbers[i] = i
    return numbers


@numba.njit
def without_infinity(value):  # type: ignore[no-untyped-def]
    """Return value as float64, +-the largest float32 for +-infinity."""
    wide = np.float64(value)
    return np.copysign(FLOAT32_LARGEST, wide) if abs(wide) == np.inf else wide
