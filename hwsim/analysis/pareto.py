"""Accuracy against the energy of a step: which configurations are beaten by no other in both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hwsim.results import Results
from hwsim.section import Axis, Column, Figure, Section, Series, Table
from hwsim.summary import Spread

LARGEST_LOSS = 0.01  # of mean accuracy (a share), as in the page's own answer


@dataclass(frozen=True)
class Choice:
    """One configuration on one machine."""

    name: str
    accuracy: Spread  # test accuracy, shares
    energy_uj: float  # of a step, nominal prices


def front(choices: Sequence[Choice]) -> tuple[Choice, ...]:
    """Return the choices that no other one beats, by ascending energy.

    One choice beats another if it takes no more energy and its mean accuracy is no lower, and one of the two is better.
    """
    found: list[Choice] = []
    for choice in sorted(choices, key=lambda c: (c.energy_uj, -c.accuracy.mean)):
        if not found or choice.accuracy.mean > found[-1].accuracy.mean:
            found.append(choice)
    return tuple(found)


def within_noise_of_best(choices: Sequence[Choice]) -> tuple[Choice, ...]:
    """Return the choices whose 95 % interval reaches the best mean accuracy, by ascending energy.

    With few seeds an interval can be wide enough to hold anything: the mean lies at most LARGEST_LOSS under the best.
    """
    best = max(choice.accuracy.mean for choice in choices)
    near = [
        c
        for c in choices
        if c.accuracy.mean >= best - LARGEST_LOSS
        and (c.accuracy.mean == best or (c.accuracy.interval or (0, 0))[1] >= best)
    ]
    return tuple(sorted(near, key=lambda c: c.energy_uj))


def pareto_section(results: Results) -> Section:
    """One figure and one table a machine."""
    summary = results.summary()
    figures, tables, words = [], [], []
    for machine in results.machines:
        choices = [
            Choice(row.configuration.name, row.test_accuracy, cost.step.energy_pj.nominal / 1e6)
            for row in summary.accuracy
            if row.test_accuracy is not None
            and (cost := summary.cost_of(row.configuration.name, machine.name)) is not None
        ]
        if not choices:
            continue
        best = front(choices)
        cheap = within_noise_of_best(choices)[0]
        words.append(
            f"On {machine.name}, {len(best)} of {len(choices)} configurations are on the front. The cheapest whose "
            f"{summary.measure} is within noise and one point of the best is {cheap.name}: "
            f"{cheap.accuracy.mean:.2%} at {cheap.energy_uj:.3g} uJ a step."
        )
        figures.append(_figure(machine.name, choices, best, summary.measure))
        tables.append(_table(machine.name, choices, best, summary.measure))
    return Section(
        title="Accuracy against energy",
        text="\n\n".join(words) if words else "Nothing was simulated, so there is no energy to weigh accuracy against.",
        figures=figures,
        tables=tables,
    )


def _figure(machine: str, choices: Sequence[Choice], best: Sequence[Choice], measure: str) -> Figure:
    def series(name: str, chosen: Sequence[Choice], style: str) -> Series:
        intervals = [choice.accuracy.interval or (None, None) for choice in chosen]
        return Series(
            name=name,
            style="line" if style == "line" else "points",
            x=[choice.energy_uj for choice in chosen],
            y=[choice.accuracy.mean for choice in chosen],
            low=[low for low, _ in intervals] if style == "points" else (),
            high=[high for _, high in intervals] if style == "points" else (),
            labels=[choice.name for choice in chosen],
        )

    return Figure(
        title=f"Accuracy against the energy of a step, {machine}",
        x=Axis(label="energy of a step", unit="uJ", scale="log"),
        y=Axis(label=f"test {measure}", unit="%", percent=True),
        series=[series("configurations", choices, "points"), series("front", best, "line")],
        caption="Whiskers: 95 % interval of the mean over seeds. Energy at nominal prices, the whole step.",
    )


def _table(machine: str, choices: Sequence[Choice], best: Sequence[Choice], measure: str) -> Table:
    names = {choice.name for choice in best}
    rows = [
        (c.name, c.energy_uj, c.accuracy.mean, c.accuracy.deviation, "yes" if c.name in names else "")
        for c in sorted(choices, key=lambda c: c.energy_uj)
    ]
    return Table(
        title=f"Accuracy and energy, {machine}",
        columns=(
            Column(name="configuration"),
            Column(name="energy of a step", unit="uJ", kind="number"),
            Column(name=f"test {measure}", unit="%", kind="percent", digits=2),
            Column(name="± deviation", unit="%", kind="percent", digits=2),
            Column(name="on the front"),
        ),
        rows=rows,
        note="On the front: no other configuration takes less energy at an equal or higher mean accuracy.",
    )
