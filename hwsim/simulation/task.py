"""What one op of one step does on the machine: jobs to execute, and what of them is counted and priced."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction

from hwsim.arithmetic.mac import MacSpec
from hwsim.arithmetic.named import parse_format
from hwsim.arithmetic.number import NumberFormat
from hwsim.simulation.program import Job
from hwsim.workload import Op

FLOAT32 = parse_format("float32")


@dataclass
class Task:
    """One op, scheduled."""

    op: Op
    jobs: list[Job] = field(default_factory=list)
    macs: int = 0  # useful
    priced_macs: int = 0  # those that cost energy
    mac_formats: tuple[MacSpec, NumberFormat, NumberFormat] | None = None
    ideal_ticks: Fraction = Fraction(0)  # of the useful MACs at the machine's peak
    operations: dict[str, int] = field(default_factory=dict)  # of the vector unit, totals
    operation_format: NumberFormat = FLOAT32
    compares: int = 0  # of the select unit
    compare_format: NumberFormat = FLOAT32
    mapping: str = ""
    order: str = ""  # of accumulation
    alone_ticks: int = 0  # of the mapped GEMM on an idle machine
    bound_ticks: int = 0  # which no mapping can beat
    launches: int = 0
    launch_us: float = 0.0  # beyond the machine's overhead per launch


@dataclass(frozen=True)
class Step:
    """A recorded step, scheduled."""

    number: int
    tasks: tuple[Task, ...]
    peak_memory_bytes: int
