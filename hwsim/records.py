"""What a run leaves behind, as plain data: one record per trained trial, one per simulated step.

Records hold no tensors and need no torch. Times, cycles and energy keep their unit in their name; totals are sums
over the ops of a record and are derived, never stored beside them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Literal, cast

from pydantic import Field, JsonValue, model_serializer, model_validator

from hwsim.errors import SpecError
from hwsim.spec import Spec, field_problem
from hwsim.training.result import TrainingSummary

if TYPE_CHECKING:  # drawing a page needs no accelerator and no simulator
    from hwsim.hardware.accelerator import Accelerator
    from hwsim.simulation.result import OpResult, SimulationResult

Work = Literal["trained", "dense", "zeros", "ideal"]
Phase = Literal["forward", "loss", "backward", "update"]
Gemm = Literal["", "output", "grad_input", "grad_weight"]


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
    """What training found: accuracies, curves, profile, hashes."""
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
    """One energy at low, nominal and high prices, in pJ; written to files as [low, nominal, high]."""

    low: float = Field(ge=0)
    nominal: float = Field(ge=0)
    high: float = Field(ge=0)

    @model_validator(mode="before")
    @classmethod
    def _from_list(cls, value: Any) -> Any:
        if isinstance(value, list | tuple):
            if len(value) != 3:
                raise ValueError(f"got {len(value)} numbers, expected [low, nominal, high]")
            return dict(zip(("low", "nominal", "high"), value, strict=True))
        return value

    @model_serializer
    def _to_list(self) -> list[float]:
        return [self.low, self.nominal, self.high]

    def times(self, factor: float) -> EnergyRange:
        """Every end multiplied by `factor`."""
        return EnergyRange(low=self.low * factor, nominal=self.nominal * factor, high=self.high * factor)


class SimulatedOp(Spec):
    """One op of the step on one machine: means over the recorded steps."""

    id: str
    layer: str
    phase: Phase
    kind: str
    gemm: Gemm = ""
    cycles: float = Field(ge=0)
    """Its window of the makespan: the windows of all ops add up to the cycles of the step."""
    ideal_cycles: float = Field(default=0.0, ge=0)
    """Its useful MACs at the peak rate of all arrays in its formats."""
    stalls: dict[str, float] = Field(default_factory=dict)
    """Idle cycles of the arrays by cause, within `cycles`; the rest of the window they are busy."""
    macs: float = Field(default=0.0, ge=0)
    """Useful multiply-accumulates: padding and pruned positions are not counted."""
    bytes: dict[str, float] = Field(default_factory=dict)
    """Bytes moved by memory, both directions; "dram" in whole bursts."""
    energy_pj: dict[str, EnergyRange] = Field(default_factory=dict)
    """Energy by component, its share of the static energy included."""
    launch_us: float = Field(default=0.0, ge=0)
    """Launch or command time, outside the cycles."""
    mapping: str = ""
    """How the first recorded step was laid on the machine."""


class Assumption(Spec):
    """Something that a result rests on, with where it comes from."""

    what: str
    value: str = ""
    source: str


class Machine(Spec):
    """What the page needs to know of an accelerator: its name, its clock, its roofs."""

    name: str
    description: str = ""
    clock_ghz: float = Field(gt=0)
    """The running clock: sustained, where the machine states one."""
    peak_macs_per_cycle: dict[str, float] = Field(default_factory=dict)
    """Peak by operand format, all arrays together."""
    dram_bytes_per_cycle: float | None = None
    """Achieved, in cycles of the running clock."""
    energy_table: str = ""
    assumptions: tuple[Assumption, ...] = ()
    """The numbers of its description, block by block, with their sources."""

    @classmethod
    def of(cls, accelerator: Accelerator) -> Machine:
        """What the page needs to know of this accelerator."""
        from hwsim.hardware.accelerator import sources_of

        count = accelerator.arrays.count
        return cls(
            name=accelerator.name,
            description=accelerator.description,
            clock_ghz=float(accelerator.clock.running_ghz),
            peak_macs_per_cycle={name: float(rate * count) for name, rate in accelerator.arrays.macs_per_cycle.items()},
            dram_bytes_per_cycle=float(accelerator.dram_bytes_per_cycle),
            energy_table=accelerator.energy.table,
            assumptions=tuple(
                Assumption(what=place, value=_numbers_at(accelerator, place), source=source)
                for place, source in sources_of(accelerator)
            ),
        )


def _numbers_at(block: Any, place: str) -> str:
    """The settings of a block such as "memories[0]", in short."""
    for part in place.replace("]", "").replace("[", ".").split("."):
        block = block[int(part)] if part.isdigit() else getattr(block, part)
    settings = block.model_dump(mode="json", exclude={"source"}, exclude_none=True)
    return ", ".join(f"{name} {_in_short(value)}" for name, value in settings.items() if value not in ([], {}))


def _in_short(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(f"{key}={_in_short(item)}" for key, item in value.items())
    return " ".join(map(_in_short, value)) if isinstance(value, list) else str(value)


class SimulationRecord(Spec):
    """One training step of one configuration on one accelerator."""

    configuration: str
    accelerator: str
    work: Work
    """trained: the step as it was recorded. Its rivals on the same machine, in the same formats: dense, without
    selection; zeros, dense but skipping the zeros that ReLU leaves; ideal, top-k at no cost of selecting."""
    seed: int
    """The trial whose trace was simulated."""
    engine: str = ""
    clock_ghz: float = Field(gt=0)
    step_cycles: tuple[float, ...] = Field(min_length=1)
    """Cycles of each recorded step; their mean is the sum of the ops' cycles."""
    step_energy_pj: tuple[float, ...] = Field(min_length=1)
    """Nominal energy of each recorded step."""
    peak_memory_bytes: float | None = None
    """The largest sum of tensors alive at once."""
    ops: tuple[SimulatedOp, ...]
    assumptions: tuple[Assumption, ...] = ()
    order: str = ""
    """The accumulation order, or orders, that the mapping implies."""
    notes: tuple[str, ...] = ()
    """What the reader must know, such as a plan whose accumulation order is not this machine's."""
    hashes: dict[str, str] = Field(default_factory=dict)

    @classmethod
    def of(cls, configuration: str, seed: int, work: Work, result: SimulationResult) -> SimulationRecord:
        """Condense a simulation result: each op's mean over the recorded steps.

        Raises:
            SpecError: the recorded steps do not hold the same ops.
        """
        ids = [op.id for op in result.ops]
        for step in result.steps:
            if [op.id for op in step.ops] != ids:
                raise SpecError(
                    f"{configuration} on {result.accelerator}: step {step.step} has other ops than the first"
                )
        return cls(
            configuration=configuration,
            accelerator=result.accelerator,
            work=work,
            seed=seed,
            engine=result.engine,
            clock_ghz=float(result.clock_ghz),
            step_cycles=tuple(float(step.cycles) for step in result.steps),
            step_energy_pj=tuple(float(step.energy_pj) for step in result.steps),
            peak_memory_bytes=float(result.peak_memory_bytes),
            ops=tuple(_mean_op(ops) for ops in zip(*(step.ops for step in result.steps), strict=True)),
            assumptions=tuple(Assumption(what=what, source=source) for what, source in result.assumptions),
            order=", ".join(dict.fromkeys(op.order for op in result.ops if op.order)),
            notes=tuple(result.notes),
            hashes=dict(result.hashes),
        )


def _mean_op(ops: tuple[OpResult, ...]) -> SimulatedOp:
    """One op over the recorded steps."""
    count = len(ops)

    def mean(value: Callable[[OpResult], float]) -> float:
        return float(sum(value(op) for op in ops) / count)

    def price(component: str, end: str) -> float:
        return mean(lambda op: getattr(op.energy[component], end) if component in op.energy else 0.0)

    return SimulatedOp(
        id=ops[0].id,
        layer=ops[0].layer,
        phase=cast(Phase, str(ops[0].phase)),
        kind=str(ops[0].kind),
        gemm=cast(Gemm, str(ops[0].gemm)),
        cycles=mean(lambda op: op.cycles),
        ideal_cycles=mean(lambda op: op.ideal_cycles),
        stalls={
            cause: cycles
            for cause in _names(op.stalls for op in ops)
            if (cycles := mean(lambda op, cause=cause: op.stalls.get(cause, 0.0)))  # type: ignore[misc]
        },
        macs=mean(lambda op: op.macs),
        bytes={
            memory: mean(lambda op, memory=memory: op.bytes[memory].total if memory in op.bytes else 0)  # type: ignore[misc]
            for memory in _names(op.bytes for op in ops)
        },
        energy_pj={
            component: EnergyRange(
                low=price(component, "low"), nominal=price(component, "nominal"), high=price(component, "high")
            )
            for component in _names(op.energy for op in ops)
        },
        launch_us=mean(lambda op: op.launch_us),
        mapping=ops[0].mapping,
    )


def _names(parts: Iterable[Mapping[str, object]]) -> list[str]:
    """All keys, in the order they appear."""
    return list(dict.fromkeys(name for part in parts for name in part))
