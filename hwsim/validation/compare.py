"""Fit a machine on half of its measured rows, judge it on the other half, both ways round, several times."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from hwsim.hardware.accelerator import Accelerator
from hwsim.simulation.tiled import TiledWork, plan
from hwsim.validation.fit import Values, search, setting, with_setting
from hwsim.validation.rows import Measured, read_rows
from hwsim.validation.study import ConvolutionRows, Fit, GemmRows, Plausible, Study, Table

LARGEST_COUNTED_ERROR = 0.5  # a row that is further off steers the fit no more than this; errors are reported in full
MOST_ROWS_TO_FIT = 600  # of one table; every n-th row of the fitted half otherwise

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Judged:
    """One table after all splits: held-out errors (simulated / measured - 1) of every row, one row a split."""

    table: GemmRows | ConvolutionRows
    rows: Measured
    held_out: np.ndarray  # splits x rows
    in_sample: np.ndarray  # splits x rows: the mean of both halves' errors on themselves
    shipped: np.ndarray  # errors of the machine file as it is shipped
    first_half: np.ndarray  # rows that the first fit of the first split saw
    mean: tuple[float, float, float]  # of the absolute held-out error: value, low and high end of the interval
    median: tuple[float, float, float]

    @property
    def passed(self) -> bool | None:
        """Whether the gates hold; None without gates."""
        return judge(self.table.gates.mean, self.mean[0], self.table.gates.median, self.median[0])


@dataclass(frozen=True)
class Fitted:
    """A machine's fits: what came out on each half of each split, and every table judged."""

    fit: Fit
    machine: Accelerator
    tables: tuple[Judged, ...]
    found: dict[str, list[float]] = field(default_factory=dict)  # setting -> value of each fit
    ranges: dict[str, Plausible] = field(default_factory=dict)


def judge(*gates_and_values: float | None) -> bool | None:
    """Whether each value stays within its gate (pairs of gate, value); None if there is no gate at all."""
    pairs = [pair for pair in zip(gates_and_values[::2], gates_and_values[1::2], strict=True) if pair[0] is not None]
    return all(value <= gate for gate, value in pairs) if pairs else None  # type: ignore[operator]


def simulated_us(rows: Measured, machine: Accelerator, overhead_us: float) -> np.ndarray:
    """Time of every row: cycles at the running clock, and the overhead of the way the rows were measured."""
    return plan(rows.work(machine), machine).cycles / (machine.clock.running_ghz * 1e3) + overhead_us


class Fitting:
    """One machine, its tables of rows, and the numbers to fit."""

    def __init__(self, fit: Fit, machine: Accelerator, folder: Path) -> None:
        self.fit = fit
        self.machine = machine
        self.rows = {table.name: read_rows(table, folder) for table in fit.tables}
        self.ranges: dict[str, Plausible] = dict(fit.settings)
        for table in fit.tables:
            if table.overhead_us is not None:
                self.ranges[overhead_key(table)] = table.overhead_us
            for path, plausible in table.settings.items():
                self.ranges[f"{path} [{table.name}]"] = plausible

    def start(self) -> Values:
        """The values to start from: those of the machine file, and the first quarter of each overhead's range."""
        return {
            key: plausible.low + (plausible.high - plausible.low) / 4
            if key.startswith("overhead")
            else self.stated(key)
            for key, plausible in self.ranges.items()
        }

    def stated(self, key: str) -> float:
        """What the machine file says for a fitted value."""
        return setting(self.machine, setting_path(key)[0])

    def machine_with(self, values: Values, table: Table) -> Accelerator:
        """The machine with fitted values in place, as it stands for one table."""
        machine = self.machine
        for key, value in values.items():
            path, owner = setting_path(key)
            if path != "overhead_us" and owner in ("", table.name):
                machine = with_setting(machine, path, value)
        return machine

    def errors(self, values: Values, table: Table, chosen: np.ndarray | None = None) -> np.ndarray:
        """Simulated over measured less 1, of all rows of a table or of the chosen ones."""
        rows = self.rows[table.name]
        if chosen is not None:
            rows = take(rows, chosen)
        owner = table if table.overhead_us is not None else self._table(table.overhead_of)
        return simulated_us(rows, self.machine_with(values, table), values[overhead_key(owner)]) / rows.time_us - 1.0

    def _table(self, name: str | None) -> Table:
        return next(table for table in self.fit.tables if table.name == name)

    def best(self, halves: dict[str, np.ndarray]) -> Values:
        """Fit on the chosen rows of each table."""
        chosen = {name: thinned(np.flatnonzero(half)) for name, half in halves.items()}

        def loss(values: Values) -> float:
            total = 0.0
            for table in self.fit.tables:
                if table.fitted:
                    errors = np.abs(self.errors(values, table, chosen[table.name]))
                    total += table.weight * float(np.minimum(errors, LARGEST_COUNTED_ERROR).mean())
            return total

        ranges = {key: (plausible.low, plausible.high) for key, plausible in self.ranges.items()}
        return search(loss, self.start(), ranges)


def overhead_key(table: Table) -> str:
    """Name of a table's overhead among the fitted values."""
    return f"overhead_us [{table.name}]"


def setting_path(key: str) -> tuple[str, str]:
    """A fitted value's path in the machine and the table that it belongs to alone ("" for the machine itself)."""
    path, _, owner = key.partition(" [")
    return path, owner.removesuffix("]")


def thinned(rows: np.ndarray) -> np.ndarray:
    """At most MOST_ROWS_TO_FIT rows, evenly spread."""
    every = -(-len(rows) // MOST_ROWS_TO_FIT)
    return rows[::every]


def take(rows: Measured, chosen: np.ndarray) -> Measured:
    """Some rows of a table."""

    def work(machine: Accelerator) -> TiledWork:
        whole = rows.work(machine)
        values = {
            name: value[chosen] if np.ndim(value) and len(value) == len(rows) else value
            for name, value in vars(whole).items()
        }
        return replace(whole, **values)

    return Measured(
        time_us=rows.time_us[chosen],
        groups=tuple(rows.groups[i] for i in chosen),
        labels=tuple(rows.labels[i] for i in chosen),
        extent=rows.extent[chosen],
        work=work,
    )


def halves(groups: Sequence[tuple[str, ...]], seed: int) -> np.ndarray:
    """True for the rows of a random half of the groups; rows of one group are never apart."""
    names = sorted(set(groups))
    order = np.random.default_rng(seed).permutation(len(names))
    first = {names[index] for index in order[: (len(names) + 1) // 2]}
    return np.array([group in first for group in groups])


def run_fit(fit: Fit, machine: Accelerator, folder: Path, study: Study, progress: Progress) -> Fitted:
    """All splits of one machine, then its tables judged."""
    fitting = Fitting(fit, machine, folder)
    held: dict[str, list[np.ndarray]] = {table.name: [] for table in fit.tables}
    own: dict[str, list[np.ndarray]] = {table.name: [] for table in fit.tables}
    found: dict[str, list[float]] = {key: [] for key in fitting.ranges}
    for split in range(study.splits):
        first = {name: halves(rows.groups, study.seed + split) for name, rows in fitting.rows.items()}
        out = {name: np.zeros(len(rows)) for name, rows in fitting.rows.items()}
        within = {name: np.zeros(len(rows)) for name, rows in fitting.rows.items()}
        for side in (first, {name: ~half for name, half in first.items()}):
            progress(f"{fit.title}: split {split + 1} of {study.splits}")
            values = fitting.best(side)
            for key, value in values.items():
                found[key].append(value)
            for table in fit.tables:
                errors, half = fitting.errors(values, table), side[table.name]
                out[table.name][~half] = errors[~half]
                within[table.name][half] = errors[half]
        for name, errors in out.items():
            held[name].append(errors)
            own[name].append(within[name])
    middle = {key: float(np.median(values)) for key, values in found.items()}
    shipped = {key: value if key.startswith("overhead") else fitting.stated(key) for key, value in middle.items()}
    judged = []
    for table in fit.tables:
        errors = np.array(held[table.name])
        groups = fitting.rows[table.name].groups
        judged.append(
            Judged(
                table=table,
                rows=fitting.rows[table.name],
                held_out=errors,
                in_sample=np.array(own[table.name]),
                shipped=fitting.errors(shipped, table),
                first_half=halves(groups, study.seed),
                mean=interval(errors, groups, np.mean, study),
                median=interval(errors, groups, np.median, study),
            )
        )
    return Fitted(fit, machine, tuple(judged), found, fitting.ranges)


def interval(
    errors: np.ndarray, groups: Sequence[tuple[str, ...]], summary: Callable[..., np.ndarray], study: Study
) -> tuple[float, float, float]:
    """A summary of absolute errors, averaged over splits, with a 95 % bootstrap interval that resamples groups."""
    absolute = np.abs(errors)
    value = float(np.mean(summary(absolute, axis=1)))
    names = sorted(set(groups))
    members = [np.flatnonzero([group == name for group in groups]) for name in names]
    rng = np.random.default_rng(study.seed)
    draws = []
    for _ in range(study.bootstrap):
        rows = np.concatenate([members[index] for index in rng.integers(len(names), size=len(names))])
        draws.append(float(np.mean(summary(absolute[:, rows], axis=1))))
    low, high = np.percentile(draws, [2.5, 97.5])
    return value, float(low), float(high)
