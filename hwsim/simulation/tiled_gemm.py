"""From a GEMM op to passes on a machine that works through output tiles: one pass a step of the busiest array."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

from hwsim.hardware.accelerator import Accelerator
from hwsim.hardware.mapping import GemmWork, ceil_div
from hwsim.simulation.lowering import Lowering
from hwsim.simulation.program import Counts, Nodes, Pass, repeat, to_ticks
from hwsim.simulation.tiled import TiledPlan, TiledWork, convolution_work, plan
from hwsim.workload import Op, Workload

# Each operand byte that a program holds next to its MAC units is read this often: a tile is computed by 2 x 2 groups
# of threads that share its rows and columns (assumed; it moves energy only).
READS_OF_A_TILE_BYTE = 2


class Described(Protocol):
    """What a task learns about the way its op is laid out."""

    mapping: str
    order: str


def tiled_nodes(
    op: Op, work: GemmWork, machine: Accelerator, workload: Workload, task: Described, lowering: Lowering
) -> Nodes:
    """Passes of the op, all groups; says on the task how it is laid out and in which order sums are formed."""
    chosen = plan(tiled_work(op, work, machine, workload), machine)
    task.mapping = str(chosen)
    task.order = "sequential" if chosen.split_k == 1 else f"chunked({ceil_div(work.k, int(chosen.split_k))})"
    return nodes_of(chosen, machine, lowering)


def tiled_work(op: Op, work: GemmWork, machine: Accelerator, workload: Workload) -> TiledWork:
    """The op's GEMM with the extents that selection left, and without the bytes that are on chip already."""
    a, b, c = (
        0 if operand.on_chip else operand.bytes_of(elements) * work.groups
        for operand, elements in ((work.a, work.m * work.k), (work.b, work.k * work.n), (work.c, work.m * work.n))
    )
    if op.conv is None or op.gemm is None:
        wide = max(work.a.bits, work.b.bits) / 2048
        along = (work.a.contiguous == "k", work.b.contiguous == "k")
        return TiledWork(work.m, work.n, work.k, a, b, c, wide, float(work.rate), *along, groups=work.groups)
    formats = tuple(workload.tensors[tensor].format for tensor in (*op.reads[:2], op.writes[0]))
    whole = convolution_work(op.conv, op.gemm, machine, formats)  # type: ignore[arg-type]
    left = {axis: getattr(work, axis) / max(1, getattr(op, axis)) for axis in "mnk"}
    return replace(
        whole,
        m=max(1, round(whole.m * left["m"])),
        n=max(1, round(whole.n * left["n"])),
        k=max(1, round(whole.k * left["k"])),
        a_bytes=0 if work.a.on_chip else whole.a_bytes * min(1.0, left["m"] * left["k"]),
        b_bytes=0 if work.b.on_chip else whole.b_bytes * min(1.0, left["k"] * left["n"]),
        c_bytes=0 if work.c.on_chip else whole.c_bytes * min(1.0, left["m"] * left["n"]),
    )


def nodes_of(chosen: TiledPlan, machine: Accelerator, lowering: Lowering) -> Nodes:
    """The plan's pipeline as passes: `stages` steps, the last without overhead and with the tail as its store."""
    stages = int(chosen.stages)
    load, compute, busy = to_ticks(chosen.load), to_ticks(chosen.compute), to_ticks(chosen.busy)
    burst = machine.dram.burst_bytes
    read, written = (ceil_div(int(size), burst) * burst for size in (chosen.dram_read, chosen.dram_written))
    chip = int(chosen.chip_read)
    waiting = compute - busy
    share = machine.outermost.bytes_per_cycle
    port = to_ticks(chosen.chip_read / share / stages)
    per_stage = Counts(
        dram_read=read // stages,
        dram_written=written // stages,
        dram_useful=(read + written) // stages,
        outer_read=chip // stages if lowering.two_levels else 0,
        outer_written=read // stages if lowering.two_levels else 0,
        inner_read=READS_OF_A_TILE_BYTE * chip // stages,
        inner_written=chip // stages,
        busy=busy,
        fill_drain=max(0, waiting - max(0, port - busy)),
        port_wait=min(waiting, max(0, port - busy)),
        dram_port=load,
        outer_port=port if lowering.two_levels else 0,
        slots=int(chosen.busy * machine.arrays.count * chosen.macs_per_cycle),
    )
    # What integer division left over goes with the last step, so that totals are exact.
    rest = per_stage._replace(
        dram_read=read - per_stage.dram_read * (stages - 1),
        dram_written=written - per_stage.dram_written * (stages - 1),
        dram_useful=read + written - per_stage.dram_useful * (stages - 1),
    )
    overhead = to_ticks(chosen.overhead)
    between = per_stage._replace(fill_drain=per_stage.fill_drain + overhead)
    tail = to_ticks(chosen.tail)
    last = rest._replace(dram_port=load + tail)
    return (*repeat(stages - 1, (Pass(load, compute + overhead, 0, between),)), Pass(load, compute, tail, last))
