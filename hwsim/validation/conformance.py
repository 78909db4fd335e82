"""Conformance with SCALE-Sim's closed forms: the systolic timing without a memory limit, cycle for cycle."""

from __future__ import annotations

import random
from dataclasses import dataclass

from hwsim.hardware.accelerator import Accelerator
from hwsim.hardware.mapping import DATAFLOWS, Mapping
from hwsim.section import Column, Section, Table
from hwsim.simulation.bounds import gemm_of, scale_sim_cycles
from hwsim.simulation.engine import simulate_gemms
from hwsim.simulation.topology import ConvShape

GEMMS = 40  # of each dataflow
CONVOLUTIONS = 15
ARRAY_SIZES = (8, 16, 32, 128)


@dataclass(frozen=True)
class Agreement:
    """How many simulated cycle counts equal the closed form."""

    what: str
    dataflow: str
    cases: int
    equal: int


def without_memory_limit(machine: Accelerator, rows: int, cols: int) -> Accelerator:
    """The machine with one array of this size that fills and drains for every fold and never waits for memory."""
    arrays = machine.arrays.model_copy(
        update={
            "count": 1,
            "rows": rows,
            "cols": cols,
            "folds": "separate",
            "macs_per_cycle": {"float32": float(rows * cols)},
        }
    )
    memory = machine.scratchpad.model_copy(
        update={"capacity_kib": 1e9, "bytes_per_cycle": 1e9, "latency_cycles": 0, "resident_kib": 0.0}
    )
    dram = machine.dram.model_copy(update={"peak_gb_per_s": 1e9, "efficiency": 1.0, "latency_ns": 0.0})
    return machine.model_copy(update={"arrays": arrays, "memories": (memory,), "dram": dram})


def agreements(machine: Accelerator, seed: int) -> list[Agreement]:
    """Random GEMMs and convolutions (their sizes rounded up, as SCALE-Sim does) against the closed forms."""
    rng = random.Random(seed)
    found = []
    for dataflow in DATAFLOWS:
        gemms = [(rng.randint(1, 300), rng.randint(1, 300), rng.randint(1, 300)) for _ in range(GEMMS)]
        layers = [
            ConvShape(
                "layer",
                rng.randint(1, 32),
                (rng.randint(8, 40), rng.randint(8, 40)),
                rng.randint(1, 64),
                (rng.choice((1, 3, 5)),) * 2,
                (rng.choice((1, 2)),) * 2,
                round_up=True,
            )
            for _ in range(CONVOLUTIONS)
        ]
        for what, shapes in (("GEMMs", gemms), ("convolutions", [gemm_of(layer) for layer in layers])):
            equal = sum(_is_equal(machine, shape, dataflow, rng) for shape in shapes)
            found.append(Agreement(what, dataflow, len(shapes), equal))
    return found


def _is_equal(machine: Accelerator, shape: tuple[int, int, int], dataflow: str, rng: random.Random) -> bool:
    rows, cols = rng.choice(ARRAY_SIZES), rng.choice(ARRAY_SIZES)
    whole = Mapping(dataflow, shape, "mnk", "abc")  # type: ignore[arg-type]
    cycles = simulate_gemms([(*shape, "float32")], without_memory_limit(machine, rows, cols), mapping=whole).cycles
    # SCALE-Sim names the last cycle, counting from 0; ours are a length and the few ticks that transfers take.
    return int(cycles) == scale_sim_cycles(*shape, rows, cols, dataflow) + 1


def conformance_section(machine: Accelerator, seed: int) -> Section:
    """The agreement as a part of the page."""
    found = agreements(machine, seed)
    cases, equal = sum(a.cases for a in found), sum(a.equal for a in found)
    return Section(
        title="Conformance: SCALE-Sim's cycles without a bandwidth limit",
        verdict="passed" if cases == equal else "failed",
        text=(
            f"{equal} of {cases} random GEMMs and convolutions take exactly the cycles of SCALE-Sim's closed form on "
            "arrays of 8 to 128 rows and columns that fill and drain for every fold. This is agreement with another "
            "simulator's rule, not accuracy: no chip was measured here."
        ),
        tables=(
            Table(
                title="Simulated cycles equal to the closed form",
                columns=(
                    Column(name="cases"),
                    Column(name="dataflow"),
                    Column(name="compared", kind="number", digits=0),
                    Column(name="equal", kind="number", digits=0),
                ),
                rows=tuple((a.what, a.dataflow.replace("_", " "), a.cases, a.equal) for a in found),
                source=(
                    "closed forms: equal to SCALE-Sim v3's own output on 78 GEMMs and 66 convolutions; "
                    "convolution sizes are rounded up as it does (round_up)"
                ),
            ),
        ),
    )
