"""Sections that an experiment asks for: fronts, ties, break-even, counts, recorded processors."""

import json
from typing import get_args

import numpy as np
import pytest

from hwsim.analysis.break_even import crossing
from hwsim.analysis.cpu_record import CpuRecord
from hwsim.analysis.meprop_counts import Layer, backward_gain, mnist, parser, tagger, total_gain
from hwsim.analysis.pareto import Choice, front, within_noise_of_best
from hwsim.analysis.published_speed import CPU_FILE, cpu_section, fitted_break_even, gpu_section
from hwsim.analysis.sections import ANALYSES, analyze
from hwsim.errors import SpecError
from hwsim.experiment import Experiment
from hwsim.pipeline import run
from hwsim.spec import from_plain
from hwsim.summary import Spread
from hwsim.validation.meprop import TABLE_7_MS

FILE = {
    "schema": "experiment/1",
    "name": "small",
    "model": "mlp_digits",
    "data": "digits",
    "training": {"batch": 32, "epochs": 1, "train_examples": 320, "recorded_steps": 2},
    "seeds": [0, 1],
    "configurations": {
        "dense": {"precision": "fp8_hybrid"},
        "topk": {"precision": "fp8_hybrid", "sparse": {"rank_over": "batch"}, "grid": {"sparse.k": [4, 16, 64]}},
        "ties": {"precision": "fp8_hybrid", "sparse": {"k": 8, "rank": "after_cast"}},
    },
    "accelerators": ["systolic_16x16"],
    "baseline": "dense",
    "analyses": ["pareto", "ties", "break_even"],
}


def test_every_analysis_can_be_asked_for():
    literal = get_args(Experiment.model_fields["analyses"].annotation)[0]
    assert set(get_args(literal)) == set(ANALYSES)


def test_a_front_holds_exactly_what_nothing_beats():
    rng = np.random.default_rng(0)
    for _ in range(50):
        values = rng.integers(0, 6, (12, 2)).tolist()
        choices = [Choice(str(n), Spread(a / 10, None, 0, 1, 1), float(e)) for n, (a, e) in enumerate(values)]
        unbeaten = {
            (a, e) for a, e in values if not any(a2 >= a and e2 <= e and (a2 > a or e2 < e) for a2, e2 in values)
        }
        assert {(round(c.accuracy.mean * 10), int(c.energy_uj)) for c in front(choices)} == unbeaten


def test_the_cheapest_within_noise_reaches_the_best_mean():
    wide, narrow = Spread.of([0.91, 0.97]), Spread.of([0.940, 0.9405])
    wider = Spread.of([0.80, 0.96])  # its interval reaches the best, its mean is six points under
    choices = [Choice("best", Spread.of([0.94, 0.95]), 9.0), Choice("wide", wide, 2.0), Choice("no", narrow, 1.0)]
    choices.append(Choice("wider", wider, 0.5))
    assert [c.name for c in within_noise_of_best(choices)] == ["wide", "best"]


@pytest.mark.parametrize(
    ("gains", "said"),
    [
        ([(10, 4.0), (40, 1.0), (160, 0.5)], "40"),
        ([(10, 4.0), (160, 0.25)], "40"),  # logarithmic axes
        ([(10, 0.9), (40, 0.8)], "none"),
        ([(10, 1.0), (40, 1.0)], "none"),  # no loss is no gain
        ([(10, 3.0), (40, 1.5)], "over 40"),
        ([(10, 0.9), (20, 2.0), (80, 0.5)], "40"),
    ],
)
def test_break_even_lies_where_the_gain_falls_below_one(gains, said):
    assert crossing(gains) == said


def test_counts_are_those_of_the_paper_networks():
    assert sum(layer.backward(None) for layer in mnist()) == 902_000
    for k, macs in ((5, 13_920), (10, 27_840), (20, 45_680), (80, 152_720), (160, 295_440)):
        assert sum(layer.backward(k) for layer in mnist()) == macs
    assert backward_gain(mnist(), 20) == pytest.approx(19.7, abs=0.05)
    assert backward_gain(parser(), 20) == pytest.approx(2 * (2400 * 500 + 500 * 25) / (2 * 20 * 2900))
    assert backward_gain(tagger(apart=False), 5) > backward_gain(tagger(apart=True), 5) > 30
    assert 1 < total_gain(mnist(), 20) < backward_gain(mnist(), 20)
    assert backward_gain((Layer(8, 8),), 8) == 1.0


def test_the_line_through_table_7_meets_dense_near_a_third_of_the_width():
    assert fitted_break_even(TABLE_7_MS, 8192) == pytest.approx(2460, rel=0.02)


def test_sections_of_a_run(tmp_path):
    results = run(from_plain(FILE, Experiment), tmp_path)
    pareto, ties, even = results.sections
    assert {row[0] for row in pareto.tables[0].rows} == {"dense", "topk k=4", "topk k=16", "topk k=64", "ties"}
    assert any(row[-1] == "yes" for row in pareto.tables[0].rows)
    shares = {row[0]: row[1] for row in ties.tables[0].rows}
    assert shares["ties"] > 0.05 and "dense" not in shares and "ties" in ties.text
    assert shares["topk k=4"] < shares["ties"]
    gains = {(row[2], row[3], row[4]): row[5] for row in even.tables[0].rows}
    assert gains["backward GEMMs", "dense", "cycles"] > gains["step", "dense", "cycles"] > 0
    record = next(r for r in results.simulations if (r.configuration, r.work) == ("topk k=4", "dense"))
    assert record.step_cycles, "the rival was simulated"


def test_nothing_simulated_is_said_plainly(tmp_path):
    plain = {**FILE, "accelerators": [], "seeds": [0], "configurations": {"dense": {}}, "analyses": []}
    results = run(from_plain(plain, Experiment), tmp_path)
    pareto, ties, even = analyze(("pareto", "ties", "break_even"), results, tmp_path)
    assert "Nothing was simulated" in pareto.text and "No step" in ties.text and "No configuration" in even.text


def test_a_recorded_processor_is_drawn_and_a_missing_one_said(tmp_path):
    assert "Nothing was measured" in cpu_section(tmp_path).text
    rows = [
        {"width": 500, "rank_over": "batch", "share": share, "dense_ms": 2.0, "topk_ms": 2.0 / ratio}
        for share, ratio in ((0.05, 8.0), (0.5, 0.5))
    ]
    plain = {
        "schema": "sparse_backward/1", "device": "a processor", "threads": 1, "date": "2026-11-20", "commit": "abc",
        "versions": {"torch": "2"}, "batch": 64, "rows": rows,
    }  # fmt: skip
    (tmp_path / CPU_FILE).write_text(json.dumps(plain))
    section = cpu_section(tmp_path)
    assert [(row[1], row[3]) for row in section.tables[0].rows] == [(25, pytest.approx(8.0)), (250, pytest.approx(0.5))]
    assert section.tables[1].rows[0][1] == crossing([(25, 8.0), (250, 0.5)])
    assert "a processor" in section.text
    (tmp_path / CPU_FILE).write_text(json.dumps({**plain, "threads": 0}))
    with pytest.raises(SpecError, match="threads"):
        cpu_section(tmp_path)
    assert from_plain(plain, CpuRecord).curves()[500, "batch"][0][0] == 25


def test_gpu_tables_say_that_no_gpu_was_measured(tmp_path):
    section = gpu_section(tmp_path)
    assert "No GPU has been measured" in section.text
    rows = [row for row in section.tables[0].rows if row[0] == "table 7, one layer"]
    assert rows[0][2] == pytest.approx(308.0 / 8.37) and rows[-1][2] is None and rows[-1][3] < 3
