"""The answer in plain words, written from the summary's numbers and from nothing else.

Accuracy counts as kept if the 95 % interval of the difference to the baseline (paired by seed) holds zero or lies
above it; with a single seed there is no interval, and the sentence says so.
"""

from __future__ import annotations

from dataclasses import dataclass

from hwsim.report import words
from hwsim.results import Results
from hwsim.summary import AccuracyRow, CostRow, Gain, Summary

SINGLE_SEED_TOLERANCE = 0.005
"""With one seed: the loss of accuracy (a share) that still counts as kept in the headline, which names it."""


@dataclass(frozen=True)
class Finding:
    """The best configuration on one machine that keeps the accuracy; None in `best` if no other one does."""

    accelerator: str
    best: CostRow | None
    accuracy: AccuracyRow | None


def keeps_accuracy(row: AccuracyRow) -> bool:
    """Whether the configuration is as good as the baseline, as this module's docstring defines it."""
    if row.difference is None:
        return False
    if row.diverged:
        return False
    if row.within_noise is None:
        return row.difference.mean >= -SINGLE_SEED_TOLERANCE
    return row.within_noise or row.difference.mean > 0


def findings(summary: Summary) -> list[Finding]:
    """For each accelerator: of the configurations that keep the accuracy, the one of least energy per step."""
    found = []
    for accelerator in dict.fromkeys(row.accelerator for row in summary.costs):
        candidates = []
        for row in summary.costs:
            accuracy = summary.accuracy_of(row.configuration.name)
            others = row.accelerator == accelerator and row.configuration.name != summary.baseline
            if others and accuracy is not None and keeps_accuracy(accuracy):
                candidates.append((row, accuracy))
        best = min(candidates, key=lambda pair: pair[0].step.energy_pj.nominal, default=None)
        found.append(Finding(accelerator, *(best or (None, None))))
    return found


def sentences(results: Results) -> list[str]:
    """The answer, one sentence or two for each accelerator; what is missing is said."""
    summary = results.summary()
    if not results.configurations:
        return []
    if not any(row.test_accuracy for row in summary.accuracy):
        return ["Nothing was trained here, so there is no accuracy to weigh the costs against."]
    if not summary.costs:
        return [_accuracy_alone(summary), "No step was simulated, so there are no costs."]
    said = []
    for finding in findings(summary):
        base = summary.cost_of(summary.baseline or "", finding.accelerator)
        if base is None:
            said.append(f"On {finding.accelerator} the baseline was not simulated, so nothing can be compared there.")
        elif finding.best is None or finding.accuracy is None:
            if len(summary.accuracy) > 1:
                said.append(
                    f"On {finding.accelerator} no other configuration keeps the accuracy of {summary.baseline}."
                )
        else:
            said += _sentences_of(finding.best, finding.accuracy, summary)
    return said


def _sentences_of(best: CostRow, accuracy: AccuracyRow, summary: Summary) -> list[str]:
    base = summary.accuracy_of(summary.baseline or "")
    theirs = words.accuracy(base.test_accuracy if base else None)
    first = (
        f"On {best.accelerator}, {best.configuration.name} {_accuracy_words(accuracy)} {summary.baseline} "
        f"({words.accuracy(accuracy.test_accuracy)} against {theirs} test accuracy, "
        f"{words.plural(accuracy.trials, 'seed')})"
    )
    gain = best.gain_over_baseline
    if gain is not None:
        first += f" and takes {_times(gain.cycles)} the cycles and {_times(gain.energy)} the energy of its whole step"
    said = [first + "."]
    if best.gain_backward is not None and best.gain_step is not None:
        said.append(
            f"Of that, top-k alone (against the same formats without selection) gains {_gains(best.gain_backward)} on the "
            f"backward pass and {_gains(best.gain_step)} on the whole step."
        )
    return said


def _accuracy_words(row: AccuracyRow) -> str:
    assert row.difference is not None
    if row.within_noise is None:
        return f"is {words.points(row.difference.mean)} off (one seed, so without an interval)"
    if row.within_noise:
        return "matches, within the noise of the seeds,"
    return f"is {words.points(row.difference.mean)} better than"


def _times(gain: float | None) -> str:
    """A gain turned around, as it reads in a sentence: a gain of 2.5 takes "40 % of"."""
    return f"{words.number(100 / gain, 0 if gain < 20 else 1)} % of" if gain else "an unknown part of"


def _gains(gain: Gain) -> str:
    return f"{words.ratio(gain.cycles)} in cycles and {words.ratio(gain.energy)} in energy"


def _accuracy_alone(summary: Summary) -> str:
    rows = [row for row in summary.accuracy if row.test_accuracy is not None]
    best = max(rows, key=lambda row: row.test_accuracy.mean if row.test_accuracy else 0.0)
    return f"Best test accuracy: {best.configuration.name} with {words.accuracy(best.test_accuracy)}."
