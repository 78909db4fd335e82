"""From records to the numbers that answer the question: accuracy over seeds, cost a step and to a target, gains.

Definitions, all derived from the records and nothing else:

- A step's cycles, energy and bytes are means over the recorded steps of every simulated trial.
- Every op carries the static energy of its window of the makespan, so that parts add up to the whole.
- The backward pass is every op of phase `backward`: selection, gather, scatter, element-wise work and reductions as
  well as the GEMMs. The backward GEMMs alone are `grad_input` and `grad_weight`.
- Steps to the target is the number of updates before the first evaluation whose dev accuracy reaches it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from math import sqrt

from hwsim.records import (
    Configuration,
    EnergyRange,
    Machine,
    SimulatedOp,
    SimulationRecord,
    TrialRecord,
)

DEFAULT_TARGET_MARGIN = 0.01
"""How far under the baseline's mean dev accuracy the target lies if the experiment names none (a share)."""

# Two-sided 95 % points of Student's t distribution for 1 to 30 degrees of freedom (any table of statistics).
_T95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


@dataclass(frozen=True)
class Spread:
    """Some values in short. `deviation` is the sample's standard deviation; None for a single value."""

    mean: float
    deviation: float | None
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread | None:
        """Summarize; None if there is nothing to summarize."""
        numbers = list(values)
        if not numbers:
            return None
        mean = sum(numbers) / len(numbers)
        deviation = sqrt(sum((x - mean) ** 2 for x in numbers) / (len(numbers) - 1)) if len(numbers) > 1 else None
        return cls(mean, deviation, min(numbers), max(numbers), len(numbers))

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval of the mean (Student's t); None for a single value, which has none."""
        if self.deviation is None:
            return None
        half = t95(self.count - 1) * self.deviation / sqrt(self.count)
        return self.mean - half, self.mean + half


def t95(freedom: int) -> float:
    """Two-sided 95 % point of Student's t; beyond 30 degrees of freedom by the first terms of its expansion."""
    if freedom <= len(_T95):
        return _T95[freedom - 1]
    z = 1.959964
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


@dataclass(frozen=True)
class Cost:
    """What some part of the work takes on one machine."""

    cycles: float
    time_us: float
    energy_pj: EnergyRange

    def times(self, factor: float) -> Cost:
        """The cost of `factor` such parts."""
        return Cost(self.cycles * factor, self.time_us * factor, self.energy_pj.times(factor))


@dataclass(frozen=True)
class Gain:
    """How many times less something takes than its rival: above 1 is better than the rival."""

    cycles: float | None
    energy: float | None
    """At nominal prices."""

    @classmethod
    def of(cls, rival: Cost, ours: Cost) -> Gain:
        """Rival over ours; None where ours is zero."""
        return cls(
            rival.cycles / ours.cycles if ours.cycles else None,
            rival.energy_pj.nominal / ours.energy_pj.nominal if ours.energy_pj.nominal else None,
        )


@dataclass(frozen=True)
class AccuracyRow:
    """One configuration: how well it learns."""

    configuration: Configuration
    trials: int
    diverged: int
    test_accuracy: Spread | None
    dev_accuracy: Spread | None
    difference: Spread | None
    """Test accuracy minus the baseline's, seed by seed; None for the baseline or without common seeds."""
    steps_to_target: Spread | None
    """Over the trials that reached the target."""
    reached_target: int

    @property
    def within_noise(self) -> bool | None:
        """Whether the 95 % interval of `difference` holds zero; None where that cannot be told."""
        if self.difference is None or self.difference.interval is None:
            return None
        low, high = self.difference.interval
        return low <= 0 <= high


@dataclass(frozen=True)
class CostRow:
    """One configuration on one accelerator: what a step takes, in whole and in part."""

    configuration: Configuration
    accelerator: str
    step: Cost
    step_cycles: Spread
    """Over the recorded steps."""
    backward: Cost
    backward_gemms: Cost
    to_target: Cost | None
    """Step cost times mean steps to the target; None unless every trial reached it."""
    dense_step: Cost | None
    """The same formats on the same machine without selection; None for a dense configuration."""
    gain_backward_gemms: Gain | None
    gain_backward: Gain | None
    gain_step: Gain | None
    """Gains of top-k over the dense step of the same formats."""
    gain_over_zeros: Gain | None
    """Whole step, against a dense machine that skips ReLU zeros; None if that rival was not simulated."""
    gain_over_baseline: Gain | None
    """Whole step, against the baseline configuration; None for the baseline."""
    gain_to_target: Gain | None
    """To the target accuracy, against the baseline configuration."""


@dataclass(frozen=True)
class Summary:
    """Rows in the order of the experiment."""

    baseline: str | None
    target_accuracy: float | None
    target_rule: str
    """How the target came about, in words."""
    accuracy: tuple[AccuracyRow, ...]
    costs: tuple[CostRow, ...]
    measure: str = "accuracy"
    """What the dev and test accuracies measure: "UAS" for a parser."""

    def accuracy_of(self, configuration: str) -> AccuracyRow | None:
        """The accuracy row of a configuration."""
        return next((row for row in self.accuracy if row.configuration.name == configuration), None)

    def cost_of(self, configuration: str, accelerator: str) -> CostRow | None:
        """The cost row of a configuration on an accelerator."""
        wanted = (configuration, accelerator)
        return next((row for row in self.costs if (row.configuration.name, row.accelerator) == wanted), None)


def summarize(
    configurations: Sequence[Configuration],
    trials: Sequence[TrialRecord],
    machines: Sequence[Machine],
    simulations: Sequence[SimulationRecord],
    baseline: str | None,
    target_accuracy: float | None,
) -> Summary:
    """Compute the summary's rows; what has no records has no row or None, never a guess."""
    target, rule = _target(trials, baseline, target_accuracy)
    accuracy = [_accuracy_row(configuration, trials, baseline, target) for configuration in configurations]
    costs: list[CostRow] = []
    by_name = {row.configuration.name: row for row in accuracy}
    for machine in machines:
        rows = [
            _cost_row(configuration, machine, simulations, by_name[configuration.name])
            for configuration in configurations
        ]
        base = next((row for row in rows if row is not None and row.configuration.name == baseline), None)
        costs += [_against(row, base) for row in rows if row is not None]
    measure = trials[0].training.measure if trials else "accuracy"
    return Summary(baseline, target, rule, tuple(accuracy), tuple(costs), measure)


def steps_to(trial: TrialRecord, target: float) -> float | None:
    """Updates before the first evaluation whose dev accuracy reaches `target`; None if none does."""
    steps = trial.training.curves.get("step", ())
    accuracies = trial.training.curves.get("dev_accuracy", ())
    for step, accuracy in zip(steps, accuracies, strict=False):
        if step is not None and accuracy is not None and accuracy >= target:
            return step
    return None


def part_cost(record: SimulationRecord, part: Callable[[SimulatedOp], bool]) -> Cost:
    """Cost of the ops that `part` picks; the time includes their launch overhead."""
    ops = [op for op in record.ops if part(op)]
    cycles = sum(op.cycles for op in ops)
    time_us = cycles / record.clock_ghz / 1e3 + sum(op.launch_us for op in ops)
    return Cost(cycles, time_us, _sum_energy(price for op in ops for price in op.energy_pj.values()))


def step_cost(record: SimulationRecord) -> Cost:
    """Cost of the whole step."""
    return part_cost(record, is_any)


def _target(trials: Sequence[TrialRecord], baseline: str | None, stated: float | None) -> tuple[float | None, str]:
    if stated is not None:
        return stated, "stated by the experiment"
    found = Spread.of(
        t.training.dev_accuracy for t in trials if t.configuration == baseline and t.training.dev_accuracy is not None
    )
    if found is None:
        return None, "no target: the baseline has no dev accuracy"
    points = f"{DEFAULT_TARGET_MARGIN * 100:g} percentage point"
    return max(found.mean - DEFAULT_TARGET_MARGIN, 0.0), (
        f"{points} under the mean dev {trials[0].training.measure} of {baseline}"
    )


def _accuracy_row(
    configuration: Configuration, trials: Sequence[TrialRecord], baseline: str | None, target: float | None
) -> AccuracyRow:
    ours = [trial for trial in trials if trial.configuration == configuration.name]
    theirs = {t.seed: t.training.test_accuracy for t in trials if t.configuration == baseline}
    differences = []
    for trial in ours:
        rival = theirs.get(trial.seed)
        if configuration.name != baseline and rival is not None and trial.training.test_accuracy is not None:
            differences.append(trial.training.test_accuracy - rival)
    reached = [] if target is None else [s for trial in ours if (s := steps_to(trial, target)) is not None]
    return AccuracyRow(
        configuration=configuration,
        trials=len(ours),
        diverged=sum(trial.training.outcome == "diverged" for trial in ours),
        test_accuracy=Spread.of(t.training.test_accuracy for t in ours if t.training.test_accuracy is not None),
        dev_accuracy=Spread.of(t.training.dev_accuracy for t in ours if t.training.dev_accuracy is not None),
        difference=Spread.of(differences),
        steps_to_target=Spread.of(reached),
        reached_target=len(reached),
    )


def _cost_row(
    configuration: Configuration, machine: Machine, simulations: Sequence[SimulationRecord], accuracy: AccuracyRow
) -> CostRow | None:
    here = [s for s in simulations if (s.configuration, s.accelerator) == (configuration.name, machine.name)]
    trained = [s for s in here if s.work == "trained"]
    if not trained:
        return None

    def cost(work: str, part: Callable[[SimulatedOp], bool]) -> Cost | None:
        records = [record for record in here if record.work == work]
        return _mean([part_cost(record, part) for record in records]) if records else None

    def gain(work: str, part: Callable[[SimulatedOp], bool]) -> Gain | None:
        rival, ours = cost(work, part), cost("trained", part)
        return Gain.of(rival, ours) if rival and ours else None

    step = _mean([step_cost(record) for record in trained])
    steps = accuracy.steps_to_target
    all_reached = steps is not None and accuracy.reached_target == accuracy.trials
    cycles = Spread.of(value for record in trained for value in record.step_cycles)
    assert cycles is not None  # a record holds at least one step
    return CostRow(
        configuration=configuration,
        accelerator=machine.name,
        step=step,
        step_cycles=cycles,
        backward=_mean([part_cost(record, is_backward) for record in trained]),
        backward_gemms=_mean([part_cost(record, is_backward_gemm) for record in trained]),
        to_target=step.times(steps.mean) if steps is not None and all_reached else None,
        dense_step=cost("dense", is_any),
        gain_backward_gemms=gain("dense", is_backward_gemm),
        gain_backward=gain("dense", is_backward),
        gain_step=gain("dense", is_any),
        gain_over_zeros=gain("zeros", is_any),
        gain_over_baseline=None,
        gain_to_target=None,
    )


def is_any(op: SimulatedOp) -> bool:
    """Every op."""
    return True


def is_backward(op: SimulatedOp) -> bool:
    """Whether the op belongs to the backward pass."""
    return op.phase == "backward"


def is_backward_gemm(op: SimulatedOp) -> bool:
    """Whether the op is one of the two backward GEMMs."""
    return op.gemm in ("grad_input", "grad_weight")


def _against(row: CostRow, base: CostRow | None) -> CostRow:
    if base is None or row is base:
        return row
    to_target = Gain.of(base.to_target, row.to_target) if base.to_target and row.to_target else None
    return replace(row, gain_over_baseline=Gain.of(base.step, row.step), gain_to_target=to_target)


def _mean(costs: Sequence[Cost]) -> Cost:
    count = len(costs)
    return Cost(
        sum(cost.cycles for cost in costs) / count,
        sum(cost.time_us for cost in costs) / count,
        _sum_energy(cost.energy_pj for cost in costs).times(1 / count),
    )


def _sum_energy(values: Iterable[EnergyRange]) -> EnergyRange:
    low = nominal = high = 0.0
    for value in values:
        low, nominal, high = low + value.low, nominal + value.nominal, high + value.high
    return EnergyRange(low=low, nominal=nominal, high=high)
