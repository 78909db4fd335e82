"""Where ties among quantized gradients break the ranking of top-k."""

from __future__ import annotations

from hwsim.results import Results
from hwsim.section import Axis, Cell, Column, Figure, Section, Series, Table

BROKEN = 0.05  # of the kept places: from there on, the tie rule is called a part of the choice


def ties_section(results: Results) -> Section:
    """Share of kept places that the tie rule decided, by configuration, beside the accuracy."""
    summary = results.summary()
    rows: list[tuple[Cell, ...]] = []
    for row in summary.accuracy:
        trials = [trial.training for trial in results.trials if trial.configuration == row.configuration.name]
        shares = [layer.tie_share for trial in trials for layer in trial.sparsity if layer.tie_share is not None]
        if shares:
            difference = None if row.difference is None else row.difference.mean * 100
            accuracy = None if row.test_accuracy is None else row.test_accuracy.mean
            rows.append((row.configuration.name, sum(shares) / len(shares), max(shares), accuracy, difference))
    if not rows:
        return Section(title="Ties", text="No step with top-k by magnitude was recorded.")
    broken = [str(row[0]) for row in rows if isinstance(row[1], float) and row[1] > BROKEN]
    text = (
        "Equal magnitudes have no order: the lowest index is kept. Counted is the share of kept places for which that "
        f"rule, and not a magnitude, decided. Over {BROKEN:.0%} of the places, as a mean over layers and recorded "
        f"steps: {', '.join(broken) if broken else 'none'}."
    )
    names = [str(row[0]) for row in rows]
    figure = Figure(
        title="Kept places that ties decided",
        x=Axis(label="configuration"),
        y=Axis(label="share of kept places", unit="%", percent=True),
        series=[
            Series(name="mean over layers", style="bars", x=names, y=[_number(row[1]) for row in rows]),
            Series(name="worst layer and trial", x=names, y=[_number(row[2]) for row in rows]),
        ],
        horizontal=True,
    )
    table = Table(
        title="Ties and accuracy",
        columns=(
            Column(name="configuration"),
            Column(name="decided by ties", unit="%", kind="percent", digits=2),
            Column(name="worst layer and trial", unit="%", kind="percent", digits=2),
            Column(name="test accuracy", unit="%", kind="percent", digits=2),
            Column(name="against the baseline", unit="points", kind="number", digits=2),
        ),
        rows=rows,
    )
    return Section(title="Where ties break the ranking", text=text, figures=[figure], tables=[table])


def _number(value: Cell) -> float | None:
    return float(value) if isinstance(value, int | float) else None
