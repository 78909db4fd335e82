"""`order: accelerator`: training sums in the order of the simulated machine, or says why it cannot."""

from __future__ import annotations

from pathlib import Path

import pytest

import hwsim
from hwsim.accumulation import plan_on
from hwsim.arithmetic.mac import MacSpec
from hwsim.catalog import load_accelerator
from hwsim.errors import SpecError
from hwsim.experiment import Experiment
from hwsim.hardware.accelerator import Accelerator
from hwsim.results import Results
from hwsim.spec import load_yaml
from hwsim.training.plan import PrecisionPlan, Rule

# Sums in bfloat16 lose enough for the order to show within a few steps.
TEXT = """\
schema: experiment/1
name: orders
model: mlp_digits
data: digits
training: {batch: 32, epochs: 1, train_examples: 160, evaluate_examples: 60, recorded_steps: 2}
seeds: [0]
configurations:
  machine: {precision: {uniform: {forward: bfloat16, accumulator: bfloat16, order: accelerator}}}
  chunks: {precision: {uniform: {forward: bfloat16, accumulator: bfloat16, order: chunked(16)}}}
  in_order: {precision: {uniform: {forward: bfloat16, accumulator: bfloat16}}}
accelerators: [./chip.yaml]
baseline: machine
"""


def chip(flow: str = "weight_stationary", name: str = "chip") -> Accelerator:
    """A 16 x 16 array with one dataflow."""
    machine = load_accelerator("systolic_16x16")
    arrays = machine.arrays.model_copy(update={"dataflow": flow})
    return machine.model_copy(update={"name": name, "arrays": arrays})


def in_folder(folder: Path, text: str = TEXT, **machines: str) -> Experiment:
    """The experiment beside files of the machines that it names."""
    from hwsim.spec import dump_yaml

    for name, flow in machines.items():
        (folder / f"{name}.yaml").write_text(dump_yaml(chip(flow, name)), encoding="utf-8")
    return load_yaml(text, Experiment).in_folder(folder)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder = tmp_path_factory.mktemp("orders")
    return hwsim.run(in_folder(folder, chip="weight_stationary"), folder / "run")


def test_training_sums_as_the_simulated_machine_does(found: Results) -> None:
    weights = {trial.configuration: trial.training.hashes for trial in found.trials}
    assert weights["machine"] == weights["chunks"]
    assert weights["machine"] != weights["in_order"]


def test_the_results_say_in_which_order_training_summed(found: Results) -> None:
    precision = {configuration.name: configuration.precision for configuration in found.configurations}
    assert precision["machine"].endswith("summed as on chip: chunked(16)")


def test_only_a_plan_that_sums_otherwise_is_noted(found: Results) -> None:
    notes = {record.configuration: record.notes for record in found.simulations}
    assert notes["machine"] == notes["chunks"] == ()
    (note,) = notes["in_order"]
    assert "trained with order sequential, this machine accumulates in order chunked(16)" in note


def test_the_order_is_that_of_each_gemms_operands() -> None:
    """Narrower operands take two products a unit and cycle, so chunks double; other sums stay as they are."""
    machine = chip()
    rates = {"float8_e4m3fn": 512.0, "bfloat16": 256.0}
    machine = machine.model_copy(update={"arrays": machine.arrays.model_copy(update={"macs_per_cycle": rates})})
    mac = MacSpec("float32", "toward_zero", order="accelerator")
    macs = {"output": mac, "grad_weight": mac, "grad_input": "bfloat16, order=pairwise", "reduce": "bfloat16"}
    casts = {"input": "float8_e4m3fn", "weight": "float8_e4m3fn", "gradient": "bfloat16"}
    plan = plan_on(PrecisionPlan("mixed", (Rule("*", casts, macs),)), [machine])
    assert {key: str(mac.order) for key, mac in plan.rules[0].macs.items()} == {
        "output": "chunked(32)",
        "grad_weight": "chunked(16)",
        "grad_input": "pairwise",
        "reduce": "sequential",
    }
    assert str(plan.rules[0].macs["output"].cast) == str(mac.cast)


def test_a_plan_without_this_order_is_left_alone() -> None:
    plan = PrecisionPlan.uniform("bfloat16")
    assert plan_on(plan, []) is plan


def test_other_sums_name_their_order() -> None:
    with pytest.raises(SpecError, match=r"macs\.reduce: got order accelerator"):
        Rule("*", {}, {"reduce": "float32, order=accelerator"})


def test_machines_that_differ_are_refused_before_training(tmp_path: Path) -> None:
    text = TEXT.replace("[./chip.yaml]", "[./chip.yaml, ./other.yaml]")
    experiment = in_folder(tmp_path, text, chip="weight_stationary", other="output_stationary")
    message = r"configurations\.machine\.precision: .*chunked\(16\) on chip, sequential on other"
    with pytest.raises(SpecError, match=message):
        hwsim.run(experiment, tmp_path / "run")
    assert not (tmp_path / "run" / "trials").exists()


def test_machines_that_agree_share_a_training(tmp_path: Path) -> None:
    plan = PrecisionPlan.uniform("bfloat16", order="accelerator")
    shared = plan_on(plan, [chip(), chip("input_stationary", "other")])
    assert str(shared.rules[0].macs["output"].order) == "chunked(16)"


@pytest.mark.parametrize(
    ("machines", "message"),
    [([], "got no accelerator"), ([chip("any")], "chooses how to accumulate for each GEMM")],
)
def test_without_a_machine_that_says_it_the_error_is_one_line(machines: list[Accelerator], message: str) -> None:
    with pytest.raises(SpecError, match=message) as raised:
        plan_on(PrecisionPlan.uniform("bfloat16", order="accelerator"), machines)
    assert len(raised.value.problems) == 1
