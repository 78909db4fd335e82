"""A study from its folder to its verdict: experiment and expectations in, results with the comparison out."""

import pytest

from hwsim.errors import SpecError
from hwsim.expected import study_line
from hwsim.pipeline import run
from hwsim.report.page import draw_page
from hwsim.results import Results

EXPERIMENT = """\
schema: experiment/1
name: tiny
question: Does a tiny study reach its verdict?
model: mlp_digits
data: digits
training: {batch: 32, epochs: 1, train_examples: 256, recorded_steps: 2}
seeds: [0, 1]
configurations:
  dense: {precision: float32}
  topk: {precision: float32, sparse: {k: 16, rank_over: batch}}
accelerators: [systolic_16x16]
baseline: dense
"""
EXPECTED = """\
schema: expected/1
claim: A tiny study reaches its verdict.
source: made up
claims:
  - {name: fewer backward MACs, quantity: macs_gain_backward, configuration: topk, at_least: 1.5}
  - {name: perfection, quantity: test_accuracy, configuration: dense, published: 100, where: nowhere, within: 0.1}
"""


def make_study(folder, expected=EXPECTED):
    (folder / "experiment.yaml").write_text(EXPERIMENT, encoding="utf-8")
    (folder / "expected.yaml").write_text(expected, encoding="utf-8")
    return folder / "experiment.yaml"


def test_a_study_ends_with_its_verdict(tmp_path):
    results = run(make_study(tmp_path), out=tmp_path)
    assert Results.read(tmp_path) == results
    rows = results.sections[0].tables[0].rows
    assert [row[0] for row in rows] == ["fewer backward MACs", "perfection"]
    assert rows[0][-2] == "confirmed"
    assert rows[1][-2] in ("not confirmed", "within noise")
    assert study_line(tmp_path)[0] == "A tiny study reaches its verdict."
    assert "1 confirmed" in study_line(tmp_path)[1]
    assert "Ours beside the published numbers" in draw_page(results)


def test_a_wrong_expectation_stops_the_run_before_it_starts(tmp_path):
    with pytest.raises(SpecError, match=r"claims\[0\]\.configuration: got 'topq'"):
        run(make_study(tmp_path, EXPECTED.replace("configuration: topk", "configuration: topq")), out=tmp_path / "out")
    assert not (tmp_path / "out" / "trials").exists()
