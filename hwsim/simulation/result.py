"""What a simulation found: cycles, stalls by cause, bytes by memory and energy by component, for each op of each step.

Only what an op did is stored; every total is a sum over ops, computed when asked. The windows of the ops of a step
cut its makespan into pieces without gap or overlap, and in each window the busy cycles of the arrays and the stalls
add up to its length, so groupings by layer, phase or GEMM add up to the whole as well.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from hwsim.errors import SpecError
from hwsim.hardware.energy import Range

SCHEMA = "simulation/1"

# Every idle cycle of the arrays has the first of these causes that holds.
STALL_CAUSES = ("dependency", "selection", "vector", "dram", "scratchpad", "fill_drain")

ZERO = Range(0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Traffic:
    """Bytes through the port of one memory."""

    read: int = 0
    written: int = 0

    @property
    def total(self) -> int:
        """Bytes in both directions."""
        return self.read + self.written

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(self.read + other.read, self.written + other.written)


@dataclass(frozen=True)
class OpResult:
    """One op of one step. Times are cycles of the running clock from the start of the step."""

    id: str
    layer: str
    phase: str
    gemm: str  # "" unless kind == "gemm"
    kind: str
    start_cycle: float  # the op's window: from the end of the previous op's computation to the end of its own
    end_cycle: float
    busy_cycles: float  # the arrays are fed
    stalls: dict[str, float]  # cause -> idle cycles of the arrays, if any; busy + stalls = end - start
    ideal_cycles: float  # useful MACs at the peak rate of all arrays
    macs: int  # useful: padding and pruned positions are not counted
    operations: int  # elementary operations of the vector and select units
    bytes: dict[str, Traffic]  # memory name or "dram" -> moved bytes (whole bursts for DRAM)
    useful_dram_bytes: int
    energy: dict[str, Range]  # component -> pJ
    launch_us: float = 0.0
    mapping: str = ""  # how the op was laid on the machine, as printed and as accepted for pinning
    order: str = ""  # the order in which the arrays accumulated, as a MacSpec order
    alone_cycles: float = 0.0  # of a mapped GEMM by itself on an idle machine
    bound_cycles: float = 0.0  # which no mapping of it can beat there: the mapping is within alone / bound of optimal
    mac_slots: int = 0  # offered by the arrays while they were fed: macs / mac_slots is how well tiles fill them

    @property
    def cycles(self) -> float:
        """Length of the op's window."""
        return self.end_cycle - self.start_cycle

    @property
    def energy_pj(self) -> float:
        """Nominal energy of all components."""
        return sum(price.nominal for price in self.energy.values())


@dataclass(frozen=True)
class StepResult:
    """One recorded step on the machine."""

    step: int  # the training step at which the selection and densities were recorded
    ops: tuple[OpResult, ...]
    peak_memory_bytes: int  # the largest sum of tensors alive at once

    @property
    def cycles(self) -> float:
        """Makespan."""
        return self.ops[-1].end_cycle if self.ops else 0.0

    @property
    def energy_pj(self) -> float:
        """Nominal energy of the step."""
        return sum(op.energy_pj for op in self.ops)


@dataclass(frozen=True)
class Group:
    """What the ops of one group cost in a mean step."""

    cycles: float
    energy: Range
    macs: float

    @property
    def energy_pj(self) -> float:
        """Nominal energy."""
        return self.energy.nominal


@dataclass(frozen=True)
class Spread:
    """Mean and range over the recorded steps."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class SimulationResult:
    """A workload on an accelerator. Numbers without `step` in their name are means over the recorded steps."""

    workload: str
    accelerator: str
    engine: str  # "fast" or "events": equal by construction and by test
    sparsity: str  # how the recorded selections were used: "real", "ideal", "zeros" or "dense"
    clock_ghz: float
    steps: tuple[StepResult, ...]
    assumptions: tuple[tuple[str, str], ...] = ()  # (what was assumed, its source)
    notes: tuple[str, ...] = ()  # what a reader must know: plans that disagree with the machine, and the like
    hashes: dict[str, str] = field(default_factory=dict)  # of the workload, the machine and the price table

    @property
    def ops(self) -> tuple[OpResult, ...]:
        """The ops of the first recorded step."""
        return self.steps[0].ops

    def _mean(self, value: Callable[[StepResult], float]) -> float:
        return sum(value(step) for step in self.steps) / len(self.steps)

    def spread(self, value: Callable[[StepResult], float] = lambda step: step.cycles) -> Spread:
        """Mean, lowest and highest value over the recorded steps (of the cycles unless another value is named)."""
        values = [value(step) for step in self.steps]
        return Spread(sum(values) / len(values), min(values), max(values))

    @property
    def cycles(self) -> float:
        """Cycles of a step, launch overhead not included."""
        return self._mean(lambda step: step.cycles)

    @property
    def launch_us(self) -> float:
        """Launch overhead of a step."""
        return self._mean(lambda step: sum(op.launch_us for op in step.ops))

    @property
    def time_us(self) -> float:
        """Time of a step: cycles at the running clock plus launch overhead."""
        return self.cycles / self.clock_ghz / 1e3 + self.launch_us

    @cached_property
    def energy(self) -> dict[str, Range]:
        """Energy of a step in pJ by component."""
        return _mean_energy((op for step in self.steps for op in step.ops), len(self.steps))

    @property
    def energy_range(self) -> Range:
        """Energy of a step in pJ: low, nominal, high."""
        return _total(self.energy.values())

    @property
    def energy_pj(self) -> float:
        """Nominal energy of a step."""
        return self.energy_range.nominal

    @property
    def macs(self) -> float:
        """Useful MACs of a step."""
        return self._mean(lambda step: sum(op.macs for op in step.ops))

    @property
    def busy_cycles(self) -> float:
        """Cycles in which the arrays are fed."""
        return self._mean(lambda step: sum(op.busy_cycles for op in step.ops))

    @property
    def stalls(self) -> dict[str, float]:
        """Idle cycles of the arrays by cause; with `busy_cycles` they add up to `cycles`."""
        return {
            cause: self._mean(lambda step, cause=cause: sum(op.stalls.get(cause, 0.0) for op in step.ops))  # type: ignore[misc]
            for cause in STALL_CAUSES
        }

    @property
    def utilization(self) -> float:
        """Useful MACs as a share of what all arrays could have done in the cycles of the step."""
        ideal = self._mean(lambda step: sum(op.ideal_cycles for op in step.ops))
        return ideal / self.cycles if self.cycles else 0.0

    @property
    def bytes(self) -> dict[str, float]:
        """Moved bytes of a step by memory, both directions."""
        totals: dict[str, float] = {}
        for step in self.steps:
            for op in step.ops:
                for memory, traffic in op.bytes.items():
                    totals[memory] = totals.get(memory, 0) + traffic.total
        return {memory: total / len(self.steps) for memory, total in totals.items()}

    @property
    def useful_dram_bytes(self) -> float:
        """Bytes that the ops asked for, before rounding up to bursts."""
        return self._mean(lambda step: sum(op.useful_dram_bytes for op in step.ops))

    @property
    def peak_memory_bytes(self) -> int:
        """The largest sum of tensors alive at once, over all recorded steps."""
        return max(step.peak_memory_bytes for step in self.steps)

    def by(self, key: str) -> dict[str, Group]:
        """Group cycles, energy and MACs of a mean step by "layer", "phase", "gemm", "kind", "op" or "component".

        Grouped by component, cycles and MACs are 0: components work at the same time.
        """
        if key == "component":
            return {name: Group(0.0, price, 0.0) for name, price in self.energy.items()}
        if key not in ("layer", "phase", "gemm", "kind", "op"):
            raise SpecError(f"by: got {key!r}, expected layer, phase, gemm, kind, op or component")
        groups: dict[str, list[OpResult]] = {}
        for step in self.steps:
            for op in step.ops:
                groups.setdefault(op.id if key == "op" else getattr(op, key), []).append(op)
        count = len(self.steps)
        return {
            name: Group(
                sum(op.cycles for op in ops) / count,
                _total(_mean_energy(ops, count).values()),
                sum(op.macs for op in ops) / count,
            )
            for name, ops in groups.items()
        }

    # ---- to and from files

    def to_plain(self) -> dict[str, Any]:
        """Plain data for JSON: the ops as a table, one column a list, so that hundreds of ops stay small."""
        return {
            "schema": SCHEMA,
            "workload": self.workload,
            "accelerator": self.accelerator,
            "engine": self.engine,
            "sparsity": self.sparsity,
            "clock_ghz": self.clock_ghz,
            "assumptions": [list(item) for item in self.assumptions],
            "notes": list(self.notes),
            "hashes": dict(self.hashes),
            "steps": [
                {"step": step.step, "peak_memory_bytes": step.peak_memory_bytes, "ops": _columns(step.ops)}
                for step in self.steps
            ],
        }

    @classmethod
    def from_plain(cls, data: dict[str, Any]) -> SimulationResult:
        """Read what `to_plain` wrote.

        Raises:
            SpecError: another schema, or a missing part.
        """
        if data.get("schema") != SCHEMA:
            raise SpecError(f"schema: got {data.get('schema')!r}, expected {SCHEMA!r}")
        try:
            steps = tuple(
                StepResult(item["step"], _from_columns(item["ops"]), item["peak_memory_bytes"])
                for item in data["steps"]
            )
            return cls(
                workload=data["workload"],
                accelerator=data["accelerator"],
                engine=data["engine"],
                sparsity=data["sparsity"],
                clock_ghz=data["clock_ghz"],
                steps=steps,
                assumptions=tuple((what, source) for what, source in data["assumptions"]),
                notes=tuple(data["notes"]),
                hashes=dict(data["hashes"]),
            )
        except KeyError as missing:
            raise SpecError(f"simulation result: {missing} is missing") from None

    def to_json(self) -> str:
        """Strict JSON text."""
        return json.dumps(self.to_plain(), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> SimulationResult:
        """Read what `to_json` wrote."""
        return cls.from_plain(json.loads(text))

    def rows(self) -> list[dict[str, Any]]:
        """One flat record an op and step, ready for CSV or a data frame."""
        memories = sorted({memory for step in self.steps for op in step.ops for memory in op.bytes})
        components = sorted(self.energy)
        return [
            {
                "workload": self.workload,
                "accelerator": self.accelerator,
                "step": step.step,
                "op": op.id,
                "layer": op.layer,
                "phase": op.phase,
                "kind": op.kind,
                "gemm": op.gemm,
                "start_cycle": op.start_cycle,
                "end_cycle": op.end_cycle,
                "busy_cycles": op.busy_cycles,
                **{f"stall_{cause}_cycles": op.stalls.get(cause, 0.0) for cause in STALL_CAUSES},
                "macs": op.macs,
                "mac_slots": op.mac_slots,
                **{f"{memory}_read_bytes": op.bytes.get(memory, Traffic()).read for memory in memories},
                **{f"{memory}_written_bytes": op.bytes.get(memory, Traffic()).written for memory in memories},
                "energy_pj": op.energy_pj,
                **{f"{name}_pj": op.energy.get(name, ZERO).nominal for name in components},
                "launch_us": op.launch_us,
                "mapping": op.mapping,
            }
            for step in self.steps
            for op in step.ops
        ]

    def write_csv(self, path: Path | str) -> None:
        """Write `rows()` as CSV with a header."""
        rows = self.rows()
        with Path(path).open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]) if rows else ["op"])
            writer.writeheader()
            writer.writerows(rows)


def _total(prices: Iterable[Range]) -> Range:
    low = nominal = high = 0.0
    for price in prices:
        low, nominal, high = low + price.low, nominal + price.nominal, high + price.high
    return Range(low, nominal, high)


def _mean_energy(ops: Iterable[OpResult], count: int) -> dict[str, Range]:
    totals: dict[str, list[float]] = {}
    for op in ops:
        for component, price in op.energy.items():
            total = totals.setdefault(component, [0.0, 0.0, 0.0])
            total[0] += price.low
            total[1] += price.nominal
            total[2] += price.high
    return {name: Range(low / count, nominal / count, high / count) for name, (low, nominal, high) in totals.items()}


_PLAIN_FIELDS = (
    "id",
    "layer",
    "phase",
    "gemm",
    "kind",
    "start_cycle",
    "end_cycle",
    "busy_cycles",
    "ideal_cycles",
    "macs",
    "mac_slots",
    "operations",
    "useful_dram_bytes",
    "launch_us",
    "mapping",
    "order",
    "alone_cycles",
    "bound_cycles",
)


def _columns(ops: tuple[OpResult, ...]) -> dict[str, Any]:
    columns: dict[str, Any] = {name: [getattr(op, name) for op in ops] for name in _PLAIN_FIELDS}
    columns["stalls"] = [dict(op.stalls) for op in ops]
    columns["bytes"] = [{name: [t.read, t.written] for name, t in op.bytes.items()} for op in ops]
    columns["energy"] = [{name: [e.low, e.nominal, e.high] for name, e in op.energy.items()} for op in ops]
    return columns


def _from_columns(columns: dict[str, Any]) -> tuple[OpResult, ...]:
    return tuple(
        OpResult(
            **{name: columns[name][index] for name in _PLAIN_FIELDS if name in columns},
            stalls=dict(columns["stalls"][index]),
            bytes={name: Traffic(*pair) for name, pair in columns["bytes"][index].items()},
            energy={name: Range(*triple) for name, triple in columns["energy"][index].items()},
        )
        for index in range(len(columns["id"]))
    )
