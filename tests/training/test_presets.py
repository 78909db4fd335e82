"""Named plans and plan files: each trains, and says what is wrong with it."""

import pytest
import torch

import hwsim
from hwsim import PrecisionPlan, SpecError
from hwsim.spec import dump_yaml, load_yaml
from hwsim.training.emulation import emulate
from hwsim.training.loop import train
from hwsim.training.plan import Rule, Scaling
from hwsim.training.plan_file import PlanSpec
from hwsim.training.presets import PRESETS, named_plan
from hwsim.training.recipe import Recipe
from hwsim.training.scaling import factor_for

SHORT = Recipe(learning_rate=0.005, batch=32, epochs=3, train_examples=320, evaluate_examples=100, recorded_steps=2)


@pytest.mark.parametrize("name", PRESETS)
def test_each_named_plan_learns(name):
    result = train(hwsim.load_model("mlp_digits", hidden=32), name, recipe=SHORT)
    loss = result.curves["train_loss"]
    assert result.summary.outcome == "finished" and result.summary.plan == name
    assert loss[-1] < 0.85 * loss[0], "three short epochs bring the loss down"


def test_each_named_plan_is_another_arithmetic():
    ends = {
        name: train(hwsim.load_model("mlp_digits", hidden=16), name, recipe=SHORT.model_copy(update={"epochs": 1}))
        for name in ("float32_sequential", "bfloat16_mixed", "fp8_hybrid", "mxfp8", "mxfp4", "nvfp4", "int8")
    }
    assert len({r.summary.hashes["final_weights"] for r in ends.values()}) == len(ends)
    assert len({r.summary.hashes["initial_weights"] for r in ends.values()}) == 1


def test_an_unknown_name_is_told_the_near_one():
    with pytest.raises(SpecError, match=r"got 'fp8_hybird', expected one of .*Did you mean 'fp8_hybrid'"):
        named_plan("fp8_hybird")


def test_plan_files_say_the_same_as_python():
    text = """
schema: plan/1
rules:
  - layers: fc1
    casts: {input: float8_e4m3fn, grad_weight.gradient: {format: bfloat16, rounding: stochastic}}
    macs: {output: "bfloat16, order=chunked(64)"}
    scaling: {input: {method: delayed, history: 4}}
  - casts: {weight: int8}
loss_scale: 256.0
uncovered: float32
"""
    spec = load_yaml(text, PlanSpec)
    plan = spec.plan()
    assert str(plan.layer("fc1").cast("input", "output")) == "float8_e4m3fn"
    assert str(plan.layer("fc1").cast("gradient", "grad_weight")) == "bfloat16 stochastic"
    assert plan.layer("fc1").cast("gradient", "grad_input") is None
    assert str(plan.layer("fc1").mac("output")) == "bfloat16, order=chunked(64)"
    assert plan.layer("fc1").scaling("input") == Scaling("delayed", 4)
    assert str(plan.layer("fc2").cast("weight", "output")) == "int8"
    assert plan.loss_scale.factor == 256.0 and plan.uncovered == "float32"
    assert load_yaml(dump_yaml(spec), PlanSpec).plan() == plan


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("preset: fp8_hybrd", "preset: got 'fp8_hybrd'.*Did you mean 'fp8_hybrid'"),
        ("preset: float32\nuniform: {forward: int8}", "got preset and uniform, expected one of"),
        ("name: nothing", "got none, expected one of preset, uniform, rules"),
        ("rules:\n  - casts: {inpt: int8}", "Did you mean 'input'"),
        ("uniform: {forward: float9}", "float9"),
        ("preset: float32\nloss_scale: 3.0", "expected a power of two"),
        ("rules:\n  - casts: {input: mxfp8_e4m3}\n    scaling: {input: {}}", "a block format, which brings its own"),
        ("rules:\n  - macs: {output: fixed20.10}\n    scaling: {input: {}}", "a fixed-point accumulator"),
    ],
)
def test_mistakes_in_plan_files_are_named(text, said):
    with pytest.raises(SpecError, match=said):
        load_yaml(f"schema: plan/1\n{text}\n", PlanSpec).plan()


def test_uniform_leaves_results_in_the_accumulators_format():
    plan = PrecisionPlan.uniform("float8_e4m3fn", accumulator="bfloat16")
    assert str(plan.layer("x").cast("activation")) == "bfloat16"
    wide = PrecisionPlan.uniform("fixed16.8", accumulator="fixed48.24")
    assert wide.layer("x").cast("activation") is None, "a carrier of float32 does not hold 48 bits"


@pytest.mark.parametrize("largest", [1e-6, 0.9, 1.0, 447.0, 448.0, 449.0, 7e7])
def test_a_scale_brings_the_largest_value_just_under_the_limit(largest):
    number = hwsim.parse_format("float8_e4m3fn")
    factor = factor_for(largest, number)
    assert 224 < largest * factor <= 448
    assert factor == 2.0 ** round(torch.tensor(factor).log2().item())
    assert factor_for(largest, number, margin=2) == factor / 4
    assert factor_for(0.0, number) == factor_for(float("inf"), number) == 1.0


def test_scaled_operands_use_the_range_of_their_format():
    torch.manual_seed(0)
    layer, x = torch.nn.Linear(32, 8, bias=False), torch.randn(4, 32) * 1e-4
    casts, errors = {"input": "float8_e4m3fn"}, {}
    wanted = layer(x).detach()
    for name, scaling in (("none", {}), ("current", {"input": Scaling("current")})):
        with emulate(layer, PrecisionPlan(name, (Rule("*", casts, scaling=scaling),))):
            errors[name] = float((layer(x).detach() - wanted).norm() / wanted.norm())
    assert errors["none"] > 0.3 and errors["current"] < 0.05


def test_delayed_scales_look_at_earlier_steps_only():
    layer = torch.nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        layer.weight.fill_(1.0)
    plan = PrecisionPlan(
        "late", (Rule("*", {"input": "float8_e4m3fn saturate"}, scaling={"input": Scaling("delayed", 2)}),)
    )
    context, seen = emulate(layer, plan), []
    for value in (1.0, 1000.0, 1000.0):
        with context:
            seen.append(float(layer(torch.tensor([[value]])).detach()))
    assert seen[0] == 1.0
    assert seen[1] == 448 / 256, "scaled for 1, it saturates"
    assert seen[2] == pytest.approx(1000, rel=0.05)
