"""What a study expects to see, judged against what it saw: published numbers beside ours, with a plain verdict.

`expected.yaml` lies beside a study's `experiment.yaml`. Each claim names a quantity that the results hold, where the
number was published, and the range in which ours must lie for the claim to stand::

    schema: expected/1
    claim: Top-k backprop at 4 % keeps the accuracy of MNIST training.
    source: Sun et al., meProp, ICML 2017, arXiv 1706.06197
    claims:
      - name: k = 20, Adam, test accuracy
        quantity: test_accuracy
        configuration: topk k=20
        published: 98.01
        where: Table 1, MNIST (Adam), k=20
        within: 0.3                          # points around the published number; or at_least / at_most
      - name: k = 20 against dense
        quantity: accuracy_difference        # paired by seed, against the baseline
        configuration: topk k=20
        published: 0.19
        where: Table 1, MNIST (Adam), k=20
        at_least: -0.2
      - name: backward time on the authors' CPU
        not_comparable: seconds of a naive C# loop; no cost model of that machine is at hand

The verdict compares the 95 % interval of our mean (Student's t over seeds) with that range: inside is `confirmed`,
outside `not confirmed`, across an end `within noise`. Quantities without noise (simulated cycles and energy) have the
value itself as their interval. A single seed gives an accuracy no interval, so it is `not comparable` then.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, get_args

from pydantic import Field, model_validator

from hwsim.document import parse_yaml, read_text
from hwsim.errors import SpecError
from hwsim.results import Results
from hwsim.section import Axis, Cell, Column, Figure, Section, Series, Table
from hwsim.spec import Spec, field_problem, load_yaml
from hwsim.summary import CostRow, Gain, Spread, is_backward_gemm

Verdict = Literal["confirmed", "within noise", "not confirmed", "not comparable", "quick"]
"""quick: not judged, because the results are those of a quick run."""
Quantity = Literal[
    "test_accuracy",
    "dev_accuracy",
    "accuracy_difference",
    "selected_epoch",
    "steps_to_target",
    "average_dimension",
    "cycles_gain_backward_gemms",
    "cycles_gain_backward",
    "cycles_gain_step",
    "energy_gain_backward_gemms",
    "energy_gain_backward",
    "energy_gain_step",
    "macs_gain_backward",
]
"""Accuracies are in percent and their differences in points, as papers print them; gains are dense over top-k."""


class Claim(Spec):
    """One published statement and the range in which our number must lie for it to stand."""

    name: str
    quantity: Quantity | None = None
    configuration: str | None = None
    accelerator: str | None = None
    """For gains; the only one of the results unless named."""
    published: float | None = None
    where: str = ""
    """Table and row, figure or sentence."""
    within: float | None = Field(default=None, gt=0)
    at_least: float | None = None
    at_most: float | None = None
    not_comparable: str = ""
    """Why our number, if there is one, cannot be held against the published one."""
    note: str = ""

    @model_validator(mode="after")
    def _can_be_judged(self) -> Claim:
        if not self.not_comparable:
            if self.quantity is None or self.configuration is None:
                field = "quantity" if self.quantity is None else "configuration"
                raise field_problem(field, "missing, expected it unless the claim says why it is not_comparable")
            if self.within is None and self.at_least is None and self.at_most is None:
                raise field_problem(
                    "within", "missing, expected within, at_least or at_most: when does the claim stand?"
                )
        if self.within is not None and (self.at_least is not None or self.at_most is not None):
            raise field_problem("within", "got it together with at_least or at_most, expected one way to judge")
        if self.within is not None and self.published is None:
            raise field_problem("published", "missing, expected the number that ours must lie `within` reach of")
        if self.published is not None and not self.where:
            raise field_problem("where", "missing, expected the table and row of the published number")
        return self

    @property
    def range(self) -> tuple[float, float]:
        """Lowest and highest value for which the claim stands."""
        if self.within is not None and self.published is not None:
            return self.published - self.within, self.published + self.within
        low = float("-inf") if self.at_least is None else self.at_least
        return low, float("inf") if self.at_most is None else self.at_most


class Expected(Spec):
    """The content of expected.yaml."""

    SCHEMA: ClassVar[str | None] = "expected/1"

    claim: str
    """The study's claim in one sentence."""
    source: str
    claims: tuple[Claim, ...] = Field(min_length=1)

    @classmethod
    def read(cls, path: Path | str) -> Expected:
        """Read expected.yaml; SpecError with file, line and field of everything that is wrong."""
        return load_yaml(Path(path), cls)

    @classmethod
    def beside(cls, folder: Path) -> Expected | None:
        """The expectations of the study in `folder` (experiment.yaml with expected.yaml beside it), or None."""
        files = folder / "experiment.yaml", folder / "expected.yaml"
        return cls.read(files[1]) if all(file.is_file() for file in files) else None

    def check_names(self, configurations: Sequence[str], machines: Sequence[str]) -> None:
        """Refuse claims on what the experiment does not have; a run calls this before it starts.

        Raises:
            SpecError: naming each claim, what it names and what there is.
        """
        problems = []
        for place, claim in enumerate(self.claims):
            for field, name, known in (
                ("configuration", claim.configuration, configurations),
                ("accelerator", claim.accelerator, machines),
            ):
                if name is not None and name not in known:
                    expected = ", ".join(known) or "none"
                    problems.append(f"expected.yaml: claims[{place}].{field}: got {name!r}, expected one of {expected}")
        if problems:
            raise SpecError(*problems)


@dataclass(frozen=True)
class Judgement:
    """A claim, what we found, and how they compare."""

    claim: Claim
    ours: Spread | None
    noisy: bool
    """Whether the quantity differs from seed to seed."""
    verdict: Verdict
    why: str

    @property
    def interval(self) -> tuple[float, float] | None:
        """Where our mean lies: the 95 % interval, or the value itself for a quantity without noise."""
        if self.ours is None:
            return None
        return self.ours.interval if self.noisy else (self.ours.mean, self.ours.mean)


def judge(expected: Expected, results: Results) -> tuple[Judgement, ...]:
    """Compare every claim with the results.

    Raises:
        SpecError: a claim names a configuration or an accelerator that the experiment does not have.
    """
    if not results.quick:  # whose quick form leaves out some
        expected.check_names([c.name for c in results.configurations], [machine.name for machine in results.machines])
    return tuple(_judge(claim, results) for claim in expected.claims)


def compare(interval: tuple[float, float], allowed: tuple[float, float]) -> Verdict:
    """Verdict of an interval against the range in which a claim stands."""
    low, high = interval
    if allowed[0] <= low and high <= allowed[1]:
        return "confirmed"
    return "not confirmed" if high < allowed[0] or low > allowed[1] else "within noise"


def overall(judgements: Sequence[Judgement]) -> Verdict:
    """A study's verdict: the worst of its comparable claims."""
    found = {judgement.verdict for judgement in judgements}
    worst_first: tuple[Verdict, ...] = ("quick", "not confirmed", "within noise", "confirmed")
    return next((verdict for verdict in worst_first if verdict in found), "not comparable")


def tally(judgements: Sequence[Judgement]) -> str:
    """The verdicts counted: "5 confirmed, 1 within noise"."""
    counts = Counter(judgement.verdict for judgement in judgements)
    return ", ".join(f"{counts[verdict]} {verdict}" for verdict in get_args(Verdict) if counts[verdict])


def study_line(folder: Path | str) -> tuple[str, str]:
    """Claim (or the question, where none is claimed) and verdict of the study in a folder, for a list.

    What is missing is said, never guessed.
    Without expected.yaml, the verdicts are those that the sections of its results state themselves.

    Raises:
        SpecError: expected.yaml or results.json is damaged, or they do not fit together.
    """
    place = Path(folder)
    expected = Expected.read(place / "expected.yaml") if (place / "expected.yaml").is_file() else None
    claim = expected.claim if expected else _question(place / "experiment.yaml")
    if not (place / "results.json").is_file():
        return claim, "not run yet"
    results = Results.read(place / "results.json")
    if results.quick:
        return claim, "quick run only, nothing judged"
    if expected:
        return claim, tally(judge(expected, results))
    stated = Counter(section.verdict for section in results.sections if section.verdict)
    return claim, ", ".join(f"{count} {verdict}" for verdict, count in stated.items()) or "states no expectation"


def _question(path: Path) -> str:
    """The question in an experiment file, without checking the rest; empty if there is no file or no question."""
    plain = parse_yaml(read_text(path), str(path)).data if path.is_file() else None
    question = plain.get("question", "") if isinstance(plain, dict) else ""
    return question if isinstance(question, str) else ""


def comparison_section(expected: Expected, results: Results) -> Section:
    """Ours beside theirs, as a section of the study's page."""
    judgements = judge(expected, results)
    rows = [_row(judgement) for judgement in judgements]
    columns = [
        Column(name="claim"),
        Column(name="published", kind="number", digits=2),
        Column(name="where"),
        Column(name="ours", kind="number", digits=2),
        Column(name="± deviation", kind="number", digits=2),
        Column(name="95 % interval"),
        Column(name="stands if"),
        Column(name="verdict", kind="verdict"),
        Column(name="why"),
    ]
    note = (
        "Accuracies in percent, differences in points, gains as ratios. Confirmed: the interval of our mean lies where "
        "the claim stands; not confirmed: outside; within noise: across an end of it."
    )
    table = Table(
        title="Ours beside the published numbers", columns=columns, rows=rows, note=note, source=expected.source
    )
    return Section(
        title="Ours beside the published numbers",
        text=f"{expected.claim}\n\n{tally(judgements).capitalize()}.",
        verdict=overall(judgements),
        figures=_figures(judgements, expected.source, results.summary().measure),
        tables=[table],
    )


def _judge(claim: Claim, results: Results) -> Judgement:
    noisy = claim.quantity not in _GAINS
    ours = _ours(claim, results)
    if claim.not_comparable:
        return Judgement(claim, ours, noisy, "not comparable", claim.not_comparable)
    if results.quick:
        return Judgement(claim, ours, noisy, "quick", "a quick run judges nothing")
    if ours is None:
        return Judgement(claim, ours, noisy, "not comparable", _why_missing(claim, results))
    judgement = Judgement(claim, ours, noisy, "not comparable", "one seed gives no interval")
    if judgement.interval is None:
        return judgement
    return Judgement(claim, ours, noisy, compare(judgement.interval, claim.range), claim.note)


def _why_missing(claim: Claim, results: Results) -> str:
    machine = _accelerator(claim, results)
    if claim.quantity in _GAINS and machine is None:
        return "name an accelerator: the results hold none, or several"
    return f"the results hold no {(claim.quantity or '').replace('_', ' ')} of {claim.configuration}"


def _ours(claim: Claim, results: Results) -> Spread | None:
    """Our number, in the units of the claim; None if the results do not hold it."""
    if claim.quantity is None or claim.configuration is None:
        return None
    return _gain(claim, results) if claim.quantity in _GAINS else _trained(claim, results)


def _gain(claim: Claim, results: Results) -> Spread | None:
    machine = _accelerator(claim, results)
    if machine is None or claim.quantity is None or claim.configuration is None:
        return None
    if claim.quantity == "macs_gain_backward":
        value = _macs_gain(results, claim.configuration, machine)
    else:
        row = results.summary().cost_of(claim.configuration, machine)
        value = None if row is None else _GAINS[claim.quantity](row)
    return None if value is None else Spread.of([value])


def _trained(claim: Claim, results: Results) -> Spread | None:
    row = results.summary().accuracy_of(claim.configuration or "")
    if row is None:
        return None
    if claim.quantity == "selected_epoch":
        trials = [trial.training for trial in results.trials if trial.configuration == claim.configuration]
        return Spread.of(t.selected_epoch + 1.0 for t in trials if t.selected_epoch is not None)  # papers count from 1
    if claim.quantity == "average_dimension":
        trials = [trial.training for trial in results.trials if trial.configuration == claim.configuration]
        return Spread.of(t.average_dimension for t in trials if t.average_dimension is not None)
    if claim.quantity == "steps_to_target":
        return row.steps_to_target if row.reached_target == row.trials else None
    spreads = {
        "test_accuracy": row.test_accuracy,
        "dev_accuracy": row.dev_accuracy,
        "accuracy_difference": row.difference,
    }
    spread = spreads[claim.quantity or ""]
    return None if spread is None else _scaled(spread, 100.0)


def _part(name: str, cost: str) -> Callable[[CostRow], float | None]:
    def value(row: CostRow) -> float | None:
        gain: Gain | None = getattr(row, name)
        return None if gain is None else getattr(gain, cost)

    return value


_GAINS: dict[str, Callable[[CostRow], float | None]] = {
    f"{cost}_gain_{part}": _part(f"gain_{part}", cost)
    for cost in ("cycles", "energy")
    for part in ("backward_gemms", "backward", "step")
} | {"macs_gain_backward": lambda row: None}


def _macs_gain(results: Results, configuration: str, machine: str) -> float | None:
    """Useful MACs of the dense backward GEMMs over those of the top-k ones."""
    macs: dict[str, list[float]] = {"dense": [], "trained": []}
    for record in results.simulations:
        if (record.configuration, record.accelerator) == (configuration, machine) and record.work in macs:
            macs[record.work].append(sum(op.macs for op in record.ops if is_backward_gemm(op)))
    dense, ours = Spread.of(macs["dense"]), Spread.of(macs["trained"])
    return dense.mean / ours.mean if dense and ours and ours.mean else None


def _accelerator(claim: Claim, results: Results) -> str | None:
    if claim.accelerator is not None:
        return claim.accelerator
    return results.machines[0].name if len(results.machines) == 1 else None


def _scaled(spread: Spread, factor: float) -> Spread:
    deviation = None if spread.deviation is None else spread.deviation * factor
    return Spread(spread.mean * factor, deviation, spread.low * factor, spread.high * factor, spread.count)


def _row(judgement: Judgement) -> tuple[Cell, ...]:
    claim, ours, interval = judgement.claim, judgement.ours, judgement.interval
    return (
        claim.name,
        claim.published,
        claim.where,
        None if ours is None else ours.mean,
        ours.deviation if ours is not None and judgement.noisy else None,
        None
        if interval is None or not judgement.noisy
        else f"{interval[0]:.2f} to {interval[1]:.2f}".replace("-", "−"),
        _stands_if(claim),
        judgement.verdict,
        judgement.why or claim.note,
    )


def _stands_if(claim: Claim) -> str:
    if claim.within is not None:
        return f"within {claim.within:g} of it"
    ends = [f"at least {claim.at_least:g}"] if claim.at_least is not None else []
    ends += [f"at most {claim.at_most:g}"] if claim.at_most is not None else []
    return ", ".join(ends) or "–"


def _figures(judgements: Sequence[Judgement], source: str, measure: str) -> list[Figure]:
    """Published and our numbers side by side, one figure for each kind of quantity that has both."""
    kinds = (
        ("Accuracy", measure, "%", ("test_accuracy", "dev_accuracy")),
        ("Difference to the baseline", f"difference of {measure}", "points", ("accuracy_difference",)),
        ("Gains", "dense over top-k", "×", tuple(_GAINS)),
    )
    drawn = []
    for title, label, unit, quantities in kinds:
        shown = [
            (j.claim, j.ours, j.interval)
            for j in judgements
            if j.claim.quantity in quantities and j.ours is not None and j.claim.published is not None
        ]
        if not shown:
            continue
        names = [claim.name for claim, _, _ in shown]
        low = [interval[0] if interval else None for _, _, interval in shown]
        high = [interval[1] if interval else None for _, _, interval in shown]
        theirs = Series(name="published", x=names, y=[claim.published for claim, _, _ in shown], marker="diamond")
        means = Series(name="ours", x=names, y=[ours.mean for _, ours, _ in shown], low=low, high=high, marker="circle")
        drawn.append(
            Figure(
                title=title,
                x=Axis(label="claim"),
                y=Axis(label=label, unit=unit),
                series=[theirs, means],
                horizontal=True,
                caption="Whiskers: 95 % interval of our mean over seeds.",
                source=source,
            )
        )
    return drawn
