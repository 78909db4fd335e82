"""results.json: what is written is read back equal, and what is damaged is refused with file, line and field."""

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwsim.errors import SpecError
from hwsim.records import Configuration, EnergyRange, Machine, SimulatedOp, SimulationRecord, TrialRecord
from hwsim.results import Provenance, Results, compact_json, write_atomically
from hwsim.section import Axis, Column, Figure, Section, Series, Table
from hwsim.spec import to_plain
from hwsim.training.result import TrainingSummary


def make_trial(configuration="dense", seed=0, **changes):
    fields = {
        "model": "mlp",
        "data": "digits",
        "plan": "float32",
        "sparse": None,
        "seed": seed,
        "outcome": "finished",
        "test_accuracy": 0.97,
        "dev_accuracy": 0.98,
        "selected_epoch": 1,
        "steps": 20,
        "steps_per_epoch": 10,
        "curves": {"step": (10.0, 20.0), "dev_accuracy": (0.9, 0.98), "train_loss": (0.4, None)},
        "wall_s": 1.5,
        "backends": ("numba",),
        "hashes": {"data": "ab" * 32},
    }
    return TrialRecord(
        key=f"{configuration}-{seed}",
        configuration=configuration,
        training=TrainingSummary(**{**fields, **changes}),
        arrays={"workload": "trials/one.workload.json"},
    )


def make_simulation(configuration="dense", work="trained"):
    op = SimulatedOp(
        id="fc1.output",
        layer="fc1",
        phase="forward",
        kind="gemm",
        gemm="output",
        cycles=10.0,
        stalls={"dram": 4.0},
        macs=100.0,
        bytes={"dram": 64.0},
        energy_pj={"mac": EnergyRange(low=1.0, nominal=2.0, high=3.0)},
    )
    return SimulationRecord(
        configuration=configuration,
        accelerator="chip",
        work=work,
        seed=0,
        clock_ghz=1.0,
        step_cycles=[10.0],
        step_energy_pj=[2.0],
        ops=[op],
    )


def make_results(**changes):
    fields = {
        "experiment": {"name": "small", "question": "Does it?", "seeds": [0], "baseline": "dense"},
        "configurations": [Configuration(name="dense", family="dense", precision="float32")],
        "trials": [make_trial()],
        "machines": [Machine(name="chip", clock_ghz=1.0)],
        "simulations": [make_simulation()],
        "sections": [
            Section(
                title="More",
                figures=[
                    Figure(
                        title="f", x=Axis(label="x"), y=Axis(label="y"), series=[Series(name="s", x=[1.0], y=[None])]
                    )
                ],
                tables=[Table(title="t", columns=[Column(name="c")], rows=[["text"], [True], [3], [0.5], [None]])],
            )
        ],
        "provenance": Provenance(hwsim="0.1.0", code="commit 1234", created="2026-01-02T03:04:05Z"),
    }
    return Results(**{**fields, **changes})


def test_what_is_written_is_read_back_equal(tmp_path):
    results = make_results()
    path = results.write(tmp_path / "results.json")
    assert Results.read(path) == results
    assert Results.read(tmp_path) == results  # the folder is as good as the file
    cells = [row[0] for row in Results.read(path).sections[0].tables[0].rows]
    assert [type(cell) for cell in cells] == [str, bool, int, float, type(None)]


def test_what_simulations_have_in_common_stands_once_in_the_file(tmp_path):
    works = ("trained", "dense", "ideal")
    results = make_results(simulations=[make_simulation(work=work) for work in works])
    path = results.write(tmp_path / "results.json")
    plain = json.loads(path.read_text(encoding="utf-8"))
    assert len(plain["shared"]["ops"]) == 1 and [s["ops"] for s in plain["simulations"]] == [[0], [0], [0]]
    assert Results.read(path) == results


def test_an_older_file_whose_simulations_have_their_own_ops_is_read(tmp_path):
    results = make_results()
    path = tmp_path / "results.json"
    path.write_text(json.dumps({**to_plain(results), "schema": "results/1"}), encoding="utf-8")
    assert Results.read(path) == results


def test_the_file_is_strict_json_and_names_its_schema(tmp_path):
    text = make_results().write(tmp_path / "results.json").read_text(encoding="utf-8")

    def refuse(name):
        raise AssertionError(f"{name} is not strict JSON")

    assert json.loads(text, parse_constant=refuse)["schema"] == "results/2"


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**6), 10**6)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=8) | st.dictionaries(st.text(max_size=8), inner, max_size=8),
    max_leaves=60,
)


@given(JSON)
def test_compact_json_says_the_same_in_short_lines(value):
    text = compact_json(value)
    assert json.loads(text) == value
    if isinstance(value, list | dict) and len(json.dumps(value, ensure_ascii=False)) > 160:
        assert text.count("\n") >= 2


def test_an_energy_is_written_as_three_numbers(tmp_path):
    text = make_results().write(tmp_path / "results.json").read_text(encoding="utf-8")
    assert '"mac": [1.0, 2.0, 3.0]' in text
    (tmp_path / "results.json").write_text(text.replace("[1.0, 2.0, 3.0]", "[1.0, 2.0]"), encoding="utf-8")
    with pytest.raises(
        SpecError, match=r"simulations\[0\]\.ops\[0\]\.energy_pj\.mac: .*expected \[low, nominal, high\]"
    ):
        Results.read(tmp_path)


def test_a_number_that_is_not_finite_cannot_enter_results():
    with pytest.raises(SpecError, match=r"test_accuracy"):
        make_trial(test_accuracy=float("nan"))


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('"results/2"', '"results/3"', "schema: got 'results/3', which is newer"),
        ('"results/2"', '"plan/1"', "schema: got 'plan/1', expected 'results/2'"),
        ('"ops": [0]', '"ops": [1]', "simulations[0].ops: got 1, expected the number of one of the 1 items"),
        ('"ops": [0]', '"ops": ["fc1"]', "simulations[0].ops: got 'fc1'"),
        ('"ops": [0]', '"ops": 0', "simulations[0].ops: got 0, expected a list"),
        ('"shared": {', '"shared": 3, "was": {', "shared: unknown key"),
        ('"clock_ghz": 1.0', '"clock_ghz": "1 GHz"', "machines[0].clock_ghz: got '1 GHz'"),
        ('"clock_ghz": 1.0', '"clock_ghz": -1.0', "machines[0].clock_ghz: got -1.0"),
        ('"clock_ghz": 1.0', '"clock_ghz": NaN', "got NaN, expected a finite number"),
        ('"outcome": "finished"', '"outcome": "perfect"', "trials[0].training.outcome: got 'perfect'"),
        ('"baseline": "dense"', '"baseline": "dens"', "experiment.baseline: got 'dens', expected one of dense"),
        ('"name": "small"', '"title": "small"', "experiment.name: missing"),
        ('"accelerator": "chip"', '"accelerator": "ship"', "simulations[0].accelerator: got 'ship'"),
        ('"workload": "trials/one.workload.json"', '"workload": "/etc/passwd"', "inside the results' folder"),
        ('"workload": "trials/one.workload.json"', '"workload": "../up.json"', "inside the results' folder"),
        ('"seed": 0', '"seed": 0, "speed": 1', "unknown key"),
    ],
)
def test_a_damaged_file_is_refused_with_its_place(tmp_path, old, new, expected):
    path = make_results().write(tmp_path / "results.json")
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(SpecError) as caught:
        Results.read(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert expected in message


def test_a_damaged_value_is_named_with_its_line(tmp_path):
    path = make_results().write(tmp_path / "results.json")
    lines = path.read_text(encoding="utf-8").splitlines()
    line = next(number for number, text in enumerate(lines, 1) if '"clock_ghz"' in text)
    lines[line - 1] = lines[line - 1].replace("1.0", "true")
    path.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(SpecError) as caught:
        Results.read(path)
    assert str(caught.value).startswith(f"{path}:{line}: machines[0].clock_ghz: ")


@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
def test_a_file_cut_short_is_refused_with_its_name(tmp_path, share):
    path = make_results().write(tmp_path / "results.json")
    text = path.read_text(encoding="utf-8")
    path.write_text(text[: int(len(text) * share)], encoding="utf-8")
    with pytest.raises(SpecError, match="not valid JSON") as caught:
        Results.read(path)
    assert str(path) in str(caught.value)
    assert len(caught.value.problems) == 1


def test_a_missing_file_is_one_clear_line(tmp_path):
    with pytest.raises(SpecError, match="no such file"):
        Results.read(tmp_path / "results.json")


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("trials", {"trials": [make_trial(), make_trial()]}),
        ("simulations", {"simulations": [make_simulation(), make_simulation()]}),
        ("machines", {"machines": [Machine(name="chip", clock_ghz=1.0)] * 2}),
        ("trials[0].configuration", {"trials": [make_trial("other")]}),
        ("simulations[0].configuration", {"simulations": [make_simulation("other")]}),
    ],
)
def test_records_that_contradict_each_other_are_refused(field, changes):
    with pytest.raises(SpecError) as caught:
        make_results(**changes)
    assert field in str(caught.value)


def test_curves_must_have_one_length_and_steps():
    with pytest.raises(SpecError, match="one length for all"):
        make_trial(curves={"step": (1.0, 2.0), "dev_accuracy": (0.5,)})
    with pytest.raises(SpecError, match="'step' is missing"):
        make_trial(curves={"dev_accuracy": (0.5,)})


def test_gaps_name_what_the_experiment_asked_for_and_did_not_get():
    configurations = [Configuration(name=name, family=name, precision="float32") for name in ("dense", "topk")]
    results = make_results(
        experiment={"name": "small", "seeds": [0, 1], "accelerators": ["chip"]}, configurations=configurations
    )
    assert results.gaps() == (
        "dense has no trial with seed 1.",
        "topk has no trial with seed 0, 1.",
        "topk was not simulated on chip.",
    )
    assert make_results().gaps() == ()


def test_writing_is_all_or_nothing(tmp_path, monkeypatch):
    path = write_atomically(tmp_path / "results.json", "old")

    def fail(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(SpecError, match=r"results\.json: cannot be written \(No space left on device\)"):
        write_atomically(path, "new")
    assert path.read_text(encoding="utf-8") == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]


def test_an_interrupted_write_leaves_nothing_behind(tmp_path, monkeypatch):
    def interrupt(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "results.json", "new")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_to_is_one_clear_line(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(SpecError, match="cannot be written"):
        write_atomically(tmp_path / "file" / "results.json", "text")


def test_the_written_file_is_readable_as_any_other_new_file(tmp_path):
    path = write_atomically(tmp_path / "ours", "text")
    (tmp_path / "theirs").write_text("text", encoding="utf-8")
    assert path.stat().st_mode == (tmp_path / "theirs").stat().st_mode


def test_the_first_configuration_is_the_baseline_unless_one_is_named():
    assert make_results(experiment={"name": "small"}).baseline == "dense"
    assert make_results(experiment={"name": "small", "baseline": None}).baseline == "dense"
