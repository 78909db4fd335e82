"""The tables that a run ends with: accuracy, cost of a step and to the target, what top-k gains."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hwsim.cli.screen import output, print_table
from hwsim.report import words

if TYPE_CHECKING:
    from hwsim.results import Results
    from hwsim.summary import AccuracyRow, Cost, CostRow, Gain, Spread

MISSING = "-"
MOST_ADVICE = 3
COST_HEADINGS = (
    "configuration", "cycles", "us", "uJ", "to target\nMcycles", "\nms", "\nmJ", "gain:\nbackward", "gain:\nstep",
)  # fmt: skip


def print_summary(results: Results) -> None:
    """Print what the page shows first."""
    if results.quick:
        output().print(words.QUICK, markup=False)
    print_sections(results)
    if not results.configurations:
        return
    summary = results.summary()
    target = summary.target_accuracy
    goal = "" if target is None else f" (target: dev {summary.measure} {target:.2%}, {summary.target_rule})"
    measured = f"test {summary.measure}"
    print_table(
        f"Accuracy{goal}",
        ("configuration", "precision", "sparse", measured, "vs baseline", "steps to target"),
        [_accuracy_cells(row, results) for row in summary.accuracy],
        right=(measured, "vs baseline", "steps to target"),
    )
    for machine in results.machines:
        rows = [row for row in summary.costs if row.accelerator == machine.name]
        if not rows:
            continue
        output().print()
        print_table(
            f"One training step on {machine.name}, all steps to the target accuracy, and what top-k gains (cycles / "
            "energy, against the same formats without selection)",
            COST_HEADINGS,
            [_cost_cells(row) for row in rows],
            right=COST_HEADINGS[1:],
        )
    print_advice(results)
    for gap in results.gaps():
        output().print(f"Missing: {gap}", markup=False)


def print_advice(results: Results) -> None:
    """Print the worst that the profiler found in each configuration; the page has the rest."""
    from hwsim.advice import advise

    shown: set[str] = set()
    for trial in results.trials:
        if trial.training.profile is not None and trial.configuration not in shown:
            shown.add(trial.configuration)
            for one in advise(trial.training.profile)[:MOST_ADVICE]:
                output().print(f"Advice for {trial.configuration}: {one.text}", markup=False)


def print_sections(results: Results) -> None:
    """Print the verdict of each section that a study adds to its page."""
    rows = [(section.title, section.verdict or MISSING) for section in results.sections]
    if rows:
        print_table("", ("section", "verdict"), rows)


def _accuracy_cells(row: AccuracyRow, results: Results) -> tuple[str, ...]:
    name = row.configuration.name
    difference = MISSING
    if name == results.baseline:
        difference = "baseline"
    elif row.difference is not None:
        difference = f"{row.difference.mean * 100:+.2f} points"
    steps = row.steps_to_target
    reached = f"{steps.mean:.0f}" if steps else MISSING
    if row.reached_target < row.trials:
        reached += f" ({row.reached_target} of {row.trials} trials)"
    return (
        name,
        row.configuration.precision,
        row.configuration.sparse or "dense",
        _accuracy(row.test_accuracy) + (f", {row.diverged} diverged" if row.diverged else ""),
        difference,
        reached,
    )


def _accuracy(spread: Spread | None) -> str:
    if spread is None:
        return MISSING
    deviation = "" if spread.deviation is None else f" ± {spread.deviation * 100:.2f}"
    return f"{spread.mean * 100:.2f}{deviation} %"


def _cost_cells(row: CostRow) -> tuple[str, ...]:
    target: Cost | None = row.to_target
    return (
        row.configuration.name,
        f"{row.step.cycles:,.0f}",
        f"{row.step.time_us:,.1f}",
        f"{row.step.energy_pj.nominal / 1e6:,.2f}",
        MISSING if target is None else f"{target.cycles / 1e6:,.2f}",
        MISSING if target is None else f"{target.time_us / 1e3:,.1f}",
        MISSING if target is None else f"{target.energy_pj.nominal / 1e9:,.2f}",
        _gain(row.gain_backward),
        _gain(row.gain_step),
    )


def _gain(gain: Gain | None) -> str:
    if gain is None or gain.cycles is None or gain.energy is None:
        return MISSING
    return f"{gain.cycles:.2f}x / {gain.energy:.2f}x"
