"""What a run leaves behind, as plain data: one record per trained trial, one per simulated step.

Records hold no tensors and need no torch. Times, cycles and energy keep their unit in their name; totals are sums
over the ops of a record and are derived, never stored beside them.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Literal

from pydantic import Field, JsonValue, model_validator

from hwsim.spec import Spec, field_problem
from hwsim.training.result import TrainingSummary


class Configuration(Spec):
    """One point of the experiment after its grids are laid out: what is trained, and under which name."""

    name: str
    family: str
    """The name it has in the experiment file; the points of one grid share it."""
    precision: str
    """The precision plan in a few words, such as "float32" or "fp8_hybrid, accumulator bfloat16"."""
    sparse: str | None = None
    """The sparse backprop in a few words, such as "top 20 of each example"; None is dense."""
    settings: dict[str, JsonValue] = Field(default_factory=dict)
    """Everything that the experiment file and its defaults say about it."""


class TrialRecord(Spec):
    """One configuration trained with one seed."""

    key: str
    """Hash of all that determines this trial."""
    configuration: str
    training: TrainingSummary
    """What training found: accuracies, curves, counters, hashes."""
    arrays: dict[str, str] = Field(default_factory=dict)
    """Files beside the record, by what they hold; names relative to the results' folder."""

    @model_validator(mode="after")
    def _is_plottable(self) -> TrialRecord:
        lengths = {name: len(values) for name, values in self.training.curves.items()}
        if len(set(lengths.values())) > 1:
            raise field_problem("training.curves", f"got lengths {lengths}, expected one length for all")
        if lengths and "step" not in lengths:
            raise field_problem("training.curves", "'step' is missing, expected the updates before each evaluation")
        for name, file in self.arrays.items():
            if PurePosixPath(file).is_absolute() or ".." in PurePosixPath(file).parts:
                raise field_problem(f"arrays.{name}", f"got {file!r}, expected a name inside the results' folder")
        return self

    @property
    def seed(self) -> int:
        """Seed of the trial."""
        return self.training.seed


class EnergyRange(Spec):
    """One energy with the low, nominal and high prices, in pJ."""

    low: float = Field(ge=0)
    nominal: float = Field(ge=0)
    high: float = Field(ge=0)

    def __add__(self, other: EnergyRange) -> EnergyRange:
        return EnergyRange(
            low=self.low + other.low, nominal=self.nominal + other.nominal, high=self.high + other.high
        )

    def times(self, factor: float) -> EnergyRange:
        """Every end multiplied by `factor`."""
        return EnergyRange(low=self.low * factor, nominal=self.nominal * factor, high=self.high * factor)


NO_ENERGY = EnergyRange(low=0.0, nominal=0.0, high=0.0)


class SimulatedOp(Spec):
    """One op of the step on one machine: means over the recorded steps."""

    id: str
    layer: str
    phase: Literal["forward", "loss", "backward", "update"]
    kind: str
    gemm: Literal["output", "grad_input", "grad_weight"] | None = None
    cycles: float = Field(ge=0)
    """Its share of the makespan: the shares of all ops add up to the cycles of the step."""
    stalls: dict[str, float] = Field(default_factory=dict)
    """Idle cycles of the array by cause, within `cycles`."""
    macs: float = Field(default=0.0, ge=0)
    """Multiply-accumulates that the math asks for (padding excluded)."""
    bytes: dict[str, float] = Field(default_factory=dict)
    """Bytes moved by memory level, for example {"dram": 4096.0, "scratchpad": 65536.0}."""
    energy_pj: dict[str, EnergyRange] = Field(default_factory=dict)
    """Energy by component, for example mac, scratchpad, dram, vector, select."""


class Assumption(Spec):
    """One number or rule that a result rests on, with where it comes from."""

    what: str
    value: str
    source: str


class Machine(Spec):
    """What the page needs to know of an accelerator: its roofs and its name."""

    name: str
    description: str = ""
    clock_ghz: float = Field(gt=0)
    peak_macs_per_cycle: dict[str, float] = Field(default_factory=dict)
    """Peak by operand format, all arrays together."""
    dram_bytes_per_cycle: float | None = None
    energy_table: str = ""
    assumptions: tuple[Assumption, ...] = ()


class SimulationRecord(Spec):
    """One training step of one configuration on one accelerator."""

    configuration: str
    accelerator: str
    work: Literal["trained", "dense"]
    """trained: the step as it was recorded; dense: the same step, formats and machine without selection."""
    seed: int
    """The trial whose trace was simulated."""
    step_cycles: tuple[float, ...] = Field(min_length=1)
    """Cycles of each recorded step; their mean is the sum of the ops' cycles."""
    step_energy_pj: tuple[float, ...] = Field(min_length=1)
    """Nominal energy of each recorded step."""
    overhead_us: float = 0.0
    """Launch or command time a step, outside the cycles."""
    ops: tuple[SimulatedOp, ...]
    static_energy_pj: EnergyRange = NO_ENERGY
    """Static energy over the makespan: it belongs to the step, not to an op."""
    order: str = ""
    """The accumulation order that the mapping implies."""
    notes: tuple[str, ...] = ()
    """What the reader must know, such as a plan whose accumulation order is not this machine's."""
