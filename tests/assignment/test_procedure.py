"""The whole way from an experiment to a plan that trains, and the paper's update rule in it."""

import json
import re
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import hwsim
from hwsim.assignment.assignment import CLASSES, Assignment
from hwsim.assignment.plan_text import pattern, plan_of
from hwsim.catalog import load_experiment
from hwsim.cli.main import app
from hwsim.errors import SpecError
from hwsim.experiment import Experiment
from hwsim.spec import load_json, load_yaml
from hwsim.training.optimizer import Optimizer
from hwsim.training.plan import PrecisionPlan, Rule
from hwsim.training.plan_file import PlanSpec
from hwsim.training.recipe import Recipe

GUIDE = (Path(__file__).resolve().parents[2] / "docs" / "assign.md").read_text(encoding="utf-8")
(TEXT,) = re.findall(r"^```yaml\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)
(CODE,) = re.findall(r"^```python\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[Assignment, Path]:
    folder = tmp_path_factory.mktemp("assigned")
    experiment = load_yaml(TEXT, Experiment)
    return hwsim.assign(experiment, out=folder, one_bit_less=True), folder


def network():
    return hwsim.load_model("mlp_digits", hidden=16)


def plan_in(path: Path) -> PrecisionPlan:
    return load_yaml(path, PlanSpec).plan()


def test_the_files_say_what_was_found(found) -> None:
    assignment, folder = found
    assert load_json(folder / "assignment.json", Assignment) == assignment
    assert repr(plan_in(folder / "plan.yaml")) == repr(plan_of(assignment))
    assert [layer.layer for layer in assignment.layers] == ["fc1", "fc2", "fc3"]
    assert assignment.learning_rate_least == pytest.approx(0.01)
    first = assignment.layers[0]
    assert (first.network_input, first.activation.bits, first.activation.signed) == (True, 8, False)
    assert first.macs == first.weights == 64 * 16
    assert assignment.cost.representational < assignment.float_cost.representational


def test_the_least_width_is_the_first_after_the_last_that_fails(found) -> None:
    assignment, _ = found
    below = [point.least_bits for point in assignment.sweep if point.least_bits < assignment.least_bits]
    at = {point.least_bits: point.dev_accuracy for point in assignment.sweep}
    reached = [accuracy for bits, accuracy in at.items() if bits >= assignment.least_bits]
    goal = assignment.float_dev_accuracy - assignment.tolerance
    assert min(reached) >= goal
    assert not below or at[below[-1]] < goal


def test_training_follows_the_plan(found) -> None:
    assignment, folder = found
    net, plan = network(), plan_in(folder / "plan.yaml")
    recipe = Experiment.model_validate(load_yaml(TEXT, Experiment)).network()[2]
    summary = hwsim.train(net, plan, "digits", recipe=recipe).summary
    assert summary.outcome == "finished"
    assert summary.test_accuracy > assignment.float_test_accuracy - 0.05
    for layer in assignment.layers:
        module = net.get_submodule(layer.layer)
        number = layer.weight.grid.format
        assert torch.equal(module.weight, hwsim.quantize(module.weight.detach(), number))
        assert not torch.equal(module.bias, hwsim.quantize(module.bias.detach(), number))


@pytest.mark.parametrize("tensors", CLASSES)
def test_one_bit_less_is_one_bit_less(found, tensors: str) -> None:
    assignment, folder = found
    less = assignment.one_bit_less(tensors)
    for before, after in zip(assignment.layers, less.layers, strict=True):
        for name in CLASSES:
            wide, narrow = getattr(before, name), getattr(after, name)
            if name == tensors and not (name == "activation" and before.network_input):
                assert (narrow.bits, narrow.range) == (wide.bits - 1, wide.range)
            elif (name, tensors) == ("accumulator", "weight"):  # reaches up to the coarser weight
                assert (narrow.bits, narrow.range) == (wide.bits + 1, wide.range + 1)
            else:
                assert narrow == wide
    assert repr(plan_in(folder / f"plan_less_{tensors}.yaml")) == repr(plan_of(less))


def test_a_second_time_gives_the_same(found, tmp_path: Path) -> None:
    assignment, _ = found
    experiment = load_yaml(TEXT, Experiment)
    again = hwsim.assign(experiment, out=tmp_path, configuration="fixed")
    assert again == assignment
    resumed = hwsim.assign(experiment, out=tmp_path, resume=True)  # the float run is there already
    assert resumed == assignment
    other = hwsim.assign(experiment, out=tmp_path / "other", seed=5)
    assert other.layers != assignment.layers


def test_the_guides_example_runs(found, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    assignment, folder = found
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(TEXT)
    assert load_experiment("tiny.yaml").network()[0] == "mlp_digits"  # before there is a plan
    exec(compile(CODE, "docs/assign.md", "exec"), {})
    assert str([(layer.layer, layer.bits) for layer in assignment.layers]) in capsys.readouterr().out
    assert load_experiment("tiny.yaml").points()[1].plan == plan_in(folder / "plan.yaml")


def test_the_command_prints_widths_and_costs(found, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assignment, folder = found
    monkeypatch.setattr("hwsim.assignment.procedure.assign", lambda *given: assignment)
    done = CliRunner().invoke(app, ["assign", "tiny.yaml", "--out", str(folder)], catch_exceptions=False)
    assert done.exit_code == 0
    for words in ("fc1", "representational", f"{assignment.cost.communication:,}", f"Plan: {folder / 'plan.yaml'}"):
        assert words in done.output


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizer": "adam"}, "training.optimizer: got adam, expected sgd without momentum"),
        ({"momentum": 0.9}, "got sgd with momentum 0.9"),
        ({"micro_batches": 2}, "training.micro_batches: got 2"),
    ],
)
def test_training_that_the_criteria_are_not_about_is_refused(change: dict, message: str) -> None:
    experiment = load_yaml(TEXT, Experiment)
    recipe = experiment.training.model_copy(update=change)
    with pytest.raises(SpecError, match=message):
        hwsim.assign(experiment.model_copy(update={"training": recipe}))


def test_an_unknown_configuration_is_named() -> None:
    with pytest.raises(SpecError, match=r"got 'float', expected one of float32, fixed\. Did you mean 'float32'\?"):
        hwsim.assign(load_yaml(TEXT, Experiment), configuration="float")


def test_updates_are_the_papers() -> None:
    """t = w + (acc - lr g), w' = Q(t), acc' = Q(t - w'), with the gradient on its grid; computed in float64."""
    casts = {"master_weight": "fixed6.5 nearest_away", "compensation": "fixed10.15 nearest_away"}
    net = torch.nn.Linear(9, 7, bias=False)
    optimizer = Optimizer(net, PrecisionPlan("paper", (Rule("*", casts),)), Recipe(optimizer="sgd"))
    generator = torch.Generator().manual_seed(0)

    def rounded(x: torch.Tensor, bits: int, fraction: int) -> torch.Tensor:
        scaled = torch.sign(x) * torch.floor(x.abs() * 2.0**fraction + 0.5)  # halves away from zero
        return scaled.clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) / 2.0**fraction

    weight, rest, rate = net.weight.detach().double(), torch.zeros(7, 9, dtype=torch.float64), 2.0**-6
    moved = 0
    for _ in range(40):
        gradient = rounded(torch.randn(7, 9, generator=generator).double() * 0.05 + 0.02, 10, 9)
        exact = weight + (rest - rate * gradient)
        moved += int((rounded(exact, 6, 5) != weight).sum())
        weight = rounded(exact, 6, 5)
        rest = rounded(exact - weight, 10, 15)
        net.weight.grad = gradient.float()
        optimizer.update(rate)
        assert torch.equal(net.weight.detach().double(), weight)
        assert torch.equal(optimizer.parameters[0].states["compensation"].double(), rest)
    assert moved > 0  # single steps of at most 2^-7 are far below the weights' step of 2^-5


def test_patterns_match_one_layer_only() -> None:
    assert Rule(pattern("blocks.0.conv*[1]")).matches("blocks.0.conv*[1]")
    assert not Rule(pattern("blocks.0.conv*[1]")).matches("blocks.0.conv1")


def test_the_file_is_strict_json(found) -> None:
    _, folder = found
    plain = json.loads((folder / "assignment.json").read_text())
    assert plain["schema"] == "assignment/1"
    assert "/" not in plain["model"]
