"""Experiment files: grids, what a point becomes, and where a mistake is said to stand."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from hwsim.catalog import load_experiment
from hwsim.errors import SpecError
from hwsim.experiment import Experiment, SparseSettings
from hwsim.spec import load_yaml
from hwsim.training.plan import PrecisionPlan
from hwsim.training.presets import named_plan
from hwsim.training.sparse import SparseBackprop

HEAD = "schema: experiment/1\nname: a\nmodel: mlp_digits\ndata: digits\nconfigurations:\n"


def read(text: str) -> Experiment:
    return load_yaml(HEAD + text, Experiment, file="study.yaml")


def problems(text: str) -> tuple[str, ...]:
    with pytest.raises(SpecError) as caught:
        read(text)
    return caught.value.problems


def test_a_grid_takes_every_combination_the_last_key_fastest() -> None:
    points = read("  t: {sparse: {}, grid: {sparse.k: [1, 2], training.learning_rate: [0.1, 0.2]}}\n").points()
    assert [point.name for point in points] == [
        "t k=1 learning_rate=0.1",
        "t k=1 learning_rate=0.2",
        "t k=2 learning_rate=0.1",
        "t k=2 learning_rate=0.2",
    ]
    assert [(p.sparse and p.sparse.k, p.recipe.learning_rate) for p in points] == [
        (1, 0.1),
        (1, 0.2),
        (2, 0.1),
        (2, 0.2),
    ]
    assert {point.family for point in points} == {"t"}


def test_grid_keys_of_one_last_name_are_written_in_full() -> None:
    text = (
        "  t: {sparse: {}, grid: {sparse.k: [1], training.batch: [8], model.arguments.k: [3]}, model: {name: a.py}}\n"
    )
    (point,) = read(text).points()
    assert point.name == "t sparse.k=1 batch=8 model.arguments.k=3"
    assert point.model_arguments == {"k": 3}


def test_a_grid_may_reach_into_a_plan() -> None:
    text = "  t: {precision: {uniform: {forward: int8}}, grid: {precision.uniform.accumulator: [int16, int32]}}\n"
    assert [point.plan for point in read(text).points()] == [
        PrecisionPlan.uniform("int8", accumulator="int16"),
        PrecisionPlan.uniform("int8", accumulator="int32"),
    ]


def test_a_configuration_changes_only_what_it_says_of_the_recipe() -> None:
    text = "  t: {training: {batch: 64}}\n  u: {}\ntraining: {learning_rate: 0.5, batch: 32}\n"
    t, u = read(text).points()
    assert (t.recipe.learning_rate, t.recipe.batch) == (0.5, 64)
    assert (u.recipe.learning_rate, u.recipe.batch) == (0.5, 32)


def test_precision_by_name_by_file_and_written_out_is_the_same_plan(tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text("schema: plan/1\npreset: fp8_hybrid\n")
    text = "  a: {precision: fp8_hybrid}\n  b: {precision: ./plan.yaml}\n  c: {precision: {preset: fp8_hybrid}}\n"
    (tmp_path / "study.yaml").write_text(HEAD + text)
    plans = [point.plan for point in load_experiment(tmp_path / "study.yaml").points()]
    assert plans == [named_plan("fp8_hybrid")] * 3


def test_a_mistake_in_a_plan_file_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text("schema: plan/1\npresett: fp8_hybrid\n")
    (tmp_path / "study.yaml").write_text(HEAD + "  b: {precision: ./plan.yaml}\n")
    with pytest.raises(SpecError, match=r"configurations\.b\.precision: .*plan\.yaml:2: presett: unknown key"):
        load_experiment(tmp_path / "study.yaml").points()


def test_settings_of_sparse_backprop_are_the_ones_that_training_knows() -> None:
    assert set(SparseSettings.model_fields) == {field.name for field in fields(SparseBackprop)}
    text = (
        "  t: {sparse: {fraction: 0.1, rank_over: batch, memory: 0.5, layers: [fc1], schedule: [[0, 0.5], [3, 0.1]]}}\n"
    )
    (point,) = read(text).points()
    assert point.sparse == SparseBackprop(
        fraction=0.1, rank_over="batch", memory=0.5, layers=("fc1",), schedule=((0, 0.5), (3, 0.1))
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  t: {sparse: {k: 1, fraction: 0.5}}\n", "6: configurations.t.sparse.fraction: got k and fraction together"),
        ("  t: {sparse: {}}\n", "6: configurations.t.sparse.k: missing, expected k (a count) or fraction (a share)"),
        ("  t: {sparse: {k: 0}}\n", "6: configurations.t.sparse.k: got 0, expected a whole number >= 1"),
        (
            "  t: {sparse: {fraction: 1.5}}\n",
            "6: configurations.t.sparse.fraction: got 1.5, expected a number > 0 and <= 1",
        ),
        ("  t: {sparse: {k: 1, rank_over: bach}}\n", "Did you mean 'batch'?"),
        ("  t: {sparse: {k: 1, rnk_over: batch}}\n", "6: configurations.t.sparse.rnk_over: unknown key. Did you mean"),
        (
            "  t:\n    training:\n      batch: 0\n",
            "8: configurations.t.training.batch: got 0, expected a whole number >= 1",
        ),
        ("  t: {training: {momentum: 0.9}}\n", "6: configurations.t.training.momentum: got 0.9, expected 0: only sgd"),
        ("  t:\n    grid: {sprse.k: [1]}\n", "7: configurations.t.grid.sprse.k: unknown setting, expected it to start"),
        (
            "  t: {sparse: {}, grid: {sparse.k: [4, many]}}\n",
            "6: configurations.t.grid.sparse.k: got 'many', expected a whole",
        ),
        (
            "  t: {grid: {training.epochs: [0]}}\n",
            "6: configurations.t.training.epochs: got 0, expected a whole number",
        ),
        ("  t: {precision: fp16}\n", "6: configurations.t.precision: got 'fp16', expected one of float32"),
        (
            "  t: {precision: {preset: fp8_hybrid, uniform: {forward: int8}}}\n",
            "expected one of preset, uniform, rules",
        ),
        ("  t: {precision: {uniform: {forward: int8, rounding: nearest}}}\n", "configurations.t.precision"),
        ("  t: {precision: {rules: [{casts: {wait: int8}}]}}\n", "casts.wait: got 'wait', expected one of"),
        ("  t t: {}\n", "6: configurations.t t"),
        ("  t: {}\nseeds: [1, 1]\n", "7: seeds: got the same seed twice"),
        ("  t: {}\nseeds: []\n", "7: seeds: got a list of 0, expected at least 1 entries"),
        ("  t: {}\nbaseline: dense\n", "7: baseline: got 'dense', expected one of t"),
        (
            "  t: {}\nengine: evnts\n",
            "7: engine: got 'evnts', expected one of 'fast', 'events'. Did you mean 'events'?",
        ),
        ("  t: {}\ntarget_accuracy: 95\n", "7: target_accuracy: got 95, expected a number > 0 and <= 1"),
    ],
)
def test_a_mistake_is_one_line_that_says_where(text: str, expected: str) -> None:
    (found,) = problems(text)
    assert expected in found
    assert found.startswith("study.yaml:")


def test_mistakes_of_several_configurations_come_together() -> None:
    text = "  t: {sparse: {k: 0}}\n  u: {training: {}, precision: fp16}\n  v: {modell: x}\n"
    assert [line.partition(": ")[2].partition(":")[0] for line in problems(text)] == [
        "configurations.t.sparse.k",
        "configurations.u.precision",
        "configurations.v.modell",
    ]


# ---- seeds of a configuration, and the quick form

STUDY = """\
schema: experiment/1
name: study
model: mlp_digits
data: digits
training: {batch: 64, epochs: 20}
seeds: [0, 1, 2]
configurations:
  dense: {seeds: [0, 1, 2, 3, 4]}
  topk: {sparse: {rank_over: batch}, training: {epochs: 30}, grid: {sparse.k: [4, 8, 16]}}
  other: {sparse: {k: 3}}
baseline: dense
quick:
  configurations: [dense, topk k=8]
  seeds: [7]
  training: {epochs: 2, train_examples: 128}
"""


def test_a_configuration_may_have_seeds_of_its_own() -> None:
    seeds = {point.name: point.seeds for point in load_yaml(STUDY, Experiment).points()}
    assert seeds["dense"] == (0, 1, 2, 3, 4) and seeds["topk k=4"] == seeds["other"] == (0, 1, 2)


def test_the_quick_form_is_the_same_points_on_less() -> None:
    whole = load_yaml(STUDY, Experiment)
    quick = {point.name: point for point in whole.quick_form().points()}
    assert list(quick) == ["dense", "topk k=8"]
    for name, point in quick.items():
        same = next(candidate for candidate in whole.points() if candidate.name == name)
        assert (point.plan, point.sparse, point.model) == (same.plan, same.sparse, same.model)
        assert point.seeds == (7,)
        assert (point.recipe.epochs, point.recipe.train_examples, point.recipe.batch) == (2, 128, 64)


def test_without_a_quick_block_everything_is_shortened() -> None:
    whole = load_yaml(STUDY[: STUDY.index("quick:")], Experiment)
    quick = whole.quick_form().points()
    assert [point.name for point in quick] == [point.name for point in whole.points()]
    assert all(point.recipe.epochs == 1 and point.recipe.train_examples == 1000 for point in quick)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("topk k=8", "topk k=9", "quick.configurations[1]: got 'topk k=9', expected one of"),
        ("epochs: 2,", "epoch: 2,", "quick.training.epoch: unknown"),
        ("epochs: 2,", "epochs: 0,", "quick.training.epochs: got 0"),
    ],
)
def test_a_mistake_in_the_quick_form_is_named(old: str, new: str, expected: str) -> None:
    with pytest.raises(SpecError) as caught:
        load_yaml(STUDY.replace(old, new), Experiment)
    assert expected in str(caught.value)


def test_a_quick_form_without_the_baseline_is_refused() -> None:
    text = STUDY.replace("[dense, topk k=8]", "[topk]")
    with pytest.raises(SpecError, match=r"quick: .*baseline: got 'dense'"):
        load_yaml(text, Experiment).quick_form()
