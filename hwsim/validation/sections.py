"""Fits and unseen machines as parts of the page."""

from __future__ import annotations

import numpy as np

from hwsim.section import Axis, Column, Figure, Section, Series, Table
from hwsim.validation.compare import Fitted, Judged, interval, judge, setting_path
from hwsim.validation.study import Gates, Study

OFF_BY = 0.5  # rows that miss by more are named
NAMED_ROWS = 12  # at most, of each table
DRAWN_POINTS = 600  # of each half of a table

ERROR_COLUMNS = (
    Column(name="rows"),
    Column(name="count", kind="number", digits=0),
    Column(name="groups", kind="number", digits=0),
    Column(name="mean error, held out", unit="%", kind="percent", digits=1),
    Column(name="95 % interval", unit="%"),
    Column(name="gate", unit="%", kind="percent", digits=1),
    Column(name="median error, held out", unit="%", kind="percent", digits=1),
    Column(name="95 % interval (median)", unit="%"),
    Column(name="gate (median)", unit="%", kind="percent", digits=1),
    Column(name="mean on fitted half", unit="%", kind="percent", digits=1),
    Column(name="machine file as shipped", unit="%", kind="percent", digits=1),
    Column(name="verdict", kind="verdict"),
)


def fit_section(fitted: Fitted, study: Study) -> Section:
    """One machine: errors of every table, what was fitted, rows that are far off, and the figure."""
    rows, verdicts = [], []
    for judged in fitted.tables:
        rows.append(_error_row(judged, judged.table.name, None, judged.table.gates, study))
        for regime in judged.table.regimes:
            inside = (judged.rows.extent > regime.above) & (judged.rows.extent <= regime.up_to)
            rows.append(_error_row(judged, f"{judged.table.name}, {regime.name}", inside, regime.gates, study))
    verdicts = [row[-1] for row in rows if row[-1]]
    return Section(
        title=fitted.fit.title,
        verdict=("passed" if all(verdict == "passed" for verdict in verdicts) else "failed") if verdicts else None,
        text="\n\n".join(
            (
                fitted.fit.text,
                f"Errors are |simulated / measured - 1|. The groups of rows are halved at random {study.splits} times; "
                "each half is fitted once and the other half judged, so every row is held out in every split. "
                f"Intervals resample groups ({study.bootstrap} draws).",
            )
        ).strip(),
        figures=tuple(_figure(judged) for judged in fitted.tables),
        tables=(
            Table(
                title="Errors",
                columns=ERROR_COLUMNS,
                rows=tuple(rows),
                source="; ".join(dict.fromkeys(judged.table.source for judged in fitted.tables)),
            ),
            _settings_table(fitted),
            *_far_off(fitted.tables),
        ),
    )


def _error_row(
    judged: Judged, name: str, inside: np.ndarray | None, gates: Gates, study: Study
) -> tuple[str | float | int | None, ...]:
    chosen = np.full(len(judged.rows), True) if inside is None else inside
    groups = [group for group, keep in zip(judged.rows.groups, chosen, strict=True) if keep]
    errors = judged.held_out[:, chosen]
    mean = judged.mean if inside is None else interval(errors, groups, np.mean, study)
    median = judged.median if inside is None else interval(errors, groups, np.median, study)
    passed = judge(gates.mean, mean[0], gates.median, median[0])
    return (
        name,
        int(chosen.sum()),
        len(set(groups)),
        mean[0],
        _range(mean),
        gates.mean,
        median[0],
        _range(median),
        gates.median,
        float(np.abs(judged.in_sample[:, chosen]).mean()),
        float(np.abs(judged.shipped[chosen]).mean()),
        None if passed is None else ("passed" if passed else "failed"),
    )


def _range(value: tuple[float, float, float]) -> str:
    return f"{100 * value[1]:.1f} to {100 * value[2]:.1f}"


def _settings_table(fitted: Fitted) -> Table:
    rows = []
    for key, plausible in fitted.ranges.items():
        values = fitted.found[key]
        path, owner = setting_path(key)
        rows.append(
            (
                path,
                f"the measurement ({owner})" if owner else "the machine",
                float(np.median(values)),
                float(min(values)),
                float(max(values)),
                plausible.low,
                plausible.high,
                plausible.why,
            )
        )
    numbers = ("fitted (median)", "least", "most", "plausible from", "to")
    return Table(
        title="What was fitted",
        columns=(
            Column(name="number"),
            Column(name="belongs to"),
            *(Column(name=name, kind="number") for name in numbers),
            Column(name="why this range"),
        ),
        rows=tuple(rows),
        note="Least and most are over all halves of all splits. Every other number is the machine file's own.",
    )


def _far_off(tables: tuple[Judged, ...]) -> tuple[Table, ...]:
    """The rows that no setting explains, by name."""
    rows: list[tuple[str, str, float, float, float]] = []
    for judged in tables:
        errors = judged.held_out.mean(axis=0)
        worst = [i for i in np.argsort(-np.abs(errors)) if abs(errors[i]) > OFF_BY]
        rows += [
            (
                judged.table.name,
                judged.rows.labels[i],
                float(judged.rows.time_us[i]),
                float(judged.rows.time_us[i] * (1 + errors[i])),
                float(errors[i]),
            )
            for i in worst[:NAMED_ROWS]
        ]
    if not rows:
        return ()
    return (
        Table(
            title=f"Rows that are off by more than {OFF_BY:.0%}",
            columns=(
                Column(name="table"),
                Column(name="shape"),
                Column(name="measured", unit="us", kind="number", digits=1),
                Column(name="simulated", unit="us", kind="number", digits=1),
                Column(name="error", unit="%", kind="percent", digits=0),
            ),
            rows=tuple(rows),
            note=f"The {NAMED_ROWS} worst of each table at most. Measured times below the direct roofline mean "
            "Winograd or FFT programs, which are not modeled.",
        ),
    )


def _figure(judged: Judged) -> Figure:
    simulated = judged.rows.time_us * (1 + judged.held_out[0])
    series = []
    for name, half in (
        ("held out by the first fit", judged.first_half),
        ("held out by the second fit", ~judged.first_half),
    ):
        chosen = np.flatnonzero(~half)
        chosen = chosen[:: -(-len(chosen) // DRAWN_POINTS) or 1]
        series.append(
            Series(
                name=name,
                x=tuple(float(judged.rows.time_us[i]) for i in chosen),
                y=tuple(float(simulated[i]) for i in chosen),
                labels=tuple(judged.rows.labels[i] for i in chosen),
            )
        )
    thinned = " Thinned evenly for drawing." if len(judged.rows) > 2 * DRAWN_POINTS else ""
    return Figure(
        title=f"{judged.table.name}: simulated against measured time",
        x=Axis(label="measured", unit="us", scale="log"),
        y=Axis(label="simulated", unit="us", scale="log"),
        series=tuple(series),
        identity=True,
        identity_band=judged.table.gates.mean or 0.2,
        caption=f"Rows of the first split, each simulated by the fit that did not see it.{thinned}",
        source=judged.table.source,
    )


def unseen_section(rows: list[tuple[str, str, int, float, float, float]], source: str) -> Section:
    """Machines described from data sheets alone: (machine, rows, count, mean, median, signed median)."""
    return Section(
        title="Machines that nothing was fitted to",
        text=(
            "Described from data sheets, with the access efficiencies, clock share and overheads that were fitted to "
            "the V100. Their libraries run Winograd and FFT programs for part of these convolutions and less developed "
            "ones for others; no gate is set. A negative signed median: the machine was slower than simulated."
        ),
        tables=(
            Table(
                title="Errors",
                columns=(
                    Column(name="machine"),
                    Column(name="rows"),
                    Column(name="count", kind="number", digits=0),
                    Column(name="mean error", unit="%", kind="percent", digits=1),
                    Column(name="median error", unit="%", kind="percent", digits=1),
                    Column(name="signed median", unit="%", kind="percent", digits=1),
                ),
                rows=tuple(rows),
                source=source,
            ),
        ),
    )
