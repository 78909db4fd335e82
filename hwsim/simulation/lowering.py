"""From an op and its mapping to passes: what each pass loads, computes and stores, and how long each takes alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import NamedTuple

from hwsim.hardware.accelerator import Accelerator
from hwsim.hardware.mapping import FREE_AXIS, GemmWork, Mapping, ceil_div
from hwsim.hardware.mapping_cost import array_ticks, feed_bits, list_ticks, tile_bytes, unit_depth
from hwsim.simulation.program import TICKS_PER_CYCLE, Counts, Nodes, Pass, repeat


class Stream(NamedTuple):
    """Bytes that a pass brings on chip or takes off it: whole DRAM bursts, and bytes at the on-chip memories."""

    dram: int = 0
    chip: int = 0  # at the innermost memory; bytes held by the outermost on-chip memory come from there
    useful: int = 0  # of the DRAM bytes, those asked for

    def __add__(self, other: tuple[int, ...]) -> Stream:  # type: ignore[override]
        dram, chip, useful = other
        return Stream(self.dram + dram, self.chip + chip, self.useful + useful)


class _Segment(NamedTuple):
    """A run of equal turns of one loop."""

    turns: int
    size: int
    first: bool
    last: bool


NOTHING = Stream()


class RowGroup(NamedTuple):
    """Array rows that move in lockstep, each past a list of kept positions of its own."""

    length: int  # positions that stream past: the longest list, or the union of the lists
    values: int  # kept values of operand a in all lists
    fetched: int  # rows of operand b that are read: one a value, or one a position if the rows share them
    bytes: int  # of operand a in memory, indices included


def ticks_at(quantity: int, per_cycle: Fraction | float) -> int:
    """Ticks to move a quantity at so much per cycle, rounded up."""
    rate = per_cycle if isinstance(per_cycle, Fraction) else Fraction(per_cycle)
    return -(-quantity * TICKS_PER_CYCLE * rate.denominator // rate.numerator)


@dataclass(frozen=True)
class Lowering:
    """Turns work into passes for one machine."""

    machine: Accelerator

    @property
    def two_levels(self) -> bool:
        """Whether an outer on-chip memory stands between DRAM and the innermost one."""
        return len(self.machine.memories) > 1

    # ---- one pass

    def make_pass(
        self,
        load: Stream,
        store: Stream,
        compute: int,
        *,
        busy: int = 0,
        fill_drain: int = 0,
        port_wait: int = 0,
        vector_wait: int = 0,
        feed: tuple[int, int] = (0, 0),
        slots: int = 0,
    ) -> Pass:
        """A pass that loads, computes for so many ticks and stores; `feed` is what the unit reads and writes."""
        in_ticks, in_dram, in_outer = self._path_ticks(load)
        out_ticks, out_dram, out_outer = self._path_ticks(store)
        outer_read = load.chip + store.dram if self.two_levels else 0
        outer_written = load.dram + store.chip if self.two_levels else 0
        counts = Counts(
            dram_read=load.dram,
            dram_written=store.dram,
            dram_useful=load.useful + store.useful,
            outer_read=outer_read,
            outer_written=outer_written,
            inner_read=feed[0] + store.chip,
            inner_written=feed[1] + load.chip,
            busy=busy,
            fill_drain=fill_drain,
            port_wait=port_wait,
            vector_wait=vector_wait,
            dram_port=in_dram + out_dram,
            outer_port=in_outer + out_outer,
            slots=slots,
        )
        return Pass(in_ticks, compute, out_ticks, counts)

    def _path_ticks(self, stream: Stream) -> tuple[int, int, int]:
        """Ticks on the memory path (the slowest memory on it), and what DRAM and the outer memory need alone."""
        dram = ticks_at(stream.dram, self._dram_rate)
        outer = ticks_at(stream.chip, self._outer_rate) if self.two_levels else 0
        return max(dram, outer), dram, outer

    @cached_property
    def _dram_rate(self) -> Fraction:
        return self.machine.dram_bytes_per_cycle

    @cached_property
    def _outer_rate(self) -> Fraction:
        return Fraction(self.machine.outermost.bytes_per_cycle)

    @cached_property
    def _inner_rate(self) -> Fraction:
        return Fraction(self.machine.scratchpad.bytes_per_cycle)

    # ---- GEMMs

    def gemm(self, work: GemmWork, mapping: Mapping) -> Nodes:
        """The loop nest of a mapped GEMM, all groups."""
        tiles = dict(zip("mnk", mapping.tile, strict=True))
        loops = [(axis, _segments(work.extent(axis), tiles[axis])) for axis in mapping.order]
        self._operands.clear()
        return repeat(work.groups, self._nest(work, mapping, loops, {}))

    def _nest(
        self, work: GemmWork, mapping: Mapping, loops: list[tuple[str, list[_Segment]]], at: dict[str, _Segment]
    ) -> Nodes:
        if not loops:
            return (self._gemm_pass(work, mapping, at),)
        (axis, segments), *inner = loops
        nodes: Nodes = ()
        for segment in segments:
            nodes += repeat(segment.turns, self._nest(work, mapping, inner, {**at, axis: segment}))
        return nodes

    def _gemm_pass(self, work: GemmWork, mapping: Mapping, at: dict[str, _Segment]) -> Pass:
        m, n, k = (at[axis].size for axis in "mnk")
        load = store = NOTHING
        for name in "ab":
            first = at[FREE_AXIS[name]].first
            if first or name not in mapping.keep:
                load += self._known_operand(work, name, (m, n, k))
        if at["k"].last:
            store = self._known_operand(work, "c", (m, n, k))
        elif "c" not in mapping.keep:
            store = self._partial_sums(work, m, n)
        if not at["k"].first and "c" not in mapping.keep:
            load += self._partial_sums(work, m, n)
        read, written, again = feed_bits(self.machine.arrays, work, mapping.dataflow, m, n, k)
        read += 0 if at["k"].first else again
        feed = (read // 2048, written // 2048)
        results = m * n if at["k"].last else 0
        ticks = array_ticks(self.machine.arrays, work, mapping.dataflow, m, n, k)
        return self.tile_pass(work, ticks, load, store, feed, results)

    def tile_pass(
        self,
        work: GemmWork,
        ticks: tuple[int, int],
        load: Stream,
        store: Stream,
        feed: tuple[int, int],
        results: int,
    ) -> Pass:
        """One tile on the arrays, which takes `ticks` (fed, in all) of them.

        The innermost memory, or the vector unit behind the arrays, may be too slow for them.
        """
        busy, compute = ticks
        port = ticks_at(sum(feed), self._inner_rate)
        vector = ceil_div(results * work.epilogue.numerator, work.epilogue.denominator)
        latency = self.machine.scratchpad.latency_cycles * TICKS_PER_CYCLE
        depth, step = unit_depth(self.machine.arrays, work.rate)
        arrays = self.machine.arrays
        return self.make_pass(
            load,
            store,
            max(compute, port, vector) + latency,
            busy=busy,
            fill_drain=compute - busy + latency,
            port_wait=max(0, port - compute),
            vector_wait=max(0, vector - max(compute, port)),
            feed=feed,
            slots=busy * arrays.count * arrays.rows * arrays.cols * depth // step,
        )

    def _known_operand(self, work: GemmWork, name: str, tile: tuple[int, int, int]) -> Stream:
        """`_operand`, remembered within a GEMM: its passes have few different tiles."""
        key = (name, tile)
        if key not in self._operands:
            self._operands[key] = self._operand(work, name, tile)
        return self._operands[key]

    @cached_property
    def _operands(self) -> dict[tuple[str, tuple[int, int, int]], Stream]:
        return {}

    def _operand(self, work: GemmWork, name: str, tile: tuple[int, int, int]) -> Stream:
        operand = work.operand(name)
        m, n, k = tile
        elements = {"a": m * k, "b": k * n, "c": m * n}[name]
        if operand.on_chip:
            return Stream(0, operand.bytes_of(elements) if self.two_levels else 0, 0)
        moved = tile_bytes(work, name, tile, self.machine.dram.burst_bytes)
        useful = tile_bytes(work, name, tile, 1)
        return Stream(moved, min(moved, useful), useful)

    def _partial_sums(self, work: GemmWork, m: int, n: int) -> Stream:
        burst = self.machine.dram.burst_bytes
        size = ceil_div(m * n * work.sum_bits, 8)
        return Stream(ceil_div(size, burst) * burst, size, size)

    # ---- everything else

    def stream(
        self,
        load: Stream,
        store: Stream,
        compute: int,
        *,
        feed: tuple[int, int] = (0, 0),
        buffer_bytes: int,
    ) -> Nodes:
        """Work that passes once over its data, cut so that each buffer holds a piece of it.

        At least eight pieces where there is that much to move, so that loading, computing and storing overlap.
        """
        burst = self.machine.dram.burst_bytes
        moved = max(load.chip, load.dram) + max(store.chip, store.dram)
        pieces = max(1, min(max(ceil_div(moved, max(buffer_bytes, burst)), 8), ceil_div(moved, burst)))
        shares = [
            _share(load.dram // burst, pieces, burst),
            _share(load.chip, pieces),
            _share(load.useful, pieces),
            _share(store.dram // burst, pieces, burst),
            _share(store.chip, pieces),
            _share(store.useful, pieces),
            _share(compute, pieces),
            _share(feed[0], pieces),
            _share(feed[1], pieces),
        ]
        nodes: Nodes = ()
        for which, count in ((0, pieces - 1), (1, 1)):
            values = [share[which] for share in shares]
            one = self.make_pass(Stream(*values[0:3]), Stream(*values[3:6]), values[6], feed=(values[7], values[8]))
            nodes += repeat(count, (one,))
        return nodes

    def rows_skipped(self, work: GemmWork, groups: Sequence[RowGroup], columns: int, together: int) -> Nodes:
        """An output-stationary GEMM whose groups of array rows walk lists of their own.

        Operand b comes a slab of `columns` at a time, which stays while all row groups pass, `together` of them a pass.
        """
        nodes: Nodes = ()
        for segment in _segments(work.n, columns):
            nodes += repeat(segment.turns, tuple(self._slab(work, groups, segment.size, together)))
        return repeat(work.groups, nodes)

    def _slab(self, work: GemmWork, groups: Sequence[RowGroup], columns: int, together: int) -> Iterator[Pass]:
        arrays, burst = self.machine.arrays, self.machine.dram.burst_bytes
        load = self._operand(work, "b", (work.m, columns, work.k))
        for start in range(0, len(groups), together):
            part = groups[start : start + together]
            rows = min(len(part) * arrays.rows, work.m - start * arrays.rows)
            size = sum(group.bytes for group in part)
            if not work.a.on_chip:
                load += Stream(ceil_div(size, burst) * burst, size, size)
            elif self.two_levels:
                load += Stream(0, size, 0)
            values, fetched = sum(group.values for group in part), sum(group.fetched for group in part)
            folds = ceil_div(columns, arrays.cols)
            read = (values * folds * work.a.bits + fetched * columns * work.b.bits) // 2048
            written = ceil_div(rows * columns * work.sum_bits, 8)
            store = self._operand(work, "c", (rows, columns, work.k))
            ticks = list_ticks(arrays, work, [group.length for group in part], columns)
            yield self.tile_pass(work, ticks, load, store, (read, written), rows * columns)
            load = NOTHING


def _segments(extent: int, tile: int) -> list[_Segment]:
    """The turns of a loop as runs of equal ones: the first, those between, the last (which may be short)."""
    turns = ceil_div(extent, tile)
    last = extent - (turns - 1) * tile
    if turns == 1:
        return [_Segment(1, last, True, True)]
    middle = [_Segment(turns - 2, tile, False, False)] if turns > 2 else []
    return [_Segment(1, tile, True, False), *middle, _Segment(1, last, False, True)]


def _share(total: int, pieces: int, unit: int = 1) -> tuple[int, int]:
    """(each piece but the last, the last piece) of a total, in units."""
    each = total // pieces
    return each * unit, (total - each * (pieces - 1)) * unit
