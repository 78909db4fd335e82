"""The whole path: records, resuming to the same numbers, one run a folder, what makes a trial train again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import hwsim
from hwsim import pipeline, provenance
from hwsim.errors import SpecError, UnsupportedError
from hwsim.experiment import Experiment
from hwsim.pipeline import Step
from hwsim.results import Results, locked
from hwsim.spec import load_yaml

TEXT = """\
schema: experiment/1
name: tiny
model: mlp_digits
data: digits
training: {batch: 64, epochs: 2, train_examples: 256, evaluate_examples: 100, recorded_steps: 2}
seeds: [0, 1]
configurations:
  dense: {}
  topk: {sparse: {rank_over: batch}, grid: {sparse.k: [8, 16]}}
accelerators: [systolic_16x16]
baseline: dense
"""


def experiment(text: str = TEXT) -> Experiment:
    return load_yaml(text, Experiment)


def numbers(results: Results) -> dict[str, Any]:
    """Everything found, without times and dates."""
    plain = json.loads(results.model_dump_json())
    del plain["provenance"]
    for trial in plain["trials"]:
        del trial["training"]["wall_s"], trial["training"]["cpu_s"], trial["training"]["backends"]
    return plain


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Results]:
    folder = tmp_path_factory.mktemp("finished")
    return folder, hwsim.run(experiment(), folder)


def test_every_configuration_is_trained_with_every_seed_and_simulated_beside_its_rivals(
    finished: tuple[Path, Results],
) -> None:
    _, results = finished
    names = ["dense", "topk k=8", "topk k=16"]
    assert [c.name for c in results.configurations] == names
    assert [(t.configuration, t.seed) for t in results.trials] == [(name, seed) for name in names for seed in (0, 1)]
    assert len(results.simulations) == 2 * (1 + 4 + 4)
    assert {s.work for s in results.simulations if s.configuration == "topk k=8"} == {
        "trained",
        "dense",
        "zeros",
        "ideal",
    }
    assert results.gaps() == ()


def test_results_are_read_back_and_name_no_place(finished: tuple[Path, Results]) -> None:
    folder, results = finished
    assert numbers(Results.read(folder)) == numbers(results)
    text = (folder / "results.json").read_text()
    assert str(folder) not in text
    assert str(Path.home()) not in text
    assert os.uname().nodename not in text


def test_topk_costs_less_than_its_dense_step_and_ideal_least(finished: tuple[Path, Results]) -> None:
    _, results = finished
    cost = {s.work: sum(s.step_cycles) for s in results.simulations if (s.configuration, s.seed) == ("topk k=8", 0)}
    assert cost["ideal"] <= cost["trained"] < cost["dense"]


def test_no_checkpoint_is_left_behind(finished: tuple[Path, Results]) -> None:
    folder, _ = finished
    kinds = {path.name.partition(".")[2] for path in (folder / "trials").iterdir()}
    assert kinds == {"json", "workload.json", "workload.npz"}


def test_a_second_run_gives_the_same_numbers(finished: tuple[Path, Results], tmp_path: Path) -> None:
    _, results = finished
    assert numbers(hwsim.run(experiment(), tmp_path)) == numbers(results)


@pytest.mark.parametrize("stop", [("train", 0, 0.3), ("train", 3, 0.0), ("simulate", 5, 0.0)])
def test_an_interrupted_run_resumes_to_the_same_numbers(
    stop: tuple[str, int, float], finished: tuple[Path, Results], tmp_path: Path
) -> None:
    def interrupt(step: Step) -> None:
        if (step.stage, step.index) == stop[:2] and step.share >= stop[2]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hwsim.run(experiment(), tmp_path, progress=interrupt)
    assert not (tmp_path / "results.json").exists()
    assert numbers(hwsim.run(experiment(), tmp_path, resume=True)) == numbers(finished[1])


def test_resuming_trains_nothing_again(
    finished: tuple[Path, Results], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hwsim.run(experiment(), tmp_path)
    monkeypatch.setattr(pipeline, "_train", lambda *_: pytest.fail("trained again"))
    assert numbers(hwsim.run(experiment(), tmp_path, resume=True)) == numbers(finished[1])


def test_train_then_simulate_is_the_whole_run(finished: tuple[Path, Results], tmp_path: Path) -> None:
    half = hwsim.run(experiment(), tmp_path, only="train")
    assert half.simulations == ()
    assert half.gaps()
    assert numbers(hwsim.run(experiment(), tmp_path, only="simulate")) == numbers(finished[1])


def test_simulating_what_was_not_trained_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"no record of dense, seed 0 .* run without --only first"):
        hwsim.run(experiment(), tmp_path, only="simulate")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("epochs: 2", "epochs: 1"),
        ("seeds: [0, 1]", "seeds: [2]"),
        ("dense: {}", "dense: {precision: bfloat16_mixed}"),
        ("model: mlp_digits", "model: {name: mlp_digits, arguments: {hidden: 64}}"),
    ],
)
def test_what_decides_a_trial_is_in_its_key(old: str, new: str) -> None:
    keys = []
    for text in (TEXT, TEXT.replace(old, new)):
        one = experiment(text)
        data = pipeline.load(one.data, None)
        keys.append(pipeline._trial_key(one, one.points()[0], one.seeds[0], data))
    assert keys[0] != keys[1]


def test_names_and_questions_are_not_in_a_trials_key() -> None:
    keys = set()
    for text in (TEXT, TEXT.replace("name: tiny", "name: other\nquestion: why").replace("dense", "plain")):
        one = experiment(text)
        keys.add(pipeline._trial_key(one, one.points()[0], 0, pipeline.load(one.data, None)))
    assert len(keys) == 1


def test_comments_and_docstrings_do_not_change_a_sources_hash(tmp_path: Path) -> None:
    hashes = []
    for text in (
        '"""A."""\ndef f(x):\n    """B."""\n    return x + 1\n',
        "# new\ndef f(x):\n\n    return x+1\n",
        "def f(x):\n    return x + 2\n",
    ):
        (tmp_path / "net.py").write_text(text)
        hashes.append(provenance.hash_source(tmp_path / "net.py"))
    assert hashes[0] == hashes[1] != hashes[2]


def test_a_second_run_into_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(SpecError, match="another run is using this folder"):
        hwsim.run(experiment(), tmp_path)


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SpecError, match="file/below: cannot be written to"):
        hwsim.run(experiment(), tmp_path / "file" / "below")


def test_a_damaged_record_is_named(finished: tuple[Path, Results], tmp_path: Path) -> None:
    hwsim.run(experiment(), tmp_path, only="train")
    record = next(path for path in (tmp_path / "trials").glob("*.json") if "workload" not in path.name)
    record.write_text(record.read_text()[:200])
    with pytest.raises(SpecError, match=f"{record.name}:.*not valid JSON: cut short"):
        hwsim.run(experiment(), tmp_path, resume=True)


def test_a_machine_that_cannot_multiply_a_format_says_so(tmp_path: Path) -> None:
    chip = tmp_path / "narrow.yaml"
    from hwsim.cli.show import describe

    chip.write_text(
        describe("systolic_16x16").replace("float32: 256.0", "float8_e5m2: 256.0").replace("float32:", "float8_e5m2:")
    )
    text = TEXT.replace("[systolic_16x16]", f"[{chip}]").replace("seeds: [0, 1]", "seeds: [0]")
    with pytest.raises(UnsupportedError, match="no format of at least 32 bits for float32"):
        hwsim.run(experiment(text), tmp_path / "out")


def test_a_format_that_a_machine_cannot_multiply_is_refused_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "_train", lambda *_: pytest.fail("trained"))
    text = TEXT.replace("dense: {}", "dense: {precision: {uniform: {forward: float64}}}")
    with pytest.raises(
        UnsupportedError, match=r"configurations\.dense\.precision: input float64 on systolic_16x16: .*64 bits"
    ):
        hwsim.run(experiment(text), tmp_path)


def test_two_machines_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="two of them have the name 'systolic_16x16'"):
        hwsim.run(experiment(TEXT.replace("[systolic_16x16]", "[systolic_16x16, systolic_16x16]")), tmp_path)


def test_interrupting_the_command_exits_with_130_and_says_how_to_go_on(tmp_path: Path) -> None:
    (tmp_path / "long.yaml").write_text(TEXT.replace("epochs: 2", "epochs: 100000"))
    process = subprocess.Popen(
        [sys.executable, "-c", "from hwsim.cli.main import main; main()", "run", "long.yaml"],
        cwd=tmp_path, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("runs/tiny/trials/*.checkpoint")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130, errors
    assert "finish with: hwsim run long.yaml --resume" in errors
    assert "Traceback" not in errors


def test_a_profile_goes_into_the_results_and_nowhere_else(finished: tuple[Path, Results], tmp_path: Path) -> None:
    folder, plain = finished
    text = TEXT.replace("baseline: dense", "baseline: dense\nprofile: true").replace("seeds: [0, 1]", "seeds: [0]")
    profiled = hwsim.run(experiment(text), tmp_path, only="train")
    read = Results.read(tmp_path)
    without = {(t.configuration, t.seed): t for t in plain.trials}
    assert len(read.trials) == 3
    for trial in read.trials:
        other = without[trial.configuration, trial.seed]
        assert trial.training.profile is not None and trial.training.profile.gradients
        assert trial.training.hashes == other.training.hashes
        assert trial.key != other.key and other.training.profile is None
    assert read == profiled
    assert not any("profile" in path.read_text() and '"tensors"' in path.read_text() for path in folder.rglob("*.json"))


def test_results_from_before_profiles_are_read() -> None:
    from hwsim.spec import from_plain, to_plain
    from hwsim.training.loop import train
    from hwsim.training.recipe import Recipe
    from hwsim.training.result import TrainingSummary

    recipe = Recipe(batch=64, epochs=1, train_examples=64, evaluate_examples=10, recorded_steps=1)
    summary = train(hwsim.load_model("mlp_digits"), recipe=recipe).summary
    old = {**to_plain(summary), "counters": {}}
    assert from_plain(old, TrainingSummary) == summary
    with pytest.raises(SpecError, match="counters"):
        from_plain({**old, "counters": {"fc1": {"swamped": 1.0}}}, TrainingSummary)


def test_a_quick_run_is_marked_and_never_replaces_a_whole_one(finished: tuple[Path, Results], tmp_path: Path) -> None:
    folder, whole = finished
    text = TEXT + "quick: {configurations: [dense, topk k=8], seeds: [5], training: {epochs: 1, train_examples: 64}}\n"
    quick = hwsim.run(experiment(text), tmp_path, quick=True)
    assert quick.quick and Results.read(tmp_path).quick and not whole.quick
    assert {(t.configuration, t.seed) for t in quick.trials} == {("dense", 5), ("topk k=8", 5)}
    assert quick.gaps() == () and quick.simulations
    before = (folder / "results.json").read_bytes()
    with pytest.raises(SpecError, match="holds the results of a whole run, which --quick does not replace"):
        hwsim.run(experiment(text), folder, quick=True)
    assert (folder / "results.json").read_bytes() == before
    assert not hwsim.run(experiment(text), tmp_path).quick, "a whole run may replace a quick one"
    assert pipeline.default_folder(experiment(), quick=True) != pipeline.default_folder(experiment(), quick=False)


def test_a_configuration_is_trained_with_its_own_seeds(tmp_path: Path) -> None:
    text = TEXT.replace("dense: {}", "dense: {seeds: [3]}")
    text = text.replace("grid: {sparse.k: [8, 16]}", "grid: {sparse.k: [8]}")
    results = hwsim.run(experiment(text), tmp_path, only="train")
    assert {(t.configuration, t.seed) for t in results.trials} == {("dense", 3), ("topk k=8", 0), ("topk k=8", 1)}
    assert not [gap for gap in results.gaps() if "no trial" in gap]


def test_the_worst_advice_is_printed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from hwsim.cli.summary import MOST_ADVICE, print_summary

    text = """\
schema: experiment/1
name: narrow
model: mlp_digits
data: digits
training: {batch: 64, epochs: 1, train_examples: 256, evaluate_examples: 100, recorded_steps: 1}
configurations:
  narrow: {precision: {uniform: {forward: fixed8.6, accumulator: fixed12.8, overflow: saturate}}}
profile: true
"""
    print_summary(hwsim.run(experiment(text), tmp_path))
    printed = capsys.readouterr().out
    assert printed.count("Advice for narrow: fc") == MOST_ADVICE
    print_summary(hwsim.run(experiment(text.replace("profile: true", "")), tmp_path / "off"))
    assert "Advice" not in capsys.readouterr().out
