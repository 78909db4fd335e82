"""Two-dimensional operands in memory, as addresses and strides, and their rows shared among threads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from hwsim.kernels.numba_cpu.threads import pool

THREADED_WORK = 1 << 25  # multiply-accumulates from which rows are shared among threads
MULTIPLE = 12  # shares are multiples of the rows of a tile, 4 or 12


class Matrix(NamedTuple):
    """A two-dimensional operand in memory: sizes in elements, address and strides in bytes, `keep` holds its data."""

    address: int
    rows: int
    columns: int
    row: int
    column: int
    bits: int
    keep: Any


def matrix(x: Any) -> Matrix:
    """Return the memory of a numpy array or CPU tensor with two dimensions, float32 or float64, any strides."""
    if isinstance(x, np.ndarray):
        data = x.__array_interface__["data"][0]
        (rows, columns), (row, column) = x.shape, x.strides
        return Matrix(data, rows, columns, row, column, 8 * x.itemsize, x)
    size = x.element_size()
    (rows, columns), (row, column) = x.shape, x.stride()
    return Matrix(x.data_ptr(), rows, columns, row * size, column * size, 8 * size, x)


class Patches(NamedTuple):
    """Where the elements of a right operand stand that is never written out: values[k_places[k] + n_places[n]]."""

    values: np.ndarray  # flat
    k_places: np.ndarray  # int64, in elements
    n_places: np.ndarray

    def matrix(self) -> np.ndarray:
        """Return the operand written out, k x n."""
        return self.values[self.k_places[:, None] + self.n_places[None, :]]


def share_rows(share: Callable[[int, int], int], rows: int, work: int, workers: int) -> int:
    """Call share(first, last) over all rows, on `workers` threads if there is enough work; return the sum."""
    if workers < 2 or rows < 8 or work < THREADED_WORK:
        return share(0, rows)
    step = (-(-rows // workers) + MULTIPLE - 1) // MULTIPLE * MULTIPLE
    return sum(pool(workers).map(lambda begin: share(begin, min(begin + step, rows)), range(0, rows, step)))


def address_of(x: np.ndarray) -> int:
    """Return where an array's data starts."""
    return int(x.__array_interface__["data"][0])
