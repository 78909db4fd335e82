"""Whole training runs: what they reach, what repeats to the bit, what a killed run resumes to."""

import numpy as np
import pytest
import torch
from torch import nn

import hwsim
from hwsim import PrecisionPlan, SparseBackprop, SpecError
from hwsim.data.dataset import Dataset, Split, load
from hwsim.training.checkpoint import load_checkpoint
from hwsim.training.initial import draw_initial_weights
from hwsim.training.loop import _Run, train
from hwsim.training.recipe import Recipe

FP8 = PrecisionPlan.uniform("float8_e4m3fn", "float8_e5m2", "bfloat16", overflow="saturate", loss_scale=1024.0)
SHORT = Recipe(batch=32, epochs=2, train_examples=200, evaluate_examples=60, recorded_steps=4)


def perceptron():
    return hwsim.load_model("mlp_digits", hidden=32)


def same(one, other):
    return (
        one.summary.hashes == other.summary.hashes
        and one.curves == other.curves
        and one.summary.sparsity == other.summary.sparsity
        and one.workload.recorded_steps == other.workload.recorded_steps
        and all(
            np.array_equal(a, b)
            for name in one.workload.selections
            for a, b in zip(one.workload.selections[name].indices, other.workload.selections[name].indices, strict=True)
        )
    )


def test_digits_are_learned_in_float32_and_in_fp8():
    recipe = Recipe(batch=32, epochs=10)
    for plan in ("float32", FP8):
        result = train(perceptron(), plan, recipe=recipe)
        assert result.test_accuracy > 0.9, str(plan)
        assert result.steps == 10 * 38 and len(result.workload.recorded_steps) == 8


def test_a_seed_decides_everything():
    sparse = SparseBackprop(k=5)
    first, again = (train(perceptron(), FP8, sparse=sparse, seed=3, recipe=SHORT) for _ in range(2))
    assert same(first, again)
    assert not same(first, train(perceptron(), FP8, sparse=sparse, seed=4, recipe=SHORT))


def test_training_starts_anew_unless_told_not_to():
    model = perceptron()
    first, second = (train(model, recipe=SHORT) for _ in range(2))
    assert same(first, second)
    third = train(model, recipe=SHORT, initialize=False)
    assert third.summary.hashes["initial_weights"] == second.summary.hashes["final_weights"]


@pytest.mark.parametrize("killed_after", [3, 7, 9])
def test_a_killed_run_resumes_to_the_same_bits(tmp_path, monkeypatch, killed_after):
    """With momentum states, stochastic rounding, dropout and the memory of sparse backprop on the way."""
    plan = PrecisionPlan.uniform(
        "float8_e4m3fn", rounding="stochastic", accumulator="bfloat16", overflow="saturate", optimizer_state="bfloat16"
    )
    sparse = SparseBackprop(k=5, memory=0.8)

    def model():
        return nn.Sequential(nn.Linear(64, 16), nn.Dropout(0.3), nn.ReLU(), nn.Linear(16, 10))

    whole = train(model(), plan, sparse=sparse, recipe=SHORT)
    monkeypatch.setattr("hwsim.training.loop.CHECKPOINT_SECONDS", -1.0)
    monkeypatch.setattr("hwsim.training.loop.PROGRESS_STEPS", 2)
    step, seen = _Run._step, []

    def dying(self, *args):
        seen.append(self.state.number)
        if len(seen) > killed_after:
            raise KeyboardInterrupt
        return step(self, *args)

    monkeypatch.setattr(_Run, "_step", dying)
    out = tmp_path / "run.safetensors"
    with pytest.raises(KeyboardInterrupt):
        train(model(), plan, sparse=sparse, recipe=SHORT, out=out)
    monkeypatch.setattr(_Run, "_step", step)
    resumed = train(model(), plan, sparse=sparse, recipe=SHORT, out=out, resume=True)
    assert same(whole, resumed)
    assert len(list(tmp_path.iterdir())) <= 3, "the checkpoint and its workload, no leftovers"


def test_a_checkpoint_of_other_settings_is_refused(tmp_path):
    out = tmp_path / "run.safetensors"
    train(perceptron(), recipe=SHORT, out=out)
    with pytest.raises(SpecError, match="other settings"):
        train(perceptron(), recipe=SHORT, seed=1, out=out, resume=True)


def test_a_damaged_checkpoint_is_one_clear_line(tmp_path):
    out = tmp_path / "run.safetensors"
    train(perceptron(), recipe=SHORT, out=out)
    out.write_bytes(out.read_bytes()[:200])
    with pytest.raises(SpecError, match="cannot be read") as caught:
        load_checkpoint(out)
    assert "\n" not in str(caught.value)


def test_divergence_is_told_apart_from_success():
    result = train(
        perceptron(), recipe=Recipe(optimizer="sgd", learning_rate=1e30, batch=32, epochs=2, recorded_steps=1)
    )
    assert result.summary.outcome == "diverged"
    assert result.summary.test_accuracy is None


def test_best_dev_epoch_is_reported():
    result = train(perceptron(), recipe=SHORT.model_copy(update={"epochs": 4}))
    dev, best = result.curves["dev_accuracy"], result.summary.selected_epoch
    assert dev[best] == max(dev) and result.test_accuracy == result.curves["test_accuracy"][best]
    last = train(perceptron(), recipe=SHORT.model_copy(update={"epochs": 4, "select": "last"}))
    assert last.summary.selected_epoch == 3


def test_an_epoch_may_be_evaluated_several_times():
    recipe = SHORT.model_copy(update={"evaluations": 3})
    often, once = train(perceptron(), recipe=recipe), train(perceptron(), recipe=SHORT)
    assert often.summary.hashes == once.summary.hashes, "looking does not change what is learned"
    curves = often.curves
    assert curves["step"] == (2, 5, 7, 9, 12, 14) and curves["epoch"] == (0, 0, 0, 1, 1, 1)
    for name in ("dev_accuracy", "test_accuracy"):
        assert curves[name][2::3] == once.curves[name]
    for place, (dev, test) in enumerate(zip(curves["dev_accuracy"], curves["test_accuracy"], strict=True)):
        is_best = dev > max(curves["dev_accuracy"][:place], default=-1)
        assert (test is not None) == (is_best or place % 3 == 2)
    best = curves["dev_accuracy"].index(max(curves["dev_accuracy"]))
    assert often.test_accuracy == curves["test_accuracy"][best]
    assert often.summary.selected_epoch == curves["epoch"][best]


def test_linear_layers_start_as_the_published_codes_do():
    layers = {}
    for initial in ("default", "meprop", "meprop_gpu"):
        model = nn.Sequential(nn.Linear(300, 200), nn.ReLU(), nn.Linear(200, 50))
        draw_initial_weights(model, 1, initial)
        layers[initial] = model
    normal, uniform = layers["meprop"], layers["meprop_gpu"]
    for layer, inputs, outputs in ((0, 300, 200), (2, 200, 50)):
        weight = normal[layer].weight
        assert weight.std().item() == pytest.approx((6 / (inputs + outputs)) ** 0.5, rel=0.03)
        assert abs(weight.mean().item()) < 0.01 and not normal[layer].bias.any()
        bound = outputs**-0.5
        for drawn in (uniform[layer].weight, uniform[layer].bias):
            assert 0.8 * bound < drawn.abs().max().item() <= bound
    again = nn.Sequential(nn.Linear(300, 200), nn.ReLU(), nn.Linear(200, 50))
    draw_initial_weights(again, 1, "meprop")
    assert torch.equal(again[2].weight, normal[2].weight)
    recipe = SHORT.model_copy(update={"initial": "meprop"})
    drawn = {train(perceptron(), recipe=r).summary.hashes["initial_weights"] for r in (recipe, SHORT)}
    assert len(drawn) == 2


def test_a_network_without_linear_layers_has_no_published_start():
    with pytest.raises(SpecError, match="initial: got meprop"):
        draw_initial_weights(nn.Sequential(nn.Conv2d(1, 2, 3)), 0, "meprop")


def test_micro_batches_are_one_update_and_the_same_gradient():
    whole = train(perceptron(), "float32_sequential", recipe=SHORT)
    parts = train(perceptron(), "float32_sequential", recipe=SHORT.model_copy(update={"micro_batches": 4}))
    assert whole.steps == parts.steps
    assert parts.curves["train_loss"][-1] == pytest.approx(whole.curves["train_loss"][-1], rel=1e-3)
    names = [op.id for op in parts.workload.ops]
    assert "fc1#3.output" in names and names.count("fc1.weight.update") == 1


def test_dynamic_loss_scaling_survives_its_first_overflows():
    plan = hwsim.PrecisionPlan.uniform("float16", accumulator="float32", stored="float16").with_loss_scale(
        2.0**24, True
    )
    result = train(perceptron(), plan, recipe=SHORT)
    assert 0 < result.steps < 2 * 7 and result.summary.outcome == "finished"


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(SpecError, match="batch: got 500"):
        train(perceptron(), recipe=SHORT.model_copy(update={"batch": 500}))


def test_a_network_given_by_name_is_told_how_to_load_it():
    with pytest.raises(SpecError, match=r"model: got 'mlp_mnist', expected a torch network; hwsim.load_model\('mlp_mn"):
        train("mlp_mnist")
    with pytest.raises(SpecError, match=r"model: got None, expected a torch network$"):
        train(None)


def test_a_parameter_that_no_seed_can_draw_is_refused():
    class Offset(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.offset = nn.Linear(64, 10), nn.Parameter(torch.zeros(10))

        def forward(self, x):
            return self.fc(x) + self.offset

    with pytest.raises(SpecError, match="parameter offset: Offset has no reset_parameters"):
        train(Offset(), recipe=SHORT)
    assert train(Offset(), recipe=SHORT, initialize=False).steps == 14


def test_targets_of_minus_one_do_not_count():
    digits = load("digits")
    some = digits.train.targets.copy()
    some[::2] = -1
    data = Dataset("half", Split(digits.train.inputs, some), digits.dev, digits.test, digits.classes, "half")
    assert train(perceptron(), data=data, recipe=Recipe(batch=32, epochs=6)).test_accuracy > 0.5


def test_a_run_told_to_stop_is_the_whole_run_so_far_and_can_be_gone_on_with(tmp_path):
    whole = train(perceptron(), FP8, recipe=SHORT)
    stopped = train(perceptron(), FP8, recipe=SHORT, out=tmp_path / "run", stop_after=9)
    per_epoch = whole.summary.steps_per_epoch
    assert per_epoch < 9 < 2 * per_epoch
    assert stopped.summary.outcome == "stopped" and stopped.steps == 9
    assert stopped.curves["step"] == whole.curves["step"][:1]
    assert stopped.summary.first_losses == whole.summary.first_losses[:9]
    resumed = train(perceptron(), FP8, recipe=SHORT, out=tmp_path / "run", resume=True)
    assert same(whole, resumed) and resumed.summary.first_losses == whole.summary.first_losses
    assert resumed.summary.outcome == "finished" and resumed.summary.cpu_s > 0
    for wrong in (0, 1.5, "9"):
        with pytest.raises(SpecError, match=r"stop_after: got .*, expected a whole number >= 1"):
            train(perceptron(), recipe=SHORT, stop_after=wrong)


def test_losses_of_evaluations_are_the_cross_entropy_that_torch_gives():
    model, data = perceptron(), load("digits")
    found = train(model, recipe=SHORT.model_copy(update={"evaluate_examples": None})).curves
    for name, split in (("dev_loss", data.dev), ("test_loss", data.test)):
        with torch.no_grad():
            expected = nn.functional.cross_entropy(
                model(torch.from_numpy(split.inputs)), torch.from_numpy(split.targets)
            )
        assert found[name][-1] == pytest.approx(float(expected), rel=1e-5)
