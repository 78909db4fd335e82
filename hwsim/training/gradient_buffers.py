"""Memory for weight gradients that outlives the step, so that a sparse step writes its few rows and nothing else.

A fresh full-size gradient has to be filled with zeros, or comes as pages that the system zeroes at first touch; for
top-k that takes longer than the products. Here the optimizer hands a gradient back after its update, and the next step
clears only the rows that were written.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

UNSHARED = 2  # references to an array that nobody holds but its buffer: that one, and the argument of the count


@dataclass(eq=False)
class GradientBuffer:
    """A matrix and which of its rows may hold something other than 0."""

    array: np.ndarray  # float32
    dirty: np.ndarray  # bool, one per row


class GradientBuffers:
    """The buffers of one training run. Whoever gets a tensor from here must not keep it beyond the update."""

    def __init__(self) -> None:
        self._free: dict[tuple[int, int], list[GradientBuffer]] = {}
        self._lent: list[tuple[GradientBuffer, Tensor]] = []

    def lend(self, shape: tuple[int, int]) -> tuple[Tensor, GradientBuffer]:
        """Return a tensor of this shape and its buffer, whose `dirty` the caller keeps up to what it writes."""
        free = self._free.get(shape)
        buffer = free.pop() if free else GradientBuffer(np.empty(shape, np.float32), np.ones(shape[0], bool))
        tensor = torch.from_numpy(buffer.array)
        # A second tensor of the same memory counts every write by torch into either of them. autograd adds gradients of
        # several uses (a recurrent layer's time steps) into memory that is nobody else's, and a hook may write as well.
        self._lent.append((buffer, tensor.detach()))
        return tensor, buffer

    def take_back(self) -> None:
        """Take back all memory that nobody holds any more; gradients must have been dropped."""
        while self._lent:
            buffer, watcher = self._lent.pop()
            if watcher._version:  # rows that we did not write may hold something
                buffer.dirty[:] = True
            del watcher  # it holds the array
            if sys.getrefcount(buffer.array) == UNSHARED:
                self._free.setdefault(buffer.array.shape, []).append(buffer)


def fresh(shape: tuple[int, int]) -> tuple[Tensor, GradientBuffer]:
    """Return a tensor of zeros as `GradientBuffers.lend` does, for one use."""
    buffer = GradientBuffer(np.zeros(shape, np.float32), np.zeros(shape[0], bool))
    return torch.from_numpy(buffer.array), buffer
