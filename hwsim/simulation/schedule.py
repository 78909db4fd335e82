"""From one recorded step of a workload to the jobs that a machine executes, op by op.

Here it is decided what each op takes before anything runs: which tensors come from where, which mapping lays a GEMM on
the arrays, and which ops need no time of their own (gathers and scatters that happen while loading and storing,
element-wise ops that hide behind the GEMM whose results they take).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from collections.abc import Mapping as MappingType
from dataclasses import replace
from fractions import Fraction

from hwsim.arithmetic.mac import MacSpec
from hwsim.arithmetic.number import NumberFormat
from hwsim.errors import SpecError
from hwsim.hardware.accelerator import Accelerator
from hwsim.hardware.mapping import ALL, AXES_OF, GemmWork, Mapping, ceil_div
from hwsim.hardware.mapping_cost import chip_elements, footprint_bytes, room_bytes
from hwsim.simulation.bounds import bound_ticks
from hwsim.simulation.gemm_work import (
    Mapped,
    Mapper,
    accumulation_order,
    priced_macs,
    rows_nodes,
    useful_macs,
    work_of,
)
from hwsim.simulation.lowering import Stream, ticks_at
from hwsim.simulation.program import TICKS_PER_CYCLE, Counts, Job, Nodes, Pass, split_first, sum_ticks
from hwsim.simulation.sparsity import Kept, Sparsity
from hwsim.simulation.step_tensors import StepTensors
from hwsim.simulation.task import FLOAT32, Step, Task
from hwsim.simulation.tiled_gemm import tiled_nodes
from hwsim.workload import Op, OpKind, Selection, Workload

# A mapping that the caller wants for an op, or none.
Pin = Callable[[Op], Mapping | None]


def schedule(workload: Workload, machine: Accelerator, step: int, sparse: Sparsity, mapper: Mapper, pin: Pin) -> Step:
    """The tasks of the recorded step with index `step`."""
    return _Scheduler(workload, machine, step, sparse, mapper, pin).run()


class _Scheduler:
    def __init__(
        self, workload: Workload, machine: Accelerator, step: int, sparse: Sparsity, mapper: Mapper, pin: Pin
    ) -> None:
        self.workload = workload
        self.machine = machine
        self.mapper = mapper
        self.pin = pin
        self.lowering = mapper.lowering
        self.tensors = StepTensors(workload, mapper.lowering, step, sparse)
        self.step = step
        self.index = 0  # of the op at hand
        self.jobs = 0
        self.writer: dict[str, int] = {}  # tensor -> index of the job that wrote it last
        self.forwarded: frozenset[str] = frozenset()  # results of the last op that this one takes as they come
        self.hidden = 0  # ticks of the last op's computation behind which this one may hide
        self.behind: dict[int, str] = {}  # ops fused into the passes of a GEMM -> its id
        self.last_job = -1
        self.selected: dict[str, int] = {}  # selection -> the job that made it
        self.copied: dict[str, int] = {}  # operands of the GEMM at hand that were copied first -> the job that did

    def run(self) -> Step:
        """All tasks, in order."""
        tasks = []
        for index, op in enumerate(self.workload.ops):
            self.index, self.copied = index, {}
            access = self.tensors.accesses[index]
            task = Task(op)
            for spilled in self.tensors.placements[index].spills:
                self._add(task, "memory", self._stream(Stream(), self.tensors.whole(spilled), 0), ())
            if index in self.behind:
                self._fused(op, task)
            elif access.reads or access.writes:
                task.launches = 1
                self._lower(op, task)
                self.last_job = self.jobs - 1
                self.forwarded = frozenset(t for t in op.writes if self.tensors.fuses(t, index))
            for tensor in access.writes:
                self.writer[tensor] = self.last_job
            tasks.append(task)
        return Step(self.workload.recorded_steps[self.step], tuple(tasks), self.tensors.peak_bytes)

    def _lower(self, op: Op, task: Task) -> None:
        if op.kind is OpKind.GEMM:
            self._gemm(op, task)
        elif op.kind is OpKind.SELECT:
            self._select(op, task)
        elif op.kind is OpKind.TRANSPOSE and self.machine.transpose == "port":
            task.launches = 0
        elif op.kind in (OpKind.GATHER, OpKind.SCATTER, OpKind.TRANSPOSE):
            self._copy(op, task)
        else:
            self._vector(op, task)

    def _add(self, task: Task, unit: str, nodes: Nodes, reads: tuple[str, ...], early: int = 0) -> None:
        needs = {self.writer[tensor] for tensor in map(self.tensors.source, reads) if tensor in self.writer}
        needs |= {self.copied[tensor] for tensor in reads if tensor in self.copied}
        selected = self.selected.get(task.op.selection or "")
        if selected is not None and self.tensors.kept(task.op) is not None:
            needs.add(selected)  # what is fetched depends on the indices
            early = 0
        task.jobs.append(Job(task.op.id, unit, nodes, early, tuple(sorted(needs))))
        self.jobs += 1

    def _is_early(self, tensor: str) -> bool:
        """Whether a tensor does not come from the op just before, so that it can be fetched ahead."""
        return tensor not in self.copied and self.writer.get(self.tensors.source(tensor), -2) < self.jobs - 1

    def _stream(self, load: Stream, store: Stream, compute: int, feed: tuple[int, int] = (0, 0)) -> Nodes:
        room = room_bytes(self.machine, self.tensors.placements[self.index].resident_bytes)
        buffer = max(1, room // (2 * self.machine.scratchpad.buffers))
        return self.lowering.stream(load, store, compute, feed=feed, buffer_bytes=buffer)

    # ---- everything but GEMMs

    def _vector(self, op: Op, task: Task) -> None:
        """One pass of the vector unit; behind an op whose results it takes it hides as far as it is not slower."""
        tensors = self.tensors
        reads = tuple(t for t in op.reads if t not in self.forwarded)
        load, store = tensors.reading(reads, self.index), tensors.writing(op.writes, self.index)
        feed = sum(tensors.size(t) for t in reads), sum(tensors.size(t) for t in op.writes)
        share = tensors.shares.get(op.reads[0], Fraction(1)) if op.kind is OpKind.CAST else Fraction(1)
        elements = math.ceil(op.elements * share)
        operations = self._count_operations(op, task, elements)
        port = ticks_at(sum(feed), self.machine.scratchpad.bytes_per_cycle)
        compute = max(self._vector_ticks(operations, elements), port)
        if len(reads) < len(op.reads):
            compute, self.hidden = max(0, compute - self.hidden), max(0, self.hidden - compute)
        else:
            self.hidden = 0
        nodes = self._stream(load, store, compute, feed)
        early = split_first(nodes)[0].load if all(self._is_early(t) for t in reads) else 0
        self._add(task, "vector", nodes, op.reads, early)

    def _vector_ticks(self, operations: MappingType[str, int], elements: int) -> int:
        cycles = sum(count * self.machine.vector.cycles_of(name) for name, count in operations.items())
        return ticks_at(math.ceil(elements * cycles), self.machine.vector.lanes)

    def _copy(self, op: Op, task: Task) -> None:
        """A gather, scatter or transpose as a copy through the chip."""
        tensors, stored = self.tensors, self.workload.tensors
        kept = tensors.kept(op)
        load = tensors.reading(op.reads[1:], self.index)
        source = op.reads[0]
        if op.kind is OpKind.GATHER and kept is not None and tensors.prunes(kept):
            useful = math.ceil(stored[source].bytes * kept.share)
            spread = tensors.spread(stored[source], kept)
            load += self._bytes(useful, spread) if not tensors.on_chip(source, self.index) else Stream()
        else:
            load += tensors.reading((source,), self.index)
        store = tensors.writing(op.writes, self.index)
        self._add(task, "memory", self._stream(load, store, self._through_port(max(load.chip, store.chip))), op.reads)

    def _bytes(self, useful: int, spread: Fraction = Fraction(1)) -> Stream:
        burst = self.machine.dram.burst_bytes
        return Stream(math.ceil(useful * spread / burst) * burst, useful, useful)

    def _through_port(self, size: int) -> int:
        """Ticks to write so many bytes to the innermost memory and to read them again."""
        return ticks_at(2 * size, self.machine.scratchpad.bytes_per_cycle)

    def _select(self, op: Op, task: Task) -> None:
        """Scores are summed (over the batch, where that is the scope), the largest found, their indices stored."""
        tensors = self.tensors
        kept = Kept(self.workload.selections[op.selection or ""], self.step)
        selection = kept.selection
        sums = {name: count for name, count in op.operations.items() if name != "compare"}
        task.operations = {name: count * op.elements for name, count in sums.items()}
        # Sums of magnitudes are ranked in float32, magnitudes of one row as they are stored.
        task.compare_format = self.workload.tensors[op.reads[0]].format if kept.by_example else FLOAT32
        scanned = selection.extent * (selection.rows if kept.by_example else 1)
        passes, compares = self._scan(task.compare_format, selection, scanned)
        ticks = self._vector_ticks(sums, op.elements)
        if self.machine.select is not None:
            task.compares = compares
            ticks += ticks_at(passes * scanned, self.machine.select.elements_per_cycle)
        else:
            task.operations["compare"] = compares
            ticks += self._vector_ticks({"compare": 1}, passes * scanned)
        load, store = tensors.reading(op.reads, self.index), tensors.writing(op.writes, self.index)
        feed = sum(tensors.size(t) for t in op.reads), sum(tensors.size(t) for t in op.writes)
        self._add(task, "select", self._stream(load, store, ticks, feed), op.reads)
        self.selected[op.selection or ""] = self.jobs - 1

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

    def _chain(self, op: Op) -> list[int]:
        """Ops that can be fused into a GEMM's passes: element-wise, one after the other, on its results alone."""
        kept = self.tensors.kept(op)
        if self.machine.tiled is not None or (kept is not None and kept.by_example):
            return []
        chain: list[int] = []
        ops, index, result = self.workload.ops, self.index, op.writes[0]
        while self.tensors.fuses(result, index) and set(ops[index + 1].reads) == {result}:
            index += 1
            chain.append(index)
            result = ops[index].writes[0]
        return chain

    def _fused(self, op: Op, task: Task) -> None:
        """Time and bytes of a fused op are those of the GEMM; its operations are its own."""
        task.mapping = f"fused behind {self.behind[self.index]}"
        self._count_operations(op, task, op.elements)
        self.forwarded = frozenset(t for t in op.writes if self.tensors.fuses(t, self.index))

    def _count_operations(self, op: Op, task: Task, elements: int) -> dict[str, int]:
        operations = dict(op.operations) or {"add": 1}
        task.operations = {name: count * elements for name, count in operations.items()}
        stored = self.workload.tensors
        task.operation_format = _widest([stored[t].format for t in (*op.reads, *op.writes)])
        return operations

    def _gemm(self, op: Op, task: Task) -> None:
        tensors, stored = self.tensors, self.workload.tensors
        chain = self._chain(op)
        self.behind.update(dict.fromkeys(chain, op.id))
        ops = self.workload.ops
        leaving = [t for index in (self.index, *chain) for t in ops[index].writes if not tensors.stays(t, index)]
        ticks = sum(self._vector_ticks(dict(ops[i].operations) or {"add": 1}, ops[i].elements) for i in chain)
        epilogue = Fraction(ticks, op.m * op.n * op.groups)
        a, b = (stored[t].format for t in op.reads[:2])
        rate = self.mapper.rate_of(a, b)
        work = work_of(op, self.index, tensors, rate, self.forwarded, leaving, epilogue)
        task.macs, task.priced_macs = useful_macs(op, tensors, work), priced_macs(op, tensors, work)
        task.mac_formats = (op.mac or MacSpec(), a, b)
        task.ideal_ticks = Fraction(task.macs * TICKS_PER_CYCLE) / (self.machine.arrays.count * rate)
        work = self._copies_before(op, task, work)
        nodes = self._with_extras(op, task, self._gemm_nodes(op, task, work))
        self._add(task, "array", nodes, op.reads, self._early_part(op, work, nodes))
        self.hidden = sum_ticks(nodes)[1]

    def _gemm_nodes(self, op: Op, task: Task, work: GemmWork) -> Nodes:
        if self.machine.tiled is not None:
            return tiled_nodes(op, work, self.machine, self.workload, task, self.lowering)
        room = room_bytes(self.machine, self.tensors.placements[self.index].resident_bytes)
        kept = self.tensors.kept(op)
        if kept is not None and kept.by_example and self.tensors.prunes(kept) and self.tensors.sparse == "real":
            nodes, task.mapping = rows_nodes(op, kept, work, self.mapper, room)
            task.order = "sequential"
            return nodes
        pinned = self.pin(op)
        mapped = self.mapper.choose(work, room) if pinned is None else self._pinned(op, work, pinned, room)
        task.mapping, task.order = str(mapped.mapping), accumulation_order(self.machine, work, mapped.mapping)
        task.alone_ticks, task.bound_ticks = mapped.ticks, bound_ticks(work, self.machine)
        return mapped.nodes

    def _pinned(self, op: Op, work: GemmWork, pinned: Mapping, room: int) -> Mapped:
        mapping = pinned.clipped(work)
        taken = footprint_bytes(work, mapping, self.machine.scratchpad.buffers)
        if taken > room:
            raise SpecError(
                f"mapping of {op.id}: {mapping} takes {taken} bytes of {self.machine.scratchpad.name}, "
                f"{self.machine.name} has {room} for tiles"
            )
        return self.mapper.map(work, mapping)

    def _copies_before(self, op: Op, task: Task, work: GemmWork) -> GemmWork:
        """Operands that the machine must copy first: read across their layout, or rows picked from the weights.

        The GEMM then reads the copies, which lie in DRAM as it wants them.
        """
        tensors = self.tensors
        self.copied = {}
        for side, crosses, tensor in zip("ab", op.transposed, op.reads, strict=False):
            operand = work.operand(side)
            if crosses and self.machine.transpose == "copy" and tensor not in self.forwarded:
                load, size = tensors.reading((tensor,), self.index), tensors.size(tensor)
            elif operand.picked and tensors.sparse == "real" and not self.machine.can("gather"):
                size = operand.bytes_of(work.k * work.n)
                lines = ceil_div(operand.bytes_of(work.n), self.machine.dram.burst_bytes)
                moved = work.k * lines * self.machine.dram.burst_bytes
                load = tensors.chip_only(tensor) if operand.on_chip else Stream(moved, size, size)
            else:
                continue
            self._add(task, "memory", self._stream(load, self._bytes(size), self._through_port(size)), (tensor,))
            task.launches += 1
            self.copied[tensor] = self.jobs - 1
            along = operand.contiguous if operand.picked else AXES_OF[side].replace(operand.contiguous, "")
            copy = replace(operand, contiguous=along, on_chip=False, picked=False, spread=ALL)
            work = replace(work, a=copy) if side == "a" else replace(work, b=copy)
        return work

    def _with_extras(self, op: Op, task: Task, nodes: Nodes) -> Nodes:
        """What else comes with the first load: the bias (one addition a result), the indices of a gathered operand."""
        tensors = self.tensors
        load = tensors.reading([t for t in op.reads[2:] if t not in self.forwarded], self.index)
        if len(op.reads) > 2:
            task.operations["add"] = (len(op.reads) - 2) * op.m * op.n * op.groups
        kept = tensors.kept(op)
        if kept is not None and not kept.by_example and op.reads[0] in tensors.virtual and tensors.sparse == "real":
            load += self._bytes(
                ceil_div(kept.count * (self.machine.sparsity.index_bits if self.machine.sparsity else 16), 8)
            )
        if load == Stream():
            return nodes
        first, rest = split_first(nodes)
        extra = self.lowering.make_pass(load, Stream(), 0)
        counts = Counts(*(x + y for x, y in zip(first.counts, extra.counts, strict=True)))
        return (Pass(first.load + extra.load, first.compute, first.store, counts), *rest)

    def _early_part(self, op: Op, work: GemmWork, nodes: Nodes) -> int:
        """Ticks of the first load that belong to operands which nothing under way is writing."""
        first = split_first(nodes)[0].load
        loaded = [name for name in "ab" if not work.operand(name).on_chip]
        late = [
            name for name, tensor in zip("ab", op.reads, strict=False) if name in loaded and not self._is_early(tensor)
        ]
        if len(late) == len(loaded) or not all(self._is_early(t) for t in op.reads[2:]):
            return 0 if late or not loaded else first
        whole = (work.m, work.n, work.k)
        share = {name: work.operand(name).bytes_of(chip_elements(work, name, whole)) for name in loaded}
        return first * sum(share[name] for name in loaded if name not in late) // max(1, sum(share.values()))


def _widest(formats: list[NumberFormat]) -> NumberFormat:
    """The format in which the vector unit computes: the widest it reads or writes; of equals a float."""
    return max(formats, key=lambda number: (number.bits_per_element, number.kind == "float"))
