"""The width that a softmax's gradient needs: by value for every number of classes, and in a training run."""

import pytest
import torch
from torch import nn
from torch.nn import functional

import hwsim
from hwsim import PrecisionPlan, SpecError, softmax_bits
from hwsim.spec import load_yaml
from hwsim.training.emulation import emulate
from hwsim.training.loop import train
from hwsim.training.plan_file import PlanSpec
from hwsim.training.recipe import Recipe

ROUNDINGS = ("nearest_even", "nearest_away", "toward_zero")


def share(classes, bits, rounding):
    """What is left of 1/N in a word of this many bits."""
    x = torch.tensor([1 / classes], dtype=torch.float64)
    return float(hwsim.quantize(x, f"fixed{bits}.{bits - 1}", rounding)[0])


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_the_bound_is_the_first_width_that_keeps_a_class(rounding):
    for classes in (*range(2, 130), 255, 256, 257, 1000, 1023, 1024, 1025):
        bits = softmax_bits(classes, rounding=rounding)
        assert share(classes, bits, rounding) > 0, classes
        assert bits == 2 or share(classes, bits - 1, rounding) == 0, classes


@pytest.mark.parametrize(("classes", "bits"), [(10, 4), (17, 5), (49, 6), (100, 7), (1000, 10), (16, 5), (2, 2)])
def test_published_numbers_of_classes(classes, bits):
    assert softmax_bits(classes) == bits
    assert softmax_bits(classes, mean_over=64) == softmax_bits(64 * classes) == bits + 6


@pytest.mark.parametrize("classes", [10, 17, 49])
def test_below_the_bound_the_gradient_of_an_untrained_network_does_not_add_up(classes):
    """sum of Q(dz) against N: near 0 at the bound and above, -1 below, where only the target's part is left."""
    sums = {}
    for extra in (-1, 0, 1, 6):
        layer = nn.Linear(2, classes)  # of inputs 0: its biases are the scores
        nn.init.zeros_(layer.bias)
        context = emulate(layer, PrecisionPlan.uniform(softmax_bits=softmax_bits(classes) + extra))
        with context:
            z = layer(torch.zeros(1, 2))
            with context.at("loss"):
                functional.cross_entropy(z, torch.tensor([3]), reduction="sum").backward()
        gradient = layer.bias.grad
        sums[extra] = float(gradient.sum())
        others = torch.cat([gradient[:3], gradient[4:]])
        assert bool((others > 0).all()) == (extra >= 0), extra
    assert sums[-1] == -1.0
    assert abs(sums[6]) < 0.05


def test_a_plan_file_sets_the_width_and_training_stores_its_gradient_so():
    plan = load_yaml("schema: plan/1\nuniform: {forward: float32, softmax_bits: 4}\n", PlanSpec).plan()
    assert str(plan).endswith("softmax of 4 bits")
    recipe = Recipe(
        optimizer="sgd", learning_rate=0.02, loss="sum", batch=32, epochs=3, train_examples=640,
        evaluate_examples=200, recorded_steps=1,
    )  # fmt: skip
    ends = {}
    for bits in (3, 4, 8):
        result = train(
            hwsim.load_model("mlp_digits", hidden=32), PrecisionPlan.uniform(softmax_bits=bits), recipe=recipe
        )
        ends[bits] = result.summary.curves["train_loss"]
        last = next(op for op in result.workload.ops if op.id.endswith("cross_entropy.backward"))
        assert str(result.workload.tensors[last.writes[0]].format) == f"fixed{bits}.{bits - 1}"
    assert ends[8][-1] < 0.9 * ends[8][0], "a word of 8 bits learns"
    assert len({tuple(curve) for curve in ends.values()}) == 3


def test_a_run_that_diverges_ends_by_its_loss():
    layer = nn.Linear(2, 10)
    context = emulate(layer, PrecisionPlan.uniform(softmax_bits=4))
    with context:
        z = layer(torch.full((1, 2), float("inf")))
        with context.at("loss"):
            loss = functional.cross_entropy(z, torch.tensor([3]))
    assert torch.isnan(loss), "training calls that diverged; an error of a cast would be no result at all"


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: softmax_bits(1), "classes: got 1, expected a whole number, 2 or more"),
        (lambda: softmax_bits(10.0), "classes: got 10.0"),
        (lambda: softmax_bits(10, mean_over=0), "mean_over: got 0"),
        (lambda: softmax_bits(10, rounding="stochastic"), "rounding: got 'stochastic', expected one of nearest_even"),
        (lambda: PrecisionPlan.uniform(softmax_bits=1), "softmax_bits: got 1, expected a whole number from 2 to 24"),
    ],
)
def test_mistakes_are_named(call, said):
    with pytest.raises(SpecError, match=said):
        call()
