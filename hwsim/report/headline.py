"""The answer in plain words, written from the summary's numbers and from nothing else.

Accuracy counts as kept if its mean lies at most one point under the baseline's and the 95 % interval of the
difference (paired by seed) does not lie under zero. The first rule is for few seeds, whose interval is wide enough to
hold anything; with a single seed there is no interval at all, and the sentence says so. Where other configurations were
trained with several seeds, one with a single seed is a side remark and not the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hwsim.report import words
from hwsim.results import Results
from hwsim.summary import AccuracyRow, CostRow, Gain, Summary

LARGEST_LOSS = 0.01
"""Mean loss of accuracy (a share) that may still count as kept."""


@dataclass(frozen=True)
class Finding:
    """On one machine: the configuration of least energy among those that keep the accuracy; None if none does."""

    accelerator: str
    best: CostRow | None


def keeps_accuracy(row: AccuracyRow) -> bool:
    """Whether the configuration is as good as the baseline, as this module's docstring defines it."""
    if row.difference is None or row.diverged or row.difference.mean < -LARGEST_LOSS:
        return False
    return row.within_noise is not False or row.difference.mean > 0


def findings(summary: Summary) -> list[Finding]:
    """One finding for each simulated machine."""
    several = any(_has_interval(row) for row in summary.accuracy)
    kept = {
        row.configuration.name
        for row in summary.accuracy
        if keeps_accuracy(row) and (_has_interval(row) or not several)
    }
    found = []
    for accelerator in dict.fromkeys(row.accelerator for row in summary.costs):
        candidates = [row for row in summary.costs if row.accelerator == accelerator and row.configuration.name in kept]
        best = min(candidates, key=lambda row: row.step.energy_pj.nominal, default=None)
        found.append(Finding(accelerator, best))
    return found


def _has_interval(row: AccuracyRow) -> bool:
    return row.difference is not None and row.difference.interval is not None


@dataclass(frozen=True)
class Said:
    """One part of the answer: a sentence, and what goes with it machine by machine."""

    text: str
    points: tuple[str, ...] = ()


def answer(results: Results) -> list[Said]:
    """The answer, one part for each configuration that is best somewhere; what is missing is said."""
    summary = results.summary()
    if not results.configurations:
        return []
    if not any(row.test_accuracy for row in summary.accuracy):
        return [Said("Nothing was trained here, so there is no accuracy to weigh the costs against.")]
    if not summary.costs:
        return [Said(f"{_best_accuracy(summary)} No step was simulated, so there are no costs.")]
    said = []
    found = findings(summary)
    best = [finding.best for finding in found if finding.best is not None]
    for name in dict.fromkeys(row.configuration.name for row in best):
        accuracy = summary.accuracy_of(name)
        if accuracy is not None:
            points = tuple(_on_machine(row, summary) for row in best if row.configuration.name == name)
            said.append(Said(_accuracy(accuracy, summary), points))
    without = [finding.accelerator for finding in found if finding.best is None]
    if without and len(summary.accuracy) > 1:
        said.append(Said(f"On {_listed(without)} no other configuration keeps the accuracy of {summary.baseline}."))
    return said


def _accuracy(accuracy: AccuracyRow, summary: Summary) -> str:
    baseline = summary.accuracy_of(summary.baseline or "")
    theirs = words.accuracy(baseline.test_accuracy if baseline else None)
    ours = words.accuracy(accuracy.test_accuracy)
    compared = _compared(accuracy, summary)
    return f"{accuracy.configuration.name} {compared} ({ours} against {theirs}; {_sure(accuracy)})."


def _on_machine(row: CostRow, summary: Summary) -> str:
    """What the configuration takes on one machine: against the baseline, and what top-k alone gains."""
    sentences = []
    whole, target = row.gain_over_baseline, row.gain_to_target
    if whole is not None:
        text = f"{row.accelerator}: a training step takes {_parts(whole)} of {summary.baseline}"
        sentences.append(f"{text}, all steps to the target accuracy {_parts(target)}." if target else f"{text}.")
    if row.gain_backward is not None and row.gain_step is not None:
        sentences.append(
            f"Top-k alone, against the same formats without selection, gains {_gains(row.gain_backward)} on the "
            f"backward pass and {_gains(row.gain_step)} on the whole step."
        )
    return " ".join(sentences)


def _compared(row: AccuracyRow, summary: Summary) -> str:
    assert row.difference is not None
    baseline, what = summary.baseline or "", f"test {summary.measure}"
    if row.within_noise:
        return f"matches {baseline} in {what} within the noise of the seeds"
    off = words.points(abs(row.difference.mean)).lstrip("+")
    return f"is {off} {'above' if row.difference.mean > 0 else 'below'} {baseline} in {what}"


def _sure(row: AccuracyRow) -> str:
    """How far the seeds carry the comparison."""
    seeds = words.plural(row.trials, "seed")
    if row.difference is None or row.difference.interval is None:
        return f"{seeds}, so without an interval"
    low, high = row.difference.interval
    return f"{seeds}, difference {words.points(low).removesuffix(' points')} to {words.points(high)} at 95 %"


def _part(gain: float | None) -> str:
    """A gain turned around, as it reads in a sentence: a gain of 2.5 is "40 %"."""
    return f"{words.number(100 / gain, 0 if gain < 20 else 1)} %" if gain else "an unknown part"


def _parts(gain: Gain) -> str:
    return f"{_part(gain.cycles)} of the cycles and {_part(gain.energy)} of the energy"


def _gains(gain: Gain) -> str:
    return f"{words.ratio(gain.cycles)} in cycles and {words.ratio(gain.energy)} in energy"


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _best_accuracy(summary: Summary) -> str:
    rows = [row for row in summary.accuracy if row.test_accuracy is not None]
    best = max(rows, key=lambda row: row.test_accuracy.mean if row.test_accuracy else 0.0)
    return f"Best test {summary.measure}: {best.configuration.name} with {words.accuracy(best.test_accuracy)}."
