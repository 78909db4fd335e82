"""The timeline of every resource as Chrome trace JSON, which ui.perfetto.dev and chrome://tracing open.

Rows are the memory port, the units, and the ops with their stalls. The first and last passes of each job are shown one
by one; the passes between, which repeat a pattern, are one slice that says how many they are.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hwsim.hardware.accelerator import Accelerator
from hwsim.simulation import recurrence
from hwsim.simulation.engine import Objective, Pins, plan_steps, simulate
from hwsim.simulation.program import TICKS_PER_CYCLE, Job, sum_counts
from hwsim.simulation.result import OpResult
from hwsim.simulation.sparsity import Sparsity
from hwsim.workload import Workload

ROWS = ("ops", "port", "array", "vector", "select", "memory")
FIRST_ROW = 2  # viewers take thread 0 for an idle one, and the thread that is numbered as its process for the main one


def trace(
    workload: Workload,
    accelerator: Accelerator,
    *,
    sparsity: Sparsity = "real",
    objective: Objective = "cycles",
    mapping: Pins = None,
    edge: int = 4,
) -> dict[str, Any]:
    """The timeline of the first recorded step; `edge` passes at each end of a job are shown one by one.

    Times are microseconds of the running clock, launch overhead not included.
    """
    step = next(plan_steps(workload, accelerator, sparsity=sparsity, objective=objective, mapping=mapping))
    jobs = [job for task in step.tasks for job in task.jobs]
    result = simulate(workload, accelerator, sparsity=sparsity, objective=objective, mapping=mapping)
    us = 1 / (TICKS_PER_CYCLE * accelerator.clock.running_ghz * 1e3)
    events = _headers(accelerator)
    events += [_op_event(op, accelerator.clock.running_ghz) for op in result.steps[0].ops if op.cycles]

    def log(job: int, what: str, start: int, end: int) -> None:
        row = "port" if what.split(maxsplit=1)[0] in ("load", "store", "port") else jobs[job].unit
        if end > start:
            name, kind = f"{jobs[job].name} {what}", what.split(maxsplit=1)[0]
            events.append(_slice(name, kind, row, start * us, end * us))

    latency = round(accelerator.dram_latency_cycles * TICKS_PER_CYCLE)
    times = recurrence.run(jobs, accelerator.scratchpad.buffers, latency, log, edge)
    events += _dram_counter(jobs, [time.end for time in times], us)
    return {
        "traceEvents": events,
        "displayTimeUnit": "ns",
        "otherData": {"workload": workload.name, "accelerator": accelerator.name, "cycles": result.cycles},
    }


def write_trace(path: Path | str, workload: Workload, accelerator: Accelerator, **choices: Any) -> None:
    """Write `trace` as JSON."""
    Path(path).write_text(json.dumps(trace(workload, accelerator, **choices), allow_nan=False), encoding="utf-8")


def _headers(machine: Accelerator) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = [{"name": "process_name", "ph": "M", "pid": 1, "args": {"name": machine.name}}]
    for number, row in enumerate(ROWS, FIRST_ROW):
        events.append({"name": "thread_name", "ph": "M", "pid": 1, "tid": number, "args": {"name": row}})
        events.append({"name": "thread_sort_index", "ph": "M", "pid": 1, "tid": number, "args": {"sort_index": number}})
    return events


def _slice(name: str, category: str, row: str, start_us: float, end_us: float, **args: Any) -> dict[str, Any]:
    """A slice in whole nanoseconds, the viewers' grain: rounded apart, neighbors would overlap and be dropped."""
    start = round(start_us * 1e3)
    return {
        "name": name,
        "cat": category,
        "ph": "X",
        "ts": start / 1e3,
        "dur": (round(end_us * 1e3) - start) / 1e3,
        "pid": 1,
        "tid": FIRST_ROW + ROWS.index(row),
        "args": args,
    }


def _op_event(op: OpResult, clock_ghz: float) -> dict[str, Any]:
    us = 1 / (clock_ghz * 1e3)
    stalls = {f"stall_{cause}_cycles": cycles for cause, cycles in op.stalls.items() if cycles}
    return _slice(
        op.id,
        op.phase,
        "ops",
        op.start_cycle * us,
        op.end_cycle * us,
        cycles=op.cycles,
        busy_cycles=op.busy_cycles,
        energy_pj=op.energy_pj,
        mapping=op.mapping,
        **stalls,
    )


def _dram_counter(jobs: Sequence[Job], ends: Sequence[int], us: float) -> list[dict[str, Any]]:
    """Mean DRAM traffic during each job's window, as a counter track."""
    events, before = [], 0
    for job, end in zip(jobs, ends, strict=True):
        counts = sum_counts(job.nodes)
        moved = counts.dram_read + counts.dram_written
        if end > before:
            rate = moved / ((end - before) * us * 1e3)
            events.append({"name": "DRAM", "ph": "C", "ts": before * us, "pid": 1, "args": {"GB/s": rate}})
            before = end
    events.append({"name": "DRAM", "ph": "C", "ts": before * us, "pid": 1, "args": {"GB/s": 0.0}})
    return events
