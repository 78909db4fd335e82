"""From one recorded step of a workload to the jobs that a machine executes, op by op.

Here it is decided what an op costs a machine before anything runs: which tensors come from where, what a selection
leaves of the extents, which mapping lays a GEMM on the arrays, and which ops need no time of their own (gathers and
scatters on a machine that does them while loading and storing, element-wise ops fused behind a GEMM).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction

from hwsim.arithmetic.mac import MacSpec
from hwsim.arithmetic.named import parse_format
from hwsim.arithmetic.number import NumberFormat
from hwsim.hardware import mapping as mappings
from hwsim.hardware.accelerator import Accelerator
from hwsim.hardware.mapping import GemmWork, Operand, SearchPrices, ceil_div, fold_axes, room_bytes, unit_depth
from hwsim.simulation import recurrence, sparsity
from hwsim.simulation.lowering import Lowering, Stream, ticks_at
from hwsim.simulation.program import TICKS_PER_CYCLE, Job, Nodes, Pass, split_first, sum_ticks
from hwsim.simulation.residency import Access, Placement, peak_bytes, place
from hwsim.simulation.sparsity import Kept, Sparsity
from hwsim.workload import Gemm, Op, OpKind, Selection, Tensor, Workload

FLOAT32 = parse_format("float32")

# A mapping that the caller wants for an op, or none.
Pin = Callable[[Op], mappings.Mapping | None]


@dataclass
class Task:
    """What one op of one step does on the machine."""

    op: Op
    jobs: list[Job] = field(default_factory=list)
    macs: int = 0  # useful
    priced_macs: int = 0  # those that cost energy
    mac_formats: tuple[MacSpec, NumberFormat, NumberFormat] | None = None
    ideal_ticks: Fraction = Fraction(0)
    operations: dict[str, int] = field(default_factory=dict)  # of the vector unit, totals
    operation_format: NumberFormat = FLOAT32
    compares: int = 0  # of the select unit
    compare_format: NumberFormat = FLOAT32
    mapping: str = ""
    order: str = ""
    launches: int = 0


@dataclass(frozen=True)
class Step:
    """A recorded step, scheduled."""

    number: int
    tasks: tuple[Task, ...]
    peak_memory_bytes: int


class Mapper:
    """Chooses mappings and remembers them: the same GEMM under the same conditions is searched once."""

    def __init__(self, machine: Accelerator, prices: SearchPrices) -> None:
        self.machine = machine
        self.prices = prices
        self.lowering = Lowering(machine)
        self.latency = round(machine.dram_latency_cycles * TICKS_PER_CYCLE)
        self._chosen: dict[tuple[GemmWork, int], mappings.Mapping] = {}

    def choose(self, work: GemmWork, room: int) -> mappings.Mapping:
        """The best mapping: the search's three best estimates are executed, the fastest is taken (or the cheapest)."""
        key = (work, room)
        if key not in self._chosen:
            ranked = mappings.search(work, self.machine, room, self.prices)
            if self.prices.objective == "cycles" and len(ranked) > 1:
                ranked.sort(key=lambda item: self.cycles_alone(work, item.mapping))
            self._chosen[key] = ranked[0].mapping
        return self._chosen[key]

    def cycles_alone(self, work: GemmWork, mapping: mappings.Mapping) -> int:
        """Ticks of the GEMM alone on an idle machine."""
        job = Job("gemm", "array", self.lowering.gemm(work, mapping))
        return recurrence.run([job], self.machine.scratchpad.buffers, self.latency)[0].done


def schedule(
    workload: Workload, machine: Accelerator, step: int, sparse: Sparsity, mapper: Mapper, pin: Pin
) -> Step:
    """The tasks of the recorded step with index `step`."""
    return _Scheduler(workload, machine, step, sparse, mapper, pin).run()


class _Scheduler:
    def __init__(
        self, workload: Workload, machine: Accelerator, step: int, sparse: Sparsity, mapper: Mapper, pin: Pin
    ) -> None:
        self.workload = workload
        self.machine = machine
        self.step = step
        self.sparse = sparse
        self.mapper = mapper
        self.pin = pin
        self.lowering = mapper.lowering
        self.shares: dict[str, Fraction] = {}  # tensor -> share of its elements that is stored
        self.virtual: dict[str, tuple[str, Kept | None]] = {}  # never stored by itself: read at its source
        self.accesses = [self._access(op) for op in workload.ops]
        self.placements = self._place()
        self.jobs = 0
        self.writer: dict[str, int] = {}  # tensor -> index of the job that wrote it last
        self.hidden = 0  # array ticks behind which a fused op may hide
        self.forwarded: set[str] = set()  # results that the next op takes as they come
        self.index = 0

    # ---- who reads and writes what

    def kept(self, op: Op) -> Kept | None:
        """The selection of an op in this step."""
        if op.selection is None or self.sparse in ("zeros", "dense"):
            return None
        return Kept(self.workload.selections[op.selection], self.step)

    def _gathers(self, kept: Kept) -> bool:
        """Whether gathers and scatters happen while loading and storing."""
        if self.sparse == "ideal":
            return True
        if kept.by_example:
            return sparsity.can_skip_rows(self.machine)
        return self.machine.can("gather")

    def _pruned(self, kept: Kept) -> bool:
        """Whether the machine can leave out what was not kept."""
        return self.sparse == "ideal" or not kept.by_example or sparsity.can_skip_rows(self.machine)

    def _access(self, op: Op) -> Access:
        """Tensors as this machine sees them: gathered copies that never exist are read at their source."""
        kept = self.kept(op)
        reads = tuple(dict.fromkeys(self.virtual[t][0] if t in self.virtual else t for t in op.reads))
        if op.kind is OpKind.GATHER and kept is not None:
            self.shares[op.writes[0]] = kept.share if self._pruned(kept) else Fraction(1)
            if self._gathers(kept):
                self.virtual[op.writes[0]] = (reads[0], kept)
                return Access((), ())
        elif op.kind is OpKind.CAST and op.reads[0] in self.shares:
            self.shares[op.writes[0]] = self.shares[op.reads[0]]
        elif op.gemm is Gemm.GRAD_WEIGHT and kept is not None and op.selected_axis == "m" and self._pruned(kept):
            self.shares[op.writes[0]] = kept.touched if kept.by_example else kept.share
        elif op.kind is OpKind.SCATTER and kept is not None:
            if self._gathers(kept) and op.reads[0] in self.shares:
                self.shares[op.writes[0]] = self.shares[op.reads[0]]
                self.virtual[op.writes[0]] = (op.reads[0], None)  # kept rows are stored where they belong
                return Access((), ())
        elif op.kind is OpKind.SELECT and self.sparse == "ideal":
            return Access((), ())
        return Access(reads, op.writes)

    def size(self, tensor: str) -> int:
        """Stored bytes of a tensor in this step."""
        share = self.shares.get(tensor, Fraction(1))
        return math.ceil(self.workload.tensors[tensor].bytes * share)

    def _place(self) -> list[Placement]:
        sizes = {tensor: self.size(tensor) for tensor in self.workload.tensors}
        self.persistent = frozenset(t.id for t in self.workload.tensors.values() if t.persistent)
        self.peak = peak_bytes(self.accesses, sizes, self.persistent)
        outer = self.machine.outermost
        return place(self.accesses, sizes, self.persistent, int(outer.resident_kib * 1024))

    # ---- ops to tasks

    def run(self) -> Step:
        tasks = []
        for self.index, op in enumerate(self.workload.ops):
            access = self.accesses[self.index]
            task = Task(op)
            for spilled in self.placements[self.index].spills:
                self._add(task, "memory", self._stream(Stream(), self._whole(spilled), 0), ())
            if access.reads or access.writes:
                self._lower(op, access, task)
            for tensor in access.writes:
                self.writer[tensor] = self.jobs - 1
            tasks.append(task)
        return Step(self.workload.recorded_steps[self.step], tuple(tasks), self.peak)

    def _lower(self, op: Op, access: Access, task: Task) -> None:
        task.launches = 1
        if op.kind is OpKind.GEMM:
            self._gemm(op, task)
            return
        self.hidden, hidden = 0, self.hidden
        if op.kind is OpKind.SELECT:
            self._select(op, access, task)
        elif op.kind in (OpKind.GATHER, OpKind.SCATTER, OpKind.TRANSPOSE):
            if op.kind is OpKind.TRANSPOSE and self.machine.transpose == "port":
                task.launches = 0
                return
            self._copy(op, access, task)
        else:
            self._vector(op, access, task, hidden)

    def _add(
        self, task: Task, unit: str, nodes: Nodes, reads: tuple[str, ...], early: int = 0
    ) -> None:
        needs = tuple(sorted({self.writer[t] for t in reads if t in self.writer}))
        task.jobs.append(Job(task.op.id, unit, nodes, early, needs))
        self.jobs += 1

    def _is_early(self, tensor: str) -> bool:
        """Whether a tensor does not come from the op just before, so that it can be fetched ahead."""
        return self.writer.get(tensor, -2) < self.jobs - 1

    # ---- bytes

    def _whole(self, tensor: str, spread: Fraction = Fraction(1)) -> Stream:
        """All bytes of a tensor, to or from DRAM."""
        size = self.size(tensor)
        burst = self.machine.dram.burst_bytes
        return Stream(math.ceil(size * spread / burst) * burst, size, size)

    def _reading(self, access: Access, op: Op) -> Stream:
        total = Stream()
        on_chip = self.placements[self.index].on_chip_reads
        for tensor in op.reads:
            if tensor in self.forwarded:
                continue
            source, kept = self.virtual.get(tensor, (tensor, None))
            size = self.size(tensor)
            if source in on_chip:
                one = Stream(0, size if self.lowering.two_levels else 0, 0)
            else:
                spread = self._spread(self.workload.tensors[source], kept) if kept is not None else Fraction(1)
                one = self._whole(tensor, spread)
            total = _add(total, one)
        return total

    def _writing(self, access: Access) -> Stream:
        total = Stream()
        for tensor in access.writes:
            if self._stays(tensor):
                one = Stream(0, self.size(tensor) if self.lowering.two_levels else 0, 0)
            else:
                one = self._whole(tensor)
            total = _add(total, one)
        return total

    def _stays(self, tensor: str) -> bool:
        """Whether a result needs no store: it stays on chip, or the next op takes it all and nobody else reads it."""
        if tensor in self.placements[self.index].on_chip_writes:
            return True
        if tensor in self.persistent or not self._fuses_next(tensor):
            return False
        return not any(tensor in access.reads for access in self.accesses[self.index + 2 :])

    def _fuses_next(self, tensor: str) -> bool:
        """Whether the next op is element-wise, takes this result first and can be fused behind it."""
        if not self.machine.vector.fused or self.index + 1 >= len(self.workload.ops):
            return False
        op, following = self.workload.ops[self.index], self.workload.ops[self.index + 1]
        if op.kind not in (OpKind.GEMM, OpKind.ELEMENTWISE, OpKind.CAST):
            return False
        if following.kind not in (OpKind.ELEMENTWISE, OpKind.CAST) or not following.reads:
            return False
        tensors = self.workload.tensors
        return following.reads[0] == tensor and tensors[tensor].elements == following.elements

    def _spread(self, tensor: Tensor, kept: Kept) -> Fraction:
        """Bytes of the bursts that kept positions touch, over their own."""
        if self.sparse == "ideal":
            return Fraction(1)
        elements = kept.selection.rows * kept.selection.extent
        run = max(1, tensor.elements // elements)
        return kept.scattering(int(tensor.format.bits_per_element), self.machine.dram.burst_bytes, run)

    # ---- everything but GEMMs

    def _stream(self, load: Stream, store: Stream, compute: int, feed: tuple[int, int] = (0, 0)) -> Nodes:
        room = room_bytes(self.machine, self.placements[self.index].resident_bytes)
        buffer = max(1, room // (2 * self.machine.scratchpad.buffers))
        return self.lowering.stream(load, store, compute, feed=feed, buffer_bytes=buffer)

    def _vector(self, op: Op, access: Access, task: Task, hidden: int) -> None:
        """One pass of the vector unit; behind a GEMM or another fused op it hides as far as it is not slower."""
        tensors = self.workload.tensors
        fused = bool(op.reads) and op.reads[0] in self.forwarded
        load, store = self._reading(access, op), self._writing(access)
        read = sum(self.size(t) for t in op.reads if t not in self.forwarded)
        written = sum(self.size(t) for t in access.writes)
        share = self.shares.get(op.reads[0], Fraction(1)) if op.kind is OpKind.CAST and op.reads else Fraction(1)
        elements = math.ceil(op.elements * share)
        operations = op.operations or {"add": 1}
        ticks = self._vector_ticks(operations, elements)
        port = ticks_at(read + written, self.machine.scratchpad.bytes_per_cycle)
        compute = max(ticks, port)
        if fused:
            compute, self.hidden = max(0, compute - hidden), max(0, hidden - compute)
        task.operations = {name: count * elements for name, count in operations.items()}
        task.operation_format = max((tensors[t].format for t in (*op.reads, *op.writes)), key=_arithmetic_bits)
        reads = tuple(t for t in access.reads)
        early = self._early(load, [t for t in op.reads if t not in self.forwarded])
        self._forward(op)
        self._add(task, "vector", self._stream(load, store, compute, (read, written)), reads, early)
        self._cap_early(task)

    def _forward(self, op: Op) -> None:
        self.forwarded = {t for t in op.writes if self._fuses_next(t)}

    def _early(self, load: Stream, reads: list[str]) -> int:
        """Ticks of the first load that may come early: all or nothing for streams."""
        if not load.dram or not all(self._is_early(t) for t in reads):
            return 0
        return -1  # the whole first load; known once it is cut

    def _cap_early(self, task: Task) -> None:
        job = task.jobs[-1]
        if job.early < 0:
            first = split_first(job.nodes)[0]
            task.jobs[-1] = Job(job.name, job.unit, job.nodes, first.load, job.needs)

    def _vector_ticks(self, operations: Mapping[str, int], elements: int) -> int:
        cycles = sum(count * self.machine.vector.cycles_of(name) for name, count in operations.items())
        return ticks_at(math.ceil(elements * cycles), self.machine.vector.lanes)

    def _copy(self, op: Op, access: Access, task: Task) -> None:
        """A gather, scatter or transpose as a copy through the chip."""
        kept = self.kept(op)
        self.forwarded = set()
        load = Stream()
        for tensor in access.reads:
            if tensor in self.placements[self.index].on_chip_reads:
                continue
            one = self._whole(tensor)
            if op.kind is OpKind.GATHER and kept is not None and tensor == op.reads[0] and self._pruned(kept):
                source = self.workload.tensors[tensor]
                useful = math.ceil(source.bytes * kept.share)
                moved = min(one.dram, math.ceil(useful * self._spread(source, kept)))
                burst = self.machine.dram.burst_bytes
                one = Stream(ceil_div(moved, burst) * burst, useful, useful)
            load = _add(load, one)
        store = self._writing(access)
        moved = max(load.chip, store.chip)
        port = ticks_at(2 * moved, self.machine.scratchpad.bytes_per_cycle)
        self._add(task, "memory", self._stream(load, store, port), access.reads)

    def _select(self, op: Op, access: Access, task: Task) -> None:
        """Scores (summed over the batch where that is the scope), then the largest are found, then indices are stored."""
        kept = Kept(self.workload.selections[op.selection or ""], self.step)
        if self.sparse in ("zeros", "dense"):
            return
        self.forwarded = set()
        selection = kept.selection
        score = self.workload.tensors[op.reads[0]].format
        sums = {name: count for name, count in op.operations.items() if name != "compare"}
        task.operations = {name: count * op.elements for name, count in sums.items()}
        task.compare_format = score if kept.by_example or score.bits > 32 else FLOAT32
        scanned = selection.extent * (selection.rows if kept.by_example else 1)
        passes, compares = self._scan(task.compare_format, selection, scanned)
        ticks = self._vector_ticks(sums, op.elements)
        if self.machine.select is not None:
            task.compares = compares
            ticks += ticks_at(passes * scanned, self.machine.select.elements_per_cycle)
        else:
            task.operations["compare"] = compares
            ticks += self._vector_ticks({"compare": 1}, passes * scanned)
        load, store = self._reading(access, op), self._writing(access)
        read, written = sum(self.size(t) for t in op.reads), sum(self.size(t) for t in access.writes)
        self._add(task, "select", self._stream(load, store, ticks, (read, written)), access.reads)

    def _scan(self, score: NumberFormat, selection: Selection, scanned: int) -> tuple[int, int]:
        """Passes over the scores, and compares in all of them."""
        unit = self.machine.select
        if unit is None or unit.method == "radix":
            passes = ceil_div(score.bits - 1, unit.digit_bits if unit else 8)
            return passes, passes * scanned
        limit = unit.kept_limit or 1
        passes = ceil_div(selection.kept, limit)
        rows = selection.rows if selection.rank_over == "example" else 1
        held = min(limit, selection.kept)
        # In random order the i-th score enters a heap of h with probability h / i: h (1 + ln(extent / h)) entries.
        entries = held * (1 + math.log(max(1.0, selection.extent / max(1, held))))
        return passes, passes * (scanned + math.ceil(rows * entries * math.log2(max(2, held))))

    # ---- GEMMs

    def _gemm(self, op: Op, task: Task) -> None:
        kept = self.kept(op)
        work, useful = self._work(op, kept)
        tensors = self.workload.tensors
        a, b = (tensors[t].format for t in op.reads[:2])
        mac = op.mac or MacSpec()
        task.macs = useful
        task.priced_macs = self._priced(op, work, useful)
        task.mac_formats = (mac, a, b)
        peak = self.machine.peak_macs_per_cycle(a, b)
        task.ideal_ticks = Fraction(useful * TICKS_PER_CYCLE) / peak
        self._transposes(op, task, work)
        room = room_bytes(self.machine, self.placements[self.index].resident_bytes)
        if self.machine.tiled is not None:
            nodes = self._tiled(op, work, task)
        elif kept is not None and kept.by_example and self._pruned(kept) and self.sparse == "real":
            nodes = self._rows(op, kept, work, task, room)
        else:
            pinned = self.pin(op)
            mapping = pinned.clipped(work) if pinned is not None else self.mapper.choose(work, room)
            task.mapping = str(mapping)
            task.order = accumulation_order(self.machine, work, mapping)
            nodes = self.lowering.gemm(work, mapping)
        nodes = self._with_extras(op, kept, nodes, task)
        early = self._early_operands(op, work, nodes)
        self._add(task, "array", nodes, tuple(t for t in self.accesses[self.index].reads), early)
        self.hidden = sum_ticks(nodes)[1]
        self._forward(op)

    def _work(self, op: Op, kept: Kept | None) -> tuple[GemmWork, int]:
        """The GEMM that the machine executes, and its useful MACs."""
        tensors = self.workload.tensors
        m, n, k = op.m, op.n, op.k
        share_m = share_k = Fraction(1)
        pruned = kept is not None and self._pruned(kept)
        if kept is not None and pruned and (not kept.by_example or self.sparse == "ideal"):
            if op.selected_axis == "k":
                k = math.ceil(k * kept.share)
                share_k = kept.share
            elif kept.by_example:  # every output position meets that share of the examples
                k = math.ceil(k * kept.share)
                share_k = kept.share
            else:
                m = math.ceil(m * kept.share)
                share_m = kept.share
        useful = op.m * op.n * op.k * op.groups
        if kept is not None:
            useful = math.ceil(useful * kept.share)
        if op.conv is not None:
            useful = math.ceil(useful * _unpadded(op))
        a_format, b_format = (tensors[t].format for t in op.reads[:2])
        c_format = tensors[op.writes[0]].format
        mac = op.mac or MacSpec()
        skip = self.sparse == "zeros" or (self.sparse == "real" and self.machine.can("zero_skipping"))
        fed = min((self._density(t) for t in op.reads[:2]), default=Fraction(1)) if skip else Fraction(1)
        if kept is not None:
            fed = self._density(op.reads[1]) if skip else Fraction(1)
        conv = op.conv
        work = GemmWork(
            max(1, m),
            n,
            max(1, k),
            op.groups,
            Operand(
                _bits256(a_format),
                "m" if op.transposed[0] else "k",
                self._on_chip(op.reads[0]),
                spread=self._operand_spread(op, kept),
                conv=conv if op.gemm is Gemm.OUTPUT else None,
            ),
            Operand(
                _bits256(b_format),
                "k" if op.transposed[1] else "n",
                self._on_chip(op.reads[1]),
                picked=share_k != 1 and op.gemm is Gemm.GRAD_INPUT,
                conv=conv if op.gemm is Gemm.GRAD_WEIGHT else None,
            ),
            Operand(
                _bits256(c_format),
                "n",
                self._stays(op.writes[0]),
                picked=share_m != 1,
                conv=conv if op.gemm is Gemm.GRAD_INPUT else None,
            ),
            mac.accumulator.bits,
            self.machine.arrays.rate_of(a_format, b_format),
            fed,
        )
        if skip:
            useful = math.ceil(useful * fed)
        return work, useful

    def _on_chip(self, tensor: str) -> bool:
        source = self.virtual[tensor][0] if tensor in self.virtual else tensor
        return source in self.placements[self.index].on_chip_reads or tensor in self.forwarded

    def _operand_spread(self, op: Op, kept: Kept | None) -> Fraction:
        """The kept gradient's elements lie scattered in their bursts if it is gathered while loading."""
        tensor = op.reads[0]
        if kept is None or tensor not in self.virtual:
            return Fraction(1)
        return self._spread(self.workload.tensors[self.virtual[tensor][0]], kept)

    def _density(self, tensor: str) -> Fraction:
        found = self.workload.tensors[tensor]
        return sparsity.density(found.density, self.step)

    def _priced(self, op: Op, work: GemmWork, useful: int) -> int:
        """MACs that cost energy: with zero gating only those without a zero operand."""
        executed = work.m * work.n * work.k * work.groups
        if work.fed != 1:
            executed = useful
        if self.sparse == "real" and self.machine.can("zero_gating"):
            share = self._density(op.reads[0]) * self._density(op.reads[1])
            kept = self.kept(op)
            if kept is not None:
                share = self._density(op.reads[1]) * (1 if work.k * work.m < op.k * op.m else kept.share)
            return math.ceil(executed * share)
        return min(executed, useful) if self.kept(op) is not None and op.conv is None and self._skips(op) else executed

    def _skips(self, op: Op) -> bool:
        kept = self.kept(op)
        return kept is not None and kept.by_example and self._pruned(kept)

    def _rows(self, op: Op, kept: Kept, work: GemmWork, task: Task, room: int) -> Nodes:
        """Example scope on a machine that skips: each group of array rows walks its own list (or the union of them)."""
        rows = self.machine.arrays.rows
        if self.machine.can("row_skipping"):
            lengths = sparsity.group_lengths(sparsity.row_lengths(op, kept), rows)
            how = "row_skipping"
        else:
            lengths = sparsity.union_lengths(op, kept, rows)
            how = "tile_union"
        index_bits = self.machine.sparsity.index_bits if self.machine.sparsity else 16
        total = kept.count * max(1, work.m * work.k // max(1, kept.selection.rows * kept.selection.extent))
        # Values and indices of each group's lists, in proportion to the recorded total.
        element = work.a.bits + index_bits * 256
        slots = max(1, sum(lengths))
        row_bytes = [ceil_div(total * length * element, slots * 2048) for length in lengths]
        columns = work.n
        while columns > self.machine.arrays.cols and work.b.bytes_of(work.k * columns) > room // 2:
            columns = max(self.machine.arrays.cols, columns // 2)
        task.mapping = f"{how} output_stationary rows={rows} columns={columns}"
        task.order = "sequential"
        return self.lowering.rows_skipped(work, lengths, row_bytes, columns)

    def _transposes(self, op: Op, task: Task, work: GemmWork) -> None:
        """Copies of operands that are read across their layout, on a machine whose ports cannot."""
        if self.machine.transpose == "port":
            if self.kept(op) is not None and work.b.picked and not self.machine.can("gather") and self.sparse == "real":
                self._pick_copy(op, task, work)
            return
        for crosses, tensor in zip(op.transposed, op.reads[:2], strict=True):
            if crosses and tensor not in self.forwarded:
                whole = self._whole(tensor)
                load = Stream() if self._on_chip(tensor) else whole
                port = ticks_at(2 * whole.chip, self.machine.scratchpad.bytes_per_cycle)
                self._add(task, "memory", self._stream(load, whole, port), (tensor,))
                task.launches += 1

    def _pick_copy(self, op: Op, task: Task, work: GemmWork) -> None:
        """The kept rows of the weights, copied together by a machine that cannot pick them while loading."""
        size = work.b.bytes_of(work.k * work.n)
        burst = self.machine.dram.burst_bytes
        moved = work.k * ceil_div(work.b.bytes_of(work.n), burst) * burst
        load = Stream() if work.b.on_chip else Stream(moved, size, size)
        store = Stream(ceil_div(size, burst) * burst, size, size)
        port = ticks_at(2 * size, self.machine.scratchpad.bytes_per_cycle)
        self._add(task, "memory", self._stream(load, store, port), (op.reads[1],))
        task.launches += 1

    def _with_extras(self, op: Op, kept: Kept | None, nodes: Nodes, task: Task) -> Nodes:
        """What else comes with the first load: the bias (one addition a result), the indices of a gathered operand."""
        load = Stream()
        for tensor in op.reads[2:]:
            task.operations["add"] = task.operations.get("add", 0) + op.m * op.n * op.groups
            if not self._on_chip(tensor):
                load = _add(load, self._whole(tensor))
        if kept is not None and op.reads[0] in self.virtual and not kept.by_example and self.sparse == "real":
            index_bits = self.machine.sparsity.index_bits if self.machine.sparsity else 16
            size, burst = ceil_div(kept.count * index_bits, 8), self.machine.dram.burst_bytes
            load = _add(load, Stream(ceil_div(size, burst) * burst, size, size))
        if load == Stream():
            return nodes
        first, rest = split_first(nodes)
        extra = self.lowering.make_pass(load, Stream(), 0)
        counts = first.counts._make(x + y for x, y in zip(first.counts, extra.counts, strict=True))
        return (Pass(first.load + extra.load, first.compute, first.store, counts), *rest)

    def _early_operands(self, op: Op, work: GemmWork, nodes: Nodes) -> int:
        """Ticks of the first load that belong to operands which nothing under way is writing."""
        first = split_first(nodes)[0]
        waiting = [t for t in op.reads if not self._is_early(self.virtual[t][0] if t in self.virtual else t)]
        if not waiting:
            return first.load
        if len(waiting) == len(op.reads) or not first.load:
            return 0
        late = [name for name, t in zip("ab", op.reads, strict=False) if t in waiting and not self._on_chip(t)]
        if not late:
            return first.load
        if len(late) == 2:
            return 0
        shares = {name: work.operand(name).bytes_of(mappings.chip_elements(work, name, (work.m, work.n, work.k))) for name in "ab"}
        other = "b" if late[0] == "a" else "a"
        if work.operand(other).on_chip:
            return 0
        return first.load * shares[other] // max(1, shares["a"] + shares["b"])

    def _tiled(self, op: Op, work: GemmWork, task: Task) -> Nodes:
        from hwsim.simulation.tiled_gemm import tiled_nodes  # noqa: PLC0415

        return tiled_nodes(op, work, self.machine, self.workload, task, self.lowering)


def accumulation_order(machine: Accelerator, work: GemmWork, mapping: mappings.Mapping) -> str:
    """The order of accumulation that a mapping implies, in the words of a MacSpec.

    With the reduced axis along the rows, each column of the array sums `rows` x depth products from 0, and these sums
    join the result one after the other; output stationary units add what streams past, `depth` products at a time.
    """
    depth, _ = unit_depth(machine.arrays, work.rate)
    row_axis, _, _ = fold_axes(mapping.dataflow)
    chunk = machine.arrays.rows * depth if row_axis == "k" else depth
    if chunk <= 1 or chunk >= work.k:
        return "sequential"
    return f"chunked({chunk})"


def _add(a: Stream, b: Stream) -> Stream:
    return Stream(a.dram + b.dram, a.chip + b.chip, a.useful + b.useful)


def _bits256(number: NumberFormat) -> int:
    return round(number.bits_per_element * 256)


def _arithmetic_bits(number: NumberFormat) -> float:
    return number.bits_per_element if number.kind != "fixed" else number.bits_per_element - 0.5


def _unpadded(op: Op) -> Fraction:
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
            highest = (conv.in_size[axis] - 1 - offset) // conv.stride[axis]
            inside += max(0, min(conv.out_size[axis] - 1, highest) - lowest + 1)
        share *= Fraction(inside, conv.kernel[axis] * conv.out_size[axis])
    return share
