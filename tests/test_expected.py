"""Verdicts: which published claims stand, judged by hand-made results of known mean and spread."""

from pathlib import Path
from typing import get_args

import pytest

from hwsim.errors import SpecError
from hwsim.expected import Claim, Expected, Quantity, compare, comparison_section, judge, overall, study_line, tally
from hwsim.records import Configuration, EnergyRange, Machine, SimulatedOp, SimulationRecord, TrialRecord
from hwsim.report.page import write_page
from hwsim.results import Provenance, Results
from hwsim.section import Section
from hwsim.spec import load_yaml
from hwsim.summary import t95
from hwsim.training.result import TrainingSummary

YAML = """\
schema: expected/1
claim: Top-k keeps the accuracy.
source: Sun et al., ICML 2017
claims:
  - name: top-k accuracy
    quantity: test_accuracy
    configuration: topk
    published: 98.01
    where: Table 1
    within: 0.5
  - name: seconds on their machine
    not_comparable: another machine
"""


def make_trial(configuration, seed, test):
    return TrialRecord(
        key=f"{configuration}{seed}",
        configuration=configuration,
        training=TrainingSummary(
            model="m",
            data="d",
            plan="float32",
            sparse=None,
            seed=seed,
            outcome="finished",
            test_accuracy=test,
            dev_accuracy=test,
            selected_epoch=7,
            steps=100,
            steps_per_epoch=50,
            curves={"step": (50.0, 100.0), "dev_accuracy": (0.5, test)},
            wall_s=0.0,
            backends=(),
            hashes={},
        ),
    )


def make_simulation(configuration, work, cycles, macs):
    energy = {"mac": EnergyRange(low=cycles, nominal=2 * cycles, high=3 * cycles)}
    op = SimulatedOp(
        id="grad_weight",
        layer="fc",
        phase="backward",
        kind="gemm",
        gemm="grad_weight",
        cycles=cycles,
        macs=macs,
        energy_pj=energy,
    )
    return SimulationRecord(
        configuration=configuration,
        accelerator="chip",
        work=work,
        seed=0,
        clock_ghz=1.0,
        step_cycles=[cycles],
        step_energy_pj=[1.0],
        ops=[op],
    )


def make_results(topk=(0.980, 0.981, 0.979), dense=(0.978, 0.979, 0.977), machines=("chip",)):
    return Results(
        experiment={"name": "study", "baseline": "dense"},
        configurations=[Configuration(name=n, family=n, precision="float32") for n in ("dense", "topk")],
        trials=[
            *(make_trial("dense", i, value) for i, value in enumerate(dense)),
            *(make_trial("topk", i, value) for i, value in enumerate(topk)),
        ],
        machines=[Machine(name=name, clock_ghz=1.0) for name in machines],
        simulations=[make_simulation("topk", "trained", 10.0, 4.0), make_simulation("topk", "dense", 50.0, 100.0)],
        provenance=Provenance(hwsim="0", code="c", created="2026-01-02T03:04:05Z"),
    )


def verdict(results=None, **claim):
    fields = {"name": "c", "configuration": "topk", **claim}
    expected = Expected(claim="x", source="y", claims=[Claim(**fields)])
    return judge(expected, results or make_results())[0]


@pytest.mark.parametrize(
    ("interval", "expected"),
    [
        ((1.0, 2.0), "confirmed"),
        ((1.2, 1.3), "confirmed"),
        ((0.9, 1.1), "within noise"),
        ((1.9, 2.1), "within noise"),
        ((0.0, 3.0), "within noise"),
        ((2.1, 2.2), "not confirmed"),
        ((0.1, 0.9), "not confirmed"),
    ],
)
def test_an_interval_against_the_range_of_a_claim(interval, expected):
    assert compare(interval, (1.0, 2.0)) == expected


def test_an_accuracy_is_judged_in_percent_by_the_interval_of_its_mean():
    found = verdict(quantity="test_accuracy", published=98.01, where="Table 1", within=0.5)
    assert found.ours.mean == pytest.approx(98.0)
    half = t95(2) * 0.1 / 3**0.5
    assert found.interval == pytest.approx((98.0 - half, 98.0 + half))
    assert found.verdict == "confirmed"
    assert verdict(quantity="test_accuracy", published=98.01, where="T", within=0.1).verdict == "within noise"
    assert verdict(quantity="test_accuracy", published=99.5, where="T", within=0.5).verdict == "not confirmed"


def test_a_difference_is_paired_by_seed():
    found = verdict(quantity="accuracy_difference", published=0.19, where="Table 1", at_least=0.0)
    assert found.ours.mean == pytest.approx(0.2)
    assert found.verdict == "confirmed"
    noisy = make_results(topk=(0.970, 0.990, 0.975))
    assert verdict(noisy, quantity="accuracy_difference", at_least=0.0).verdict == "within noise"
    worse = make_results(topk=(0.970, 0.971, 0.969))
    assert verdict(worse, quantity="accuracy_difference", at_least=-0.2).verdict == "not confirmed"


def test_a_difference_can_be_to_another_configuration_than_the_baseline():
    against_itself = verdict(quantity="accuracy_difference", against="topk", at_least=0.0)
    assert against_itself.ours is None and against_itself.verdict == "not comparable"
    found = verdict(quantity="accuracy_difference", configuration="dense", against="topk", at_most=0.0)
    assert found.ours.mean == pytest.approx(-0.2) and found.ours.count == 3 and found.verdict == "confirmed"


def test_only_a_difference_is_against_something():
    with pytest.raises(ValueError, match="accuracy_difference only"):
        Claim(name="c", quantity="test_accuracy", configuration="topk", against="dense", at_least=0.0)
    with pytest.raises(SpecError, match=r"claims\[0\].against: got 'sparse', expected one of dense, topk"):
        verdict(quantity="accuracy_difference", against="sparse", at_least=0.0)


def test_one_seed_cannot_confirm_an_accuracy():
    found = verdict(make_results(topk=(0.98,)), quantity="test_accuracy", published=98.0, where="T", within=5.0)
    assert (found.verdict, found.why) == ("not comparable", "one seed gives no interval")


def test_simulated_gains_are_judged_as_they_are():
    assert verdict(quantity="cycles_gain_backward", published=5.0, where="T", within=0.01).verdict == "confirmed"
    assert verdict(quantity="energy_gain_step", at_least=5.01).verdict == "not confirmed"
    found = verdict(quantity="macs_gain_backward", published=21.4, where="Table 1", at_least=20.0)
    assert found.ours.mean == 25.0
    assert found.verdict == "confirmed"


def test_epochs_count_from_one_as_papers_do():
    assert verdict(quantity="selected_epoch", at_most=8.0).ours.mean == 8.0


def test_a_missing_number_is_not_comparable_and_says_why():
    bare = make_results().model_copy(update={"simulations": ()})
    found = verdict(bare, quantity="cycles_gain_step", at_least=1.0)
    assert found.verdict == "not comparable"
    assert "no cycles gain step of topk" in found.why
    two = make_results(machines=("chip", "other"))
    assert "name an accelerator" in verdict(two, quantity="cycles_gain_step", at_least=1.0).why
    assert verdict(two, quantity="cycles_gain_step", at_least=1.0, accelerator="chip").verdict == "confirmed"


def test_what_cannot_be_compared_stays_so_whatever_our_number_is():
    found = verdict(quantity="test_accuracy", not_comparable="another corpus")
    assert (found.verdict, found.why) == ("not comparable", "another corpus")
    assert found.ours.mean == pytest.approx(98.0)


def test_a_study_is_as_good_as_its_worst_comparable_claim(tmp_path):
    expected = Expected(
        claim="x",
        source="y",
        claims=[
            Claim(name="a", configuration="topk", quantity="test_accuracy", at_least=90.0),
            Claim(name="b", configuration="topk", quantity="test_accuracy", at_least=99.0),
            Claim(name="c", not_comparable="no data"),
        ],
    )
    found = judge(expected, make_results())
    assert overall(found) == "not confirmed"
    assert overall(found[:1]) == "confirmed"
    assert overall(found[2:]) == "not comparable"
    assert tally(found) == "1 confirmed, 1 not confirmed, 1 not comparable"


def test_a_claim_on_something_that_was_not_run_is_refused():
    with pytest.raises(SpecError, match=r"claims\[0\]\.configuration: got 'topq', expected one of dense, topk"):
        verdict(configuration="topq", quantity="test_accuracy", at_least=1.0)
    with pytest.raises(SpecError, match=r"claims\[0\]\.accelerator: got 'ship'"):
        verdict(accelerator="ship", quantity="cycles_gain_step", at_least=1.0)


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        ("within: 0.5", "note: none", "within"),
        ("within: 0.5", "within: 0.5\n    at_least: 1.0", "within"),
        ("published: 98.01", "note: none", "published"),
        ("where: Table 1", "note: none", "where"),
        ("quantity: test_accuracy", "note: none", "quantity"),
        ("quantity: test_accuracy", "quantity: speed", "quantity"),
        ("not_comparable: another machine", "note: none", "quantity"),
        ("within: 0.5", "within: -0.5", "within"),
    ],
)
def test_a_wrong_file_is_refused_with_line_and_field(tmp_path, old, new, field):
    path = tmp_path / "expected.yaml"
    path.write_text(YAML.replace(old, new), encoding="utf-8")
    with pytest.raises(SpecError) as caught:
        Expected.read(path)
    assert str(caught.value).startswith(f"{path}:")
    assert f".{field}: " in str(caught.value)


def test_a_study_line_says_what_is_missing(tmp_path):
    assert study_line(tmp_path) == ("", "not run yet")
    (tmp_path / "experiment.yaml").write_text("schema: experiment/1\nquestion: Does it?\n", encoding="utf-8")
    assert study_line(tmp_path) == ("Does it?", "not run yet"), "a question where nothing is claimed"
    (tmp_path / "expected.yaml").write_text(YAML, encoding="utf-8")
    assert study_line(tmp_path) == ("Top-k keeps the accuracy.", "not run yet")
    make_results().write(tmp_path / "results.json")
    assert study_line(tmp_path) == ("Top-k keeps the accuracy.", "1 confirmed, 1 not comparable")


def test_a_study_without_expectations_shows_the_verdicts_of_its_sections(tmp_path):
    make_results().write(tmp_path / "results.json")
    assert study_line(tmp_path) == ("", "states no expectation")
    sections = [Section(title=f"part {i}", verdict=verdict) for i, verdict in enumerate(("passed", "passed", "failed"))]
    make_results().model_copy(update={"sections": tuple(sections)}).write(tmp_path / "results.json")
    assert study_line(tmp_path) == ("", "2 passed, 1 failed")


def test_the_section_holds_both_numbers_and_the_verdict(tmp_path):
    (tmp_path / "expected.yaml").write_text(YAML, encoding="utf-8")
    block = comparison_section(Expected.read(tmp_path / "expected.yaml"), make_results())
    assert block.verdict == "confirmed"
    row = dict(zip((column.name for column in block.tables[0].columns), block.tables[0].rows[0], strict=True))
    assert (row["published"], row["ours"]) == (98.01, pytest.approx(98.0))
    assert row["verdict"] == "confirmed"
    theirs, ours = block.figures[0].series
    assert theirs.y == (98.01,)
    assert ours.low[0] < ours.y[0] < ours.high[0]


def test_the_example_in_the_studies_readme_is_valid():
    text = (Path(__file__).parent.parent / "reports" / "README.md").read_text(encoding="utf-8")
    example = text.partition("```yaml\n")[2].partition("```")[0]
    assert len(load_yaml(example, Expected).claims) == 4
    for quantity in get_args(Quantity):
        assert quantity in text or f"{quantity.partition('_gain')[0]}_gain_*" in text


def test_a_quick_run_judges_nothing(tmp_path):
    quick = make_results().model_copy(update={"quick": True})
    found = verdict(quick, quantity="test_accuracy", published=98.01, where="Table 1", within=0.5)
    assert found.verdict == "quick" and found.ours is not None
    absent = verdict(quick, configuration="left out", quantity="test_accuracy", published=98.0, where="T", within=0.5)
    assert absent.verdict == "quick" and absent.ours is None
    quick.write(tmp_path / "results.json")
    assert study_line(tmp_path)[1] == "quick run only, nothing judged"
    page = write_page(quick, tmp_path).read_text(encoding="utf-8")
    assert "A quick run" in page and "matches" not in page.partition("<main>")[0].partition("<header>")[2]
