"""Memory that calls share one after the other: fresh pages cost as much as converting an operand into them.

Each thread has its own, so no lock is needed; what a call leaves there the next one overwrites.
"""

from __future__ import annotations

import threading

import numpy as np

LARGEST = 1 << 25  # bytes: a larger piece is given back after use
ALIGNMENT = 64

_own = threading.local()


def scratch(use: str, size: int) -> np.ndarray:
    """Return `size` bytes at a multiple of `ALIGNMENT`, contents undefined.

    They are the caller's until this thread asks again for the same `use`.
    """
    kept: dict[str, np.ndarray] = _own.__dict__
    found = kept.get(use)
    if found is None or len(found) < size:
        whole = np.empty(size + ALIGNMENT, np.uint8)
        begin = -whole.__array_interface__["data"][0] % ALIGNMENT
        found = whole[begin : begin + size]
        if size <= LARGEST:
            kept[use] = found
    return found[:size]
