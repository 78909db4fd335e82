"""What a recorded selection does to the ops of a step on a machine: extents, kept positions, shares of bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np

from hwsim.hardware.accelerator import Accelerator
from hwsim.workload import Gemm, Op, Selection

# How recorded selections are used: as the machine can; as if pruned work, and nothing else, vanished; not at all but
# skipping the zeros that are there anyway (ReLU); not at all.
Sparsity = Literal["real", "ideal", "zeros", "dense"]
SPARSITIES: tuple[Sparsity, ...] = ("real", "ideal", "zeros", "dense")


@dataclass(frozen=True)
class Kept:
    """One recorded step of a selection, counted."""

    selection: Selection
    step: int

    @property
    def by_example(self) -> bool:
        """Whether every row has kept positions of its own."""
        return self.selection.rank_over == "example"

    @property
    def count(self) -> int:
        """Kept positions, over all rows for example scope."""
        return len(self.selection.indices[self.step])

    @property
    def share(self) -> Fraction:
        """Kept positions over all positions."""
        rows = self.selection.rows if self.by_example else 1
        return Fraction(self.count, max(1, rows * self.selection.extent))

    @property
    def touched(self) -> Fraction:
        """Share of the positions that at least one row kept."""
        return Fraction(len(self.selection.union(self.step)), max(1, self.selection.extent))

    def scattering(self, element_bits: int, burst_bytes: int, run: int = 1) -> Fraction:
        """Bytes of the bursts that kept positions touch, over their own bytes; `run` elements lie at each position.

        Rows start at a burst. Counted from the recorded positions, not estimated.
        """
        indices = self.selection.indices[self.step].astype(np.int64)
        if not len(indices):
            return Fraction(1)
        useful = len(indices) * run * element_bits
        start = indices * (run * element_bits) // (burst_bytes * 8)
        end = ((indices + 1) * (run * element_bits) - 1) // (burst_bytes * 8)
        if self.by_example:
            rows = np.repeat(np.arange(self.selection.rows), np.diff(self.selection.offsets[self.step]))
            width = -(-self.selection.extent * run * element_bits // (burst_bytes * 8)) + 1
            start, end = start + rows * width, end + rows * width
        if run == 1:
            bursts = len(np.unique(start)) + int(np.count_nonzero(end != start))
        else:
            bursts = int(np.sum(end - start + 1))
        return max(Fraction(1), Fraction(bursts * burst_bytes * 8, useful))


def _pairs(op: Op, kept: Kept) -> tuple[np.ndarray, np.ndarray, int, int]:
    """Every kept (row, position) of the GEMM's pruned operand under example scope, and the extents of both.

    grad_input: a row is an example (a pixel of one, for a convolution), a position what it kept. grad_weight: a row is
    an output position, and its list the examples (pixels) that kept it.
    """
    selection = kept.selection
    position = selection.indices[kept.step].astype(np.int64)
    row = np.repeat(np.arange(selection.rows, dtype=np.int64), np.diff(selection.offsets[kept.step]))
    rows, positions = selection.rows, selection.extent
    if op.conv is not None and selection.extent != op.conv.out_channels:
        pixels = op.conv.out_size[0] * op.conv.out_size[1]
        row, position = row * pixels + position % pixels, position // pixels
        rows, positions = rows * pixels, op.conv.out_channels
    if op.gemm is Gemm.GRAD_WEIGHT:
        return position, row, positions, rows
    return row, position, rows, positions


def row_lengths(op: Op, kept: Kept) -> np.ndarray:
    """Positions that each row of the GEMM multiplies under example scope (int64, length m)."""
    row, _, rows, positions = _pairs(op, kept)
    counts = np.bincount(row, minlength=rows).astype(np.int64) * max(1, op.k // positions)
    return np.repeat(counts, max(1, op.m // rows))[: op.m]


def group_lengths(lengths: np.ndarray, rows: int) -> list[int]:
    """The longest list in each group of `rows` rows: they move in lockstep."""
    padded = np.zeros(-(-len(lengths) // rows) * rows, np.int64)
    padded[: len(lengths)] = lengths
    return [int(value) for value in padded.reshape(-1, rows).max(axis=1)]


def union_lengths(op: Op, kept: Kept, group: int) -> list[int]:
    """Positions that any of each `group` rows of the GEMM kept."""
    row, position, rows, positions = _pairs(op, kept)
    repeated = max(1, op.m // rows)  # rows of the GEMM that share one list
    keys = np.unique((row * repeated // group) * positions + position)
    counts = np.bincount(keys // positions, minlength=-(-op.m // group)) * max(1, op.k // positions)
    if repeated > 1:  # groups that start in the middle of a list
        return group_lengths(row_lengths(op, kept), group)
    return [int(count) for count in counts]


def can_skip_rows(machine: Accelerator) -> bool:
    """Whether example-scope selections save time on this machine."""
    return machine.can("row_skipping") or machine.can("tile_union")


def density(values: Sequence[float], step: int) -> Fraction:
    """Recorded density of a tensor in a step; 1 if it was not measured."""
    return Fraction(values[step]).limit_denominator(1 << 20) if step < len(values) else Fraction(1)
