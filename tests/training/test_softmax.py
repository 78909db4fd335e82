"""Softmax and cross-entropy in the plan's formats, against a scalar definition in Python's own floats."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

import hwsim
from hwsim import PrecisionPlan, SpecError, UnsupportedError
from hwsim.training.emulation import emulated
from hwsim.training.loop import train
from hwsim.training.plan import Rule
from hwsim.training.recipe import Recipe

OURS = {"loss": "float32"}  # our own sums and our own rounding, in float32


def plan(casts, **macs):
    return PrecisionPlan("loss", (Rule("*", casts, macs),))


def value(x, format):
    """One number rounded into a format; the format's own definition is tested elsewhere."""
    return float(hwsim.quantize(torch.tensor([x], dtype=torch.float64), format)[0])


def added(values, accumulator):
    """The sum of numbers one after the other, each sum rounded."""
    total = 0.0
    for v in values:
        total = value(total + v, accumulator)
    return total


def slow_cross_entropy(rows, targets, formats, accumulator):
    """The page of definitions in plain Python: the loss, and the gradient at each score."""
    losses, gradient = [], []
    for z, y in zip(rows, targets, strict=True):
        shifted = [v - max(z) for v in z]
        e = [value(math.exp(v), formats["exponential"]) for v in shifted]
        s = added(e, accumulator)
        p = [value(v / s, formats["probability"]) for v in e]
        losses.append(-value(shifted[y] - math.log(s), formats["logarithm"]))
        gradient.append([value((v - (i == y)) / len(rows), formats["gradient"]) for i, v in enumerate(p)])
    return value(added(losses, accumulator) / len(rows), formats["loss"]), gradient


FORMATS = {
    "exponential": "e6m3",
    "probability": "ufixed9.8",
    "logarithm": "e6m5",
    "gradient": "fixed12.11",
    "loss": "bfloat16",
}


@pytest.mark.parametrize("accumulator", ["float32", "bfloat16", "e6m5"])
def test_cross_entropy_follows_its_definition_step_by_step(accumulator):
    torch.manual_seed(0)
    z, y = (torch.randn(6, 11) * 3).requires_grad_(), torch.randint(11, (6,))
    casts = {"loss" if part == "loss" else f"loss.{part}": fmt for part, fmt in FORMATS.items()}
    with emulated(plan(casts, reduce=accumulator)):
        loss = functional.cross_entropy(z, y)
        loss.backward()
    wanted, gradient = slow_cross_entropy(z.tolist(), y.tolist(), FORMATS, accumulator)
    assert float(loss.detach()) == wanted
    assert torch.equal(z.grad, torch.tensor(gradient))


@pytest.mark.parametrize("part", FORMATS)
def test_each_format_of_the_loss_shows(part):
    """The agreement above could hold without them: one format changed must be another result."""
    torch.manual_seed(0)
    z, y = (torch.randn(6, 11) * 3).tolist(), torch.randint(11, (6,)).tolist()
    whole, changed = (slow_cross_entropy(z, y, f, "bfloat16") for f in (FORMATS, FORMATS | {part: "float32"}))
    assert whole != changed


CALLS = {
    "softmax": lambda z: functional.softmax(z, -1),
    "softmax over rows": lambda z: torch.softmax(z, 0),
    "method": lambda z: z.softmax(1),
    "softmin": lambda z: functional.softmin(z, dim=1),
    "log_softmax": lambda z: functional.log_softmax(z, dim=1),
    "module": nn.LogSoftmax(dim=1),
    "cross entropy": lambda z: functional.cross_entropy(z, TARGETS),
    "rows apart": lambda z: nn.CrossEntropyLoss(reduction="none")(z, TARGETS),
    "sum, ignoring": lambda z: functional.cross_entropy(z, TARGETS, ignore_index=2, reduction="sum"),
    "mean, ignoring": lambda z: functional.cross_entropy(z, TARGETS, ignore_index=2),
    "weights": lambda z: functional.cross_entropy(z, TARGETS, weight=WEIGHTS),
    "smoothing": lambda z: functional.cross_entropy(z, TARGETS, weight=WEIGHTS, label_smoothing=0.1),
    "smoothing, ignoring": lambda z: functional.cross_entropy(z, TARGETS, ignore_index=2, label_smoothing=0.1),
    "probabilities": lambda z: functional.cross_entropy(z, torch.softmax(z.detach().flip(1), 1), weight=WEIGHTS),
    "pixels": lambda z: functional.cross_entropy(z.reshape(1, 5, 6).permute(0, 2, 1), TARGETS[:5].reshape(1, 5)),
    "one row": lambda z: functional.cross_entropy(z[0], TARGETS[0]),
    "nll": lambda z: functional.nll_loss(functional.log_softmax(z, 1), TARGETS, weight=WEIGHTS, ignore_index=1),
    "nll, apart": lambda z: nn.NLLLoss(reduction="none")(functional.log_softmax(z, 1), TARGETS),
}
TARGETS, WEIGHTS = torch.tensor([0, 2, 5, 1, 2]), torch.tensor([0.5, 1.0, 2.0, 0.25, 1.0, 3.0])


@pytest.mark.parametrize("name", CALLS)
def test_in_float32_each_call_is_torchs_within_a_few_units_in_the_last_place(name):
    torch.manual_seed(1)
    z = torch.randn(5, 6).requires_grad_()
    g = None
    sides = []
    for context in (emulated(plan(OURS)), emulated("float32")):
        z.grad = None
        with context:
            y = CALLS[name](z)
            g = torch.linspace(1, 2, y.numel()).reshape(y.shape) if g is None else g
            y.backward(g)
        sides.append((y.detach(), z.grad.clone()))
    for mine, theirs in zip(*sides, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=3e-6, atol=3e-7)


def test_the_sum_of_exponentials_is_that_of_the_plan():
    """4,096 equal scores: a bfloat16 accumulator stops counting at 256, so that probabilities add up to 16."""
    z = torch.zeros(1, 4096)
    with emulated(plan(OURS, reduce="bfloat16")):
        p = functional.softmax(z, -1)
    assert torch.equal(p, torch.full_like(p, 1 / 256))
    with emulated(plan({}, reduce="bfloat16")):
        assert torch.equal(functional.softmax(z, -1), p), "naming the sum alone is enough"


def test_attention_takes_its_softmax_in_the_same_formats():
    q = torch.zeros(1, 1, 4, 8)
    with emulated(plan({"loss.probability": "ufixed4.3", "loss.exponential": "float32"})):
        y = functional.scaled_dot_product_attention(q, q, torch.eye(4, 8).expand(1, 1, 4, 8), is_causal=True)
    assert y[0, 0, :, :4].tolist() == [[1, 0, 0, 0], [0.5, 0.5, 0, 0], [0.375, 0.375, 0.375, 0], [0.25] * 4]


def test_other_losses_are_refused_by_name_or_listed():
    x = torch.randn(3)
    said = r"'soft_margin_loss' is not emulated in the plan's loss.*uncovered: float32"
    with pytest.raises(UnsupportedError, match=said), emulated(plan(OURS)):
        functional.soft_margin_loss(x, x.sign())
    context = emulated(PrecisionPlan("loose", (Rule("*", OURS),), uncovered="float32"))
    with context:
        functional.soft_margin_loss(x, x.sign())
    assert context.step.uncovered == {"soft_margin_loss"}


def test_stochastic_gradients_of_the_loss_repeat_and_differ_by_step():
    z, y = torch.randn(8, 10), torch.randint(10, (8,))

    def gradient(step):
        scores = z.clone().requires_grad_()
        context = emulated(plan({"loss.gradient": "fixed6.5 stochastic"}), seed=3)
        context.begin(step)
        with context:
            functional.cross_entropy(scores, y).backward()
        return scores.grad

    assert torch.equal(gradient(1), gradient(1)) and not torch.equal(gradient(1), gradient(2))


def test_a_training_run_uses_the_loss_of_its_plan():
    recipe = Recipe(batch=32, epochs=1, train_examples=320, evaluate_examples=50, recorded_steps=1)
    ends = {}
    for name, casts in (("torch", {}), ("ours", OURS), ("coarse", {"loss.gradient": "fixed8.7"})):
        result = train(hwsim.load_model("mlp_digits", hidden=16), plan(casts), recipe=recipe)
        ends[name] = result
    loss = [r.summary.curves["train_loss"][0] for r in ends.values()]
    assert loss[0] == pytest.approx(loss[1], rel=1e-4) and loss[2] != pytest.approx(loss[1], rel=1e-4)
    formats = {name: str(r.workload.tensors[scores_gradient(r)].format) for name, r in ends.items()}
    assert formats == {"torch": "float32", "ours": "float32", "coarse": "fixed8.7"}


def scores_gradient(result):
    """The gradient that the loss writes in the recorded step."""
    return next(op for op in result.workload.ops if op.id.endswith("cross_entropy.backward")).writes[0]


def test_a_part_of_the_loss_that_does_not_exist_is_an_error():
    with pytest.raises(SpecError, match=r"Did you mean 'loss.gradient'"):
        Rule("*", {"loss.gradients": "int8"})
