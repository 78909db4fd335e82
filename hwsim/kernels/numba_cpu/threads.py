"""Spreading one loop over threads: plain Python threads around compiled code that holds no interpreter lock.

No OpenMP or TBB is needed, and idle threads sleep: numba's and torch's own pools spin, and two spinning pools on the
same cores stall each other for whole scheduler slices.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise

MIN_SLICE = 1 << 20  # elements: below this a second thread costs more than it brings


@cache
def threads() -> int:
    """Return how many threads a kernel may use: NUMBA_NUM_THREADS or OMP_NUM_THREADS if set, else the cores at hand."""
    for name in ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS"):
        text = os.environ.get(name, "")
        if text.isdigit() and int(text) > 0:
            return int(text)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def pool(workers: int) -> ThreadPoolExecutor:
    """Return the process's one pool of worker threads."""
    return ThreadPoolExecutor(workers, thread_name_prefix="hwsim")


def run_slices(run: Callable[[int, int], None], size: int, min_slice: int = MIN_SLICE, multiple: int = 64) -> None:
    """Call run(start, stop) over slices that cover range(size), on several threads if there is enough work.

    No slice but the whole is shorter than `min_slice`; inner edges are multiples of `multiple`.
    """
    parts = max(1, min(threads(), size // min_slice))
    if parts == 1:
        run(0, size)
        return
    edges = [size * i // parts // multiple * multiple for i in range(parts)] + [size]
    futures = [pool(threads()).submit(run, a, b) for a, b in pairwise(edges[1:])]
    run(edges[0], edges[1])
    for future in futures:
        future.result()
