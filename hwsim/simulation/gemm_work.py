"""A GEMM op as the machine meets it: extents after selection, operands and where they are, useful and priced MACs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from hwsim.arithmetic.mac import MacSpec
from hwsim.arithmetic.number import NumberFormat
from hwsim.errors import SpecError
from hwsim.hardware.accelerator import Accelerator
from hwsim.hardware.mapping import ALL, GemmWork, Mapping, Operand, ceil_div
from hwsim.hardware.mapping_cost import fold_axes, unit_depth
from hwsim.hardware.mapping_search import SearchPrices, search
from hwsim.simulation import recurrence, sparsity
from hwsim.simulation.lowering import Lowering, RowGroup
from hwsim.simulation.program import TICKS_PER_CYCLE, Job, Nodes
from hwsim.simulation.sparsity import Kept
from hwsim.simulation.step_tensors import StepTensors
from hwsim.workload import Gemm, Op

# Mappings whose estimate is within this of the best one are executed to see which is really the fastest.
WORTH_TRYING = 1.05

# The search computes in 64-bit integers, up to 2^20 times the number of elements of an operand.
MOST_ELEMENTS = 1 << 42

# Row groups that walk lists are passed in about so many buffers for each slab of the other operand.
PASSES_A_SLAB = 64


class Mapped(NamedTuple):
    """A GEMM with its mapping: the passes, and their ticks alone on an idle machine."""

    mapping: Mapping
    nodes: Nodes
    ticks: int


class Mapper:
    """Chooses mappings and remembers them: the same GEMM under the same conditions is searched once."""

    def __init__(self, machine: Accelerator, prices: SearchPrices) -> None:
        self.machine = machine
        self.prices = prices
        self.lowering = Lowering(machine)
        self.latency = round(machine.dram_latency_cycles * TICKS_PER_CYCLE)
        self._chosen: dict[tuple[GemmWork, int], Mapped] = {}
        self._rates: dict[tuple[NumberFormat, NumberFormat], Fraction] = {}

    def rate_of(self, a: NumberFormat, b: NumberFormat) -> Fraction:
        """MACs per cycle of one array for these operand formats."""
        if (a, b) not in self._rates:
            self._rates[a, b] = self.machine.arrays.rate_of(a, b)
        return self._rates[a, b]

    def choose(self, work: GemmWork, room: int) -> Mapped:
        """The best mapping for `room` bytes; of the search's best estimates for cycles the fastest is taken.

        Recorded steps differ a little in how kept positions scatter over bursts. That is rounded for the search, so
        that their GEMMs share one mapping, and exact in what is executed.
        """
        spread = work.a.spread
        alike = work if spread == ALL else replace(work, a=replace(work.a, spread=Fraction(round(spread * 4), 4)))
        key = (alike, room)
        if key not in self._chosen:
            ranked = search(alike, self.machine, room, self.prices)
            tried = [item for item in ranked if item.score <= WORTH_TRYING * ranked[0].score]
            if self.prices.objective != "cycles":
                tried = tried[:1]
            self._chosen[key] = min((self.map(alike, item.mapping) for item in tried), key=lambda found: found.ticks)
        found = self._chosen[key]
        return found if alike == work else self.map(work, found.mapping)

    def map(self, work: GemmWork, mapping: Mapping) -> Mapped:
        """A GEMM with a given mapping."""
        nodes = self.lowering.gemm(work, mapping)
        return Mapped(mapping, nodes, self.nodes_alone(nodes))

    def nodes_alone(self, nodes: Nodes) -> int:
        """Ticks of these passes alone on an idle machine."""
        return recurrence.run([Job("gemm", "array", nodes)], self.machine.scratchpad.buffers, self.latency)[0].done


@dataclass(frozen=True)
class Shape:
    """Extents of a GEMM after selection, and what became of its axes."""

    m: int
    n: int
    k: int
    rows_picked: bool = False  # rows of c (and a) are those kept
    terms_picked: bool = False  # positions of k are those kept


def shape_of(op: Op, tensors: StepTensors) -> Shape:
    """Extents that this machine works on. Example scope shrinks them only in the ideal: rows are then balanced."""
    kept = tensors.kept(op)
    if kept is None or not tensors.prunes(kept):
        return Shape(op.m, op.n, op.k)
    if kept.by_example:
        if tensors.sparse != "ideal":
            return Shape(op.m, op.n, op.k)
        return Shape(op.m, op.n, max(1, math.ceil(op.k * kept.share)))
    if op.selected_axis == "k":
        return Shape(op.m, op.n, max(1, math.ceil(op.k * kept.share)), terms_picked=True)
    return Shape(max(1, math.ceil(op.m * kept.share)), op.n, op.k, rows_picked=True)


def work_of(
    op: Op,
    index: int,
    tensors: StepTensors,
    rate: Fraction,
    forwarded: frozenset[str],
    stored: Sequence[str],
    epilogue: Fraction,
) -> GemmWork:
    """The GEMM of op number `index`, at `rate` MACs per cycle of one array.

    `forwarded` are results that come without being loaded. `stored` are the tensors that its results leave as, its own
    and those of ops fused behind it, which take `epilogue` ticks a result.

    Raises:
        SpecError: an operand of more than MOST_ELEMENTS elements.
    """
    known = tensors.workload.tensors
    shape = shape_of(op, tensors)
    if max(shape.m * shape.k, shape.k * shape.n, shape.m * shape.n) > MOST_ELEMENTS:
        raise SpecError(
            f"{op.id}: got a GEMM of m, n, k = {shape.m}, {shape.n}, {shape.k}, "
            f"expected operands of 2^42 elements at most"
        )
    a, b = known[op.reads[0]].format, known[op.reads[1]].format
    conv = op.conv
    return GemmWork(
        shape.m,
        shape.n,
        shape.k,
        op.groups,
        Operand(
            bits256(a),
            "m" if op.transposed[0] else "k",
            op.reads[0] in forwarded or tensors.on_chip(op.reads[0], index),
            spread=tensors.spread_of(op.reads[0]),
            conv=conv if op.gemm is Gemm.OUTPUT else None,
        ),
        Operand(
            bits256(b),
            "k" if op.transposed[1] else "n",
            op.reads[1] in forwarded or tensors.on_chip(op.reads[1], index),
            picked=shape.terms_picked,
            conv=conv if op.gemm is Gemm.GRAD_WEIGHT else None,
        ),
        Operand(
            sum(bits256(known[tensor].format) for tensor in stored) or bits256(known[op.writes[0]].format),
            "n",
            not stored,
            picked=shape.rows_picked,
            conv=conv if op.gemm is Gemm.GRAD_INPUT else None,
        ),
        (op.mac or MacSpec()).accumulator.bits,
        rate,
        _fed(op, tensors),
        epilogue,
    )


def _fed(op: Op, tensors: StepTensors) -> Fraction:
    """Share of the positions that take array time where zeros of the sparser operand are skipped.

    Zeros that a selection put there are gone already, so only the other operand's count then.
    """
    if tensors.sparse != "zeros" and not (tensors.sparse == "real" and tensors.machine.can("zero_skipping")):
        return ALL
    sides = op.reads[:2] if tensors.kept(op) is None else op.reads[1:2]
    return min(tensors.density(side) for side in sides)


def useful_macs(op: Op, tensors: StepTensors, work: GemmWork) -> int:
    """MACs of the op without padding, without pruned positions, and without skipped zeros."""
    kept = tensors.kept(op)
    macs = Fraction(op.m * op.n * op.k * op.groups)
    if kept is not None:
        macs *= kept.share
    return math.ceil(macs * unpadded_share(op) * work.fed)


def priced_macs(op: Op, tensors: StepTensors, work: GemmWork) -> int:
    """MACs that cost energy: all that the arrays execute, padding included; with zero gating those without a zero."""
    kept = tensors.kept(op)
    executed = Fraction(work.m * work.n * work.k * work.groups) * work.fed
    if kept is not None and kept.by_example and tensors.prunes(kept) and tensors.sparse == "real":
        executed *= kept.share  # lanes whose list has ended do nothing
    if tensors.sparse == "real" and tensors.machine.can("zero_gating"):
        executed *= tensors.density(op.reads[1]) / (work.fed if work.fed != 1 else 1)
        if kept is None:
            executed *= tensors.density(op.reads[0])
        elif kept.by_example and not tensors.prunes(kept):
            executed *= kept.share
    return math.ceil(executed)


def unpadded_share(op: Op) -> Fraction:
    """Share of a convolution's MACs that touch the image rather than its padding."""
    conv = op.conv
    if conv is None:
        return Fraction(1)
    share = Fraction(1)
    for axis in (0, 1):
        inside = 0
        for tap in range(conv.kernel[axis]):
            offset = tap * conv.dilation[axis] - conv.padding[axis]
            lowest = max(0, ceil_div(-offset, conv.stride[axis]))
            highest = min(conv.out_size[axis] - 1, (conv.in_size[axis] - 1 - offset) // conv.stride[axis])
            inside += max(0, highest - lowest + 1)
        share *= Fraction(inside, conv.kernel[axis] * conv.out_size[axis])
    return share


def rows_nodes(op: Op, kept: Kept, work: GemmWork, mapper: Mapper, room: int) -> tuple[Nodes, str]:
    """Example scope on a machine that skips: each group of array rows walks its own lists, or the union of them.

    Rows with lists of their own fetch their own rows of operand b, so skipping asks more of the innermost memory than
    sharing a union does.
    """
    machine = mapper.machine
    rows = machine.arrays.rows
    lists = sparsity.row_lengths(op, kept)
    values = [int(part.sum()) for part in np.split(lists, range(rows, len(lists), rows))]
    own = machine.can("row_skipping")
    lengths = sparsity.group_lengths(lists, rows) if own else sparsity.union_lengths(op, kept, rows)
    index_bits = machine.sparsity.index_bits if machine.sparsity else 16
    groups = [
        RowGroup(length, count, count if own else length, ceil_div(count * (work.a.bits + index_bits * 256), 2048))
        for length, count in zip(lengths, values, strict=True)
    ]
    how = "row_skipping" if own else "tile_union"
    # Results of the row groups in flight take a quarter of the room, the slab of operand b half of it.
    group_bytes = ceil_div(rows * work.n * work.sum_bits, 8) * machine.scratchpad.buffers
    together = max(1, min(ceil_div(len(groups), PASSES_A_SLAB), room // (4 * group_bytes)))
    narrowest = min(work.n, machine.arrays.cols)
    widest = narrowest
    while widest < work.n and work.b.bytes_of(work.k * min(work.n, 2 * widest)) <= room // 2:
        widest = min(work.n, 2 * widest)
    tried = {columns: mapper.lowering.rows_skipped(work, groups, columns, together) for columns in (narrowest, widest)}
    columns, nodes = min(tried.items(), key=lambda item: mapper.nodes_alone(item[1]))
    return nodes, f"{how} output_stationary rows={rows}x{together} columns={columns}"


def accumulation_order(machine: Accelerator, work: GemmWork, mapping: Mapping) -> str:
    """The order of accumulation that a mapping implies, in the words of a MacSpec.

    With the reduced axis along the rows, each column of the array sums `rows` x depth products from 0, and these sums
    join the result one after the other; output stationary units add what streams past, `depth` products at a time.
    A tile of k that is no multiple of the chunk breaks the pattern: a smaller tile is the chunk, a larger one gives an
    order that a MacSpec has no name for ("").
    """
    depth, _ = unit_depth(machine.arrays, work.rate)
    row_axis, _, _ = fold_axes(mapping.dataflow)
    chunk = machine.arrays.rows * depth if row_axis == "k" else depth
    tile = mapping.tile[2]
    if tile < work.k and tile % chunk:
        if tile > chunk:
            return ""
        chunk = tile
    return "sequential" if chunk <= 1 or chunk >= work.k else f"chunked({chunk})"


def machine_order(machine: Accelerator, a: NumberFormat, b: NumberFormat) -> str:
    """The order in which a machine accumulates every GEMM of these operand formats: what `order: accelerator` means.

    A GEMM shorter than a chunk gives the same values in order, since a chunk starts from 0 and joins a sum of 0.

    Raises:
        SpecError: the order depends on the GEMM; `accumulation_orders` tells it for each op of a workload.
    """
    if machine.tiled is not None or machine.arrays.dataflow == "any":
        raise SpecError(
            f"order: accelerator: {machine.name} chooses how to accumulate for each GEMM; name an order or a chip's "
            f"MAC in the plan, or a machine with one arrays.dataflow (such as weight_stationary_32x32)"
        )
    depth, _ = unit_depth(machine.arrays, machine.arrays.rate_of(a, b))
    chunk = machine.arrays.rows * depth if fold_axes(machine.arrays.dataflow)[0] == "k" else depth
    return "sequential" if chunk == 1 else f"chunked({chunk})"


def bits256(number: NumberFormat) -> int:
    """Bits of a stored element, block scales included, times 256."""
    return round(number.bits_per_element * 256)
