"""Losses that compare element by element, in the plan's formats, against a scalar definition in Python's own floats."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

import hwsim
from hwsim import PrecisionPlan, SpecError, UnsupportedError
from hwsim.training.emulation import emulated
from hwsim.training.plan import Rule

OURS = {"loss": "float32"}  # our own sums and our own rounding, in float32
FORMATS = {
    "probability": "ufixed9.8",
    "logarithm": "e6m5",
    "gradient": "fixed16.13",
    "loss": "bfloat16",
}


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


# The slow twins: one element's loss, and what it gains by a unit of its input.


def squared(x, t, formats):
    return (x - t) ** 2, 2 * (x - t)


def distance(x, t, formats):
    return abs(x - t), math.copysign(1, x - t) if x != t else 0.0


def smooth(x, t, formats):
    d = x - t
    return (d * d / 0.5 / 2, d / 0.5) if abs(d) < 0.5 else (abs(d) - 0.25, math.copysign(1, d))


def huber(x, t, formats):
    d = x - t
    return (d * d / 2, d) if abs(d) < 0.5 else (0.5 * (abs(d) - 0.25), math.copysign(0.5, d))


def binary(x, t, formats):
    yes = value(max(math.log(x), -100.0) if x > 0 else -100.0, formats["logarithm"])
    no = value(max(math.log1p(-x), -100.0) if x < 1 else -100.0, formats["logarithm"])
    return -(t * yes) - (1 - t) * no, (x - t) / max(x * (1 - x), 1e-12)


def binary_of_score(x, t, formats, pos_weight=1.0):
    rest = math.log1p(math.exp(-abs(x)))
    yes = value(min(x, 0.0) - rest, formats["logarithm"])
    no = value(-max(x, 0.0) - rest, formats["logarithm"])
    p = value(1 / (1 + math.exp(-x)), formats["probability"])
    return -(pos_weight * t * yes) - (1 - t) * no, p * (pos_weight * t + (1 - t)) - pos_weight * t


def divergence(x, t, formats):
    return (t * (value(math.log(t), formats["logarithm"]) - x) if t else 0.0), -t


def divergence_of_logarithms(x, t, formats):
    p = value(math.exp(t), formats["probability"])
    return (p * (t - x) if p else 0.0), -p


def scores():
    torch.manual_seed(0)
    return torch.randn(6, 11), torch.randn(6, 11)


def shares():
    """Probabilities, some of them 0 or 1, and targets between."""
    torch.manual_seed(0)
    x = torch.rand(6, 11)
    x[0, :2] = torch.tensor([0.0, 1.0])
    return x, (torch.rand(6, 11) > 0.5).float() * 0.75


def rows_of_shares():
    torch.manual_seed(0)
    t = torch.softmax(torch.randn(6, 11) * 3, -1)
    t[0, 3] = 0.0
    return torch.log_softmax(torch.randn(6, 11), -1), t


CASES = {
    "mse_loss": (functional.mse_loss, {}, squared, scores),
    "l1_loss": (functional.l1_loss, {}, distance, scores),
    "smooth_l1_loss": (functional.smooth_l1_loss, {"beta": 0.5}, smooth, scores),
    "huber_loss": (functional.huber_loss, {"delta": 0.5}, huber, scores),
    "binary_cross_entropy": (functional.binary_cross_entropy, {}, binary, shares),
    "binary_cross_entropy_with_logits": (
        functional.binary_cross_entropy_with_logits, {}, binary_of_score, lambda: (scores()[0], shares()[1])
    ),
    "kl_div": (functional.kl_div, {}, divergence, rows_of_shares),
    "kl_div of logarithms": (
        functional.kl_div, {"log_target": True}, divergence_of_logarithms,
        lambda: (rows_of_shares()[0], torch.log_softmax(scores()[1], -1)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("accumulator", ["float32", "bfloat16", "e6m5"])
@pytest.mark.parametrize("name", CASES)
def test_each_loss_follows_its_definition_step_by_step(name, accumulator):
    function, named, slow, operands = CASES[name]
    x, t = operands()
    x.requires_grad_()
    casts = {"loss" if part == "loss" else f"loss.{part}": fmt for part, fmt in FORMATS.items()}
    with emulated(plan(casts, reduce=accumulator)):
        loss = function(x, t, **named)
        loss.backward()
    pairs = zip(x.flatten().tolist(), t.flatten().tolist(), strict=True)
    terms, slopes = zip(*(slow(a, b, FORMATS) for a, b in pairs), strict=True)
    rounded = [value(term, "float32") for term in terms]
    assert float(loss.detach()) == value(added(rounded, accumulator) / len(terms), FORMATS["loss"])
    gradient = torch.tensor([value(slope / len(terms), FORMATS["gradient"]) for slope in slopes])
    assert torch.equal(x.grad.flatten(), gradient)


@pytest.mark.parametrize("name", CASES)
def test_each_format_that_a_loss_uses_shows(name):
    """The agreement above could hold without them: one format changed must be another result."""
    _, _, slow, operands = CASES[name]
    x, t = (operand.flatten().tolist() for operand in operands())
    exact = dict.fromkeys(FORMATS, "float32")
    for part in ("probability", "logarithm"):
        changed = [slow(a, b, exact | {part: "e6m3"}) != slow(a, b, exact) for a, b in zip(x, t, strict=True)]
        used = part == ("probability" if "logarithms" in name else "logarithm") or name.endswith("logits")
        assert any(changed) == (used and ("entropy" in name or "kl" in name))


WEIGHTS = torch.linspace(0.5, 2, 30).reshape(5, 6)
CALLS = {
    "mse, weights": lambda x, t: functional.mse_loss(x, t, weight=WEIGHTS),
    "mse, weights, apart": lambda x, t: functional.mse_loss(x, t, weight=WEIGHTS, reduction="none"),
    "mse, module": nn.MSELoss(reduction="sum"),
    "mse, one target for all rows": lambda x, t: functional.mse_loss(x, t[:1].expand(5, 6)),
    "l1, sum": nn.L1Loss(reduction="sum"),
    "smooth": nn.SmoothL1Loss(beta=0.25),
    "smooth, beta 0": nn.SmoothL1Loss(beta=0.0),
    "huber, weights": lambda x, t: functional.huber_loss(x, t, delta=0.25, weight=WEIGHTS),
    "huber, apart": nn.HuberLoss(reduction="none"),
    "bce": lambda x, t: nn.BCELoss()(x.sigmoid(), t.sigmoid()),
    "bce, weights": lambda x, t: functional.binary_cross_entropy(x.sigmoid(), t.sigmoid(), weight=WEIGHTS[:1]),
    "logits": lambda x, t: nn.BCEWithLogitsLoss()(x, t.sigmoid()),
    "logits, weights": lambda x, t: functional.binary_cross_entropy_with_logits(
        x, t.sigmoid(), weight=WEIGHTS, pos_weight=WEIGHTS[0], reduction="sum"
    ),
    "large logits": lambda x, t: functional.binary_cross_entropy_with_logits(200 * x, (t > 0).float()) / 200,
    "kl": lambda x, t: nn.KLDivLoss(reduction="batchmean")(x.log_softmax(1), t.softmax(1)),
    "kl, sum": lambda x, t: functional.kl_div(x.log_softmax(1), t.log_softmax(1), reduction="sum", log_target=True),
}


@pytest.mark.parametrize("name", CALLS)
def test_in_float32_each_call_is_torchs_within_a_few_units_in_the_last_place(name):
    torch.manual_seed(1)
    x, t = torch.randn(5, 6).requires_grad_(), torch.randn(5, 6)
    g = None
    sides = []
    for context in (emulated(plan(OURS)), emulated("float32")):
        x.grad = None
        with context:
            y = CALLS[name](x, t)
            g = torch.linspace(1, 2, y.numel()).reshape(y.shape) if g is None else g
            y.backward(g)
        sides.append((y.detach(), x.grad.clone()))
    for mine, theirs in zip(*sides, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=3e-6, atol=3e-7)


@pytest.mark.parametrize("loss", ["mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss"])
def test_a_target_may_want_a_gradient_too_where_a_loss_is_a_distance(loss):
    x, t = (tensor.requires_grad_() for tensor in scores())
    with emulated(plan(OURS)):
        getattr(functional, loss)(x, t).backward()
    assert torch.equal(t.grad, -x.grad) and x.grad.any()


def test_the_sum_of_a_loss_is_that_of_the_plan():
    """4,096 equal terms: a bfloat16 accumulator stops counting at 256."""
    x, t = torch.ones(64, 64), torch.zeros(64, 64)
    for casts in (OURS, {}):  # naming the sum alone is enough
        with emulated(plan(casts, reduce="bfloat16")):
            assert float(functional.mse_loss(x, t, reduction="sum")) == 256


def test_stochastic_gradients_of_a_loss_repeat_and_differ_by_step():
    def gradient(step):
        x, t = scores()
        context = emulated(plan({"loss.gradient": "fixed6.5 stochastic"}), seed=3)
        context.begin(step)
        with context:
            functional.mse_loss(x.requires_grad_(), t).backward()
        return x.grad

    assert torch.equal(gradient(1), gradient(1)) and not torch.equal(gradient(1), gradient(2))


def test_what_a_loss_cannot_take_is_one_line():
    x, t = scores()
    p = t.sigmoid()
    for error, said, call in (
        (SpecError, r"inputs from -.* to 2\..*expected probabilities in \[0, 1\]",
         lambda: functional.binary_cross_entropy(x, p)),
        (SpecError, r"got a target \(6, 1\), expected \(6, 11\)",
         lambda: functional.binary_cross_entropy_with_logits(x, p[:, :1])),
        (SpecError, r"got weights \(11,\), expected \(6, 11\)", lambda: functional.mse_loss(x, t, weight=t[0])),
        (UnsupportedError, "detach it", lambda: functional.kl_div(x, p.clone().requires_grad_())),
        (UnsupportedError, "detach it", lambda: functional.cross_entropy(x, p.clone().requires_grad_())),
        (UnsupportedError, "a loss's weights",
         lambda: functional.mse_loss(x, t, weight=torch.ones(6, 11).requires_grad_())),
        (UnsupportedError, "got reduction 'median'", lambda: functional.l1_loss(x, t, reduction="median")),
        (UnsupportedError, "size_average", lambda: functional.mse_loss(x, t, size_average=False)),
        (UnsupportedError, "a loss of torch.float64", lambda: functional.mse_loss(x.double(), t.double())),
    ):  # fmt: skip
        with pytest.raises(error, match=said), emulated(plan(OURS)):
            call()
