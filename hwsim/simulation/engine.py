"""Workload x accelerator -> cycles and energy: schedules every recorded step, runs it, prices it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Literal

from hwsim.arithmetic.mac import Chunked, MacSpec
from hwsim.arithmetic.named import parse_format
from hwsim.arithmetic.number import NumberFormat
from hwsim.errors import SpecError
from hwsim.hardware import mapping as mappings
from hwsim.hardware.accelerator import ASSUMED_CYCLES, Accelerator, sources_of
from hwsim.hardware.energy import Range
from hwsim.hardware.mapping_search import SearchPrices
from hwsim.simulation import recurrence
from hwsim.simulation.gemm_work import Mapper
from hwsim.simulation.pricing import Prices
from hwsim.simulation.program import TICKS_PER_CYCLE, Counts, sum_counts, sum_ticks
from hwsim.simulation.recompute import recompute_activations
from hwsim.simulation.recurrence import JobTimes
from hwsim.simulation.result import STALL_CAUSES, OpResult, SimulationResult, StepResult, Traffic
from hwsim.simulation.schedule import schedule
from hwsim.simulation.sparsity import SPARSITIES, Sparsity
from hwsim.simulation.task import Step, Task
from hwsim.workload import Gemm, Op, OpKind, Phase, Tensor, Workload

Engine = Literal["fast", "events"]
Objective = Literal["cycles", "energy", "edp"]
Pins = mappings.Mapping | str | Mapping[str, mappings.Mapping | str] | None


def simulate(
    workload: Workload,
    accelerator: Accelerator,
    engine: Engine = "fast",
    *,
    sparsity: Sparsity = "real",
    objective: Objective = "cycles",
    mapping: Pins = None,
    activations: Literal["keep", "recompute"] = "keep",
) -> SimulationResult:
    """Run every recorded step of a workload on a machine.

    Args:
        workload: what the step does.
        accelerator: the machine.
        engine: "fast" (a max-plus recurrence) or "events" (SimPy processes): the same result, by test.
        sparsity: "real" prunes what this machine can; "ideal" lets pruned work vanish at no cost; "zeros" runs the
            dense step but skips recorded zeros of the streamed operand; "dense" ignores selections.
        objective: what the mapping search makes small.
        mapping: a mapping for every GEMM, or by op id pattern; the search decides the rest.
        activations: kept for the backward pass, or recomputed segment by segment.

    Raises:
        SpecError: a mapping or choice that cannot be read, or a GEMM that does not fit.
        UnsupportedError: the machine cannot multiply these formats.
    """
    _check_choice("engine", engine, ("fast", "events"))
    _check_choice("activations", activations, ("keep", "recompute"))
    source = _used(workload, sparsity)
    if activations == "recompute":
        source = recompute_activations(source)
    prices = Prices(accelerator)
    pin = _Pins(mapping)
    steps: list[StepResult] = []
    for scheduled in _plan(source, accelerator, sparsity, objective, pin, prices):
        steps.append(_run(scheduled, accelerator, prices, engine))
        if not source.selections and not _densities_matter(source, accelerator, sparsity):
            steps = [StepResult(n, steps[0].ops, steps[0].peak_memory_bytes) for n in source.recorded_steps]
            break
    return SimulationResult(
        workload=workload.name,
        accelerator=accelerator.name,
        engine=engine,
        sparsity=sparsity,
        clock_ghz=accelerator.clock.running_ghz,
        steps=tuple(steps),
        assumptions=_assumptions(accelerator, prices, sparsity),
        notes=_notes(source, steps[0], pin),
        hashes={"accelerator": _digest(repr(accelerator)), "energy_table": _digest(repr(prices.table))},
    )


def simulate_gemms(
    gemms: Iterable[tuple[int, int, int, str | NumberFormat]],
    accelerator: Accelerator,
    engine: Engine = "fast",
    *,
    objective: Objective = "cycles",
    mapping: Pins = None,
) -> SimulationResult:
    """Run dense GEMMs (m, n, k, operand format) one after the other, each on its own operands in DRAM."""
    return simulate(gemm_workload(gemms), accelerator, engine, objective=objective, mapping=mapping)


def gemm_workload(gemms: Iterable[tuple[int, int, int, str | NumberFormat]], name: str = "gemms") -> Workload:
    """A workload of independent GEMMs (m, n, k, operand format); results are stored in the operands' format."""
    tensors: dict[str, Tensor] = {}
    ops = []
    for index, (m, n, k, given) in enumerate(gemms):
        if min(m, n, k) < 1:
            raise SpecError(f"gemms[{index}]: got {m} x {n} x {k}, expected sizes of 1 or more")
        number = parse_format(given)
        id = f"gemm{index}"
        for side, shape in (("a", (m, k)), ("b", (k, n)), ("c", (m, n))):
            tensors[f"{id}.{side}"] = Tensor(f"{id}.{side}", "activation", shape, number)
        ops.append(
            Op(
                id,
                OpKind.GEMM,
                Phase.FORWARD,
                id,
                (f"{id}.a", f"{id}.b"),
                (f"{id}.c",),
                gemm=Gemm.OUTPUT,
                m=m,
                n=n,
                k=k,
                mac=MacSpec(order="accelerator"),
            )
        )
    if not ops:
        raise SpecError("gemms: got none, expected at least one (m, n, k, format)")
    return Workload(name, 1, tensors, tuple(ops))


def accumulation_orders(
    workload: Workload, accelerator: Accelerator, *, objective: Objective = "cycles", mapping: Pins = None
) -> dict[str, str]:
    """The order in which this machine accumulates each GEMM, by op id: what `order: accelerator` stands for."""
    step = next(plan_steps(workload, accelerator, objective=objective, mapping=mapping))
    return {task.op.id: task.order for task in step.tasks if task.order}


def plan_steps(
    workload: Workload,
    accelerator: Accelerator,
    *,
    sparsity: Sparsity = "real",
    objective: Objective = "cycles",
    mapping: Pins = None,
) -> Iterator[Step]:
    """The recorded steps as the jobs that the machine would execute, without executing them."""
    source = _used(workload, sparsity)
    return _plan(source, accelerator, sparsity, objective, _Pins(mapping), Prices(accelerator))


def _used(workload: Workload, sparsity: Sparsity) -> Workload:
    _check_choice("sparsity", sparsity, SPARSITIES)
    return workload.dense() if sparsity in ("dense", "zeros") else workload


def _plan(
    workload: Workload, machine: Accelerator, sparsity: Sparsity, objective: Objective, pin: _Pins, prices: Prices
) -> Iterator[Step]:
    _check_choice("objective", objective, ("cycles", "energy", "edp"))
    mapper = Mapper(machine, _search_prices(prices, machine, objective))
    for index in range(len(workload.recorded_steps)):
        yield schedule(workload, machine, index, sparsity, mapper, pin)


# ---- running a step


def _run(step: Step, machine: Accelerator, prices: Prices, engine: Engine) -> StepResult:
    jobs = [job for task in step.tasks for job in task.jobs]
    buffers = machine.scratchpad.buffers
    latency = round(machine.dram_latency_cycles * TICKS_PER_CYCLE)
    if engine == "events":
        from hwsim.simulation import processes

        times, counts = processes.run(jobs, buffers, latency)
    else:
        times, counts = recurrence.run(jobs, buffers, latency), [sum_counts(job.nodes) for job in jobs]
    if jobs:  # what the last op still stores belongs to its window
        times = [*times[:-1], times[-1]._replace(end=times[-1].done)]
    ops: list[OpResult] = []
    before = position = 0
    for task in step.tasks:
        span = slice(position, position + len(task.jobs))
        position += len(task.jobs)
        ops.append(_op_result(task, before, times[span], counts[span], machine, prices))
        before = times[span][-1].end if times[span] else before
    return StepResult(step.number, tuple(ops), step.peak_memory_bytes)


def _op_result(
    task: Task, before: int, times: Sequence[JobTimes], counts: Sequence[Counts], machine: Accelerator, prices: Prices
) -> OpResult:
    op = task.op
    start = before
    stalls = dict.fromkeys(STALL_CAUSES, 0)
    busy = 0
    for job, time, count in zip(task.jobs, times, counts, strict=True):
        found = _stalls(job.unit, before, time, count, sum_ticks(job.nodes)[1])
        busy += count.busy if job.unit == "array" else 0
        for cause, ticks in found.items():
            stalls[cause] += ticks
        before = time.end
    total = Counts(*(sum(column) for column in zip(*counts, strict=True))) if counts else Counts()
    launch = machine.launch.overhead_us if machine.launch is not None and machine.launch.per == "op" else 0.0
    launch_us = launch * task.launches
    if machine.launch is not None and machine.launch.per == "step" and start == 0 and task.launches:
        launch_us = machine.launch.overhead_us
    cycles = (before - start) / TICKS_PER_CYCLE
    time_us = cycles / machine.clock.running_ghz / 1e3 + launch_us
    return OpResult(
        id=op.id,
        layer=op.layer,
        phase=str(op.phase),
        gemm=str(op.gemm or ""),
        kind=str(op.kind),
        start_cycle=start / TICKS_PER_CYCLE,
        end_cycle=before / TICKS_PER_CYCLE,
        busy_cycles=busy / TICKS_PER_CYCLE,
        stalls={cause: ticks / TICKS_PER_CYCLE for cause, ticks in stalls.items() if ticks},
        ideal_cycles=float(task.ideal_ticks / TICKS_PER_CYCLE),
        macs=task.macs,
        mac_slots=total.slots,
        operations=sum(task.operations.values()) + task.compares,
        bytes=_traffic(total, machine),
        useful_dram_bytes=total.dram_useful,
        energy=_energy(task, total, prices, time_us),
        launch_us=launch_us,
        mapping=task.mapping,
        order=task.order,
        alone_cycles=task.alone_ticks / TICKS_PER_CYCLE,
        bound_cycles=task.bound_ticks / TICKS_PER_CYCLE,
    )


def _stalls(unit: str, before: int, time: JobTimes, count: Counts, compute: int) -> dict[str, int]:
    """Idle ticks of the arrays in a job's window, by the first cause that holds.

    The window lasts from the end of the computation before to the end of this one. Until the producers are complete
    the cause is the dependency; while another unit works it is that unit; the arrays' own fill, drain and slow port
    are known; the rest is waiting for data or for room: DRAM's if DRAM needs the port longer than the on-chip memory.
    """
    window = time.end - before
    computing = compute if unit != "memory" else 0  # a copy only moves data
    dependency = min(max(0, time.ready - before), window - computing)
    found = {"dependency": dependency}
    if unit == "array":
        found |= {"vector": count.vector_wait, "fill_drain": count.fill_drain, "scratchpad": count.port_wait}
    elif unit in ("vector", "select"):
        found["vector" if unit == "vector" else "selection"] = compute
    memory = "dram" if count.dram_port >= count.outer_port else "scratchpad"
    found[memory] = found.get(memory, 0) + window - dependency - computing
    return found


def _traffic(total: Counts, machine: Accelerator) -> dict[str, Traffic]:
    traffic = {
        "dram": Traffic(total.dram_read, total.dram_written),
        machine.scratchpad.name: Traffic(total.inner_read, total.inner_written),
    }
    if machine.outermost is not machine.scratchpad:
        traffic[machine.outermost.name] = Traffic(total.outer_read, total.outer_written)
    return traffic


def _energy(task: Task, total: Counts, prices: Prices, time_us: float) -> dict[str, Range]:
    energy = {}
    if task.mac_formats is not None:
        energy["mac"] = prices.mac(*task.mac_formats) * task.priced_macs
    if task.operations:
        energy["vector"] = prices.operations(task.operations, 1, task.operation_format)
    if task.compares:
        energy["select"] = prices.compare(task.compare_format) * task.compares
    energy |= prices.movement(total)
    energy["static"] = prices.static(time_us)
    return {name: price for name, price in energy.items() if price.high > 0}


# ---- choices and their record


class _Pins:
    """Mappings that the caller fixed, by op id pattern; remembers which were used."""

    def __init__(self, pins: Pins) -> None:
        if pins is None:
            pins = {}
        elif isinstance(pins, mappings.Mapping | str):
            pins = {"*": pins}
        self.rules = [
            (pattern, mappings.Mapping.parse(value) if isinstance(value, str) else value)
            for pattern, value in pins.items()
        ]
        self.used: set[str] = set()

    def __call__(self, op: Op) -> mappings.Mapping | None:
        for pattern, mapping in self.rules:
            if fnmatchcase(op.id, pattern):
                self.used.add(pattern)
                return mapping
        return None

    @property
    def unused(self) -> list[str]:
        """Patterns that matched no op."""
        return [pattern for pattern, _ in self.rules if pattern not in self.used]


def _check_choice(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise SpecError(f"{name}: got {value!r}, expected {', '.join(allowed)}")


def _search_prices(prices: Prices, machine: Accelerator, objective: Objective) -> SearchPrices:
    read, write = prices.memories[machine.scratchpad.name]
    return SearchPrices(objective, prices.dram.nominal, (read.nominal + write.nominal) / 2)


def _densities_matter(workload: Workload, machine: Accelerator, sparsity: Sparsity) -> bool:
    used = sparsity == "zeros" or machine.can("zero_skipping") or machine.can("zero_gating")
    return used and any(tensor.density for tensor in workload.tensors.values())


def _notes(workload: Workload, step: StepResult, pin: _Pins) -> tuple[str, ...]:
    """Where the plan that trained and the machine disagree, and pins that matched nothing."""
    notes = [f"mapping pinned for {pattern!r}, which matches no GEMM" for pattern in pin.unused]
    differing: dict[tuple[str, str], list[str]] = {}
    for op, found in zip(workload.ops, step.ops, strict=True):
        planned = _planned_order(op)
        if found.order and planned not in ("", "accelerator", "native", found.order):
            differing.setdefault((planned, found.order), []).append(op.id)
    for (planned, order), ids in differing.items():
        which = ids[0] if len(ids) == 1 else f"{ids[0]} and {len(ids) - 1} more"
        notes.append(f"{which}: trained with order {planned}, this machine accumulates in order {order}")
    return tuple(notes)


def _planned_order(op: Op) -> str:
    """The order in which training summed; a chunk that holds the whole GEMM is the sequential order."""
    if op.mac is None:
        return ""
    order = op.mac.order
    whole = isinstance(order, Chunked) and order.outer is None and order.size >= (op.k or 0)
    return "sequential" if whole else str(order)


def _assumptions(machine: Accelerator, prices: Prices, sparsity: Sparsity) -> tuple[tuple[str, str], ...]:
    found = [(f"{machine.name}: {block}", source) for block, source in sources_of(machine)]
    found.append((f"prices: energy table {prices.table.name}", prices.table.description or prices.table.name))
    cycles = ", ".join(f"{name} {count}" for name, count in ASSUMED_CYCLES.items())
    found.append((f"cycles of one vector lane unless the machine says otherwise: {cycles}", "assumed: pipelined units"))
    found.append(
        (
            "ops compute one after the other in the workload's order; loads of the next op are fetched ahead; units "
            "without work cost static power only; tiles and lines in DRAM start at a burst",
            "definition of the machine model",
        )
    )
    found.append(("convolutions are direct (implicit GEMM): no Winograd, no FFT", "definition of the machine model"))
    if sparsity == "ideal":
        found.append(("selection, gather and indices cost nothing; rows are balanced", "the bound called ideal"))
    if sparsity == "zeros":
        found.append(("zeros of the sparser operand are skipped, perfectly balanced", "the bound called zeros"))
    return tuple(found)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
