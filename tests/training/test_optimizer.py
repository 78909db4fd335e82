"""Optimizers against torch's, the fused kernels against the definition, and stored formats at each step."""

import copy

import pytest
import torch
from torch import nn

import hwsim
from hwsim import PrecisionPlan
from hwsim.training.optimizer import Optimizer
from hwsim.training.plan import Rule
from hwsim.training.recipe import Recipe
from hwsim.training.rounded_sum import add_rounded, add_to_odd

RECIPES = {
    "sgd": Recipe(optimizer="sgd", learning_rate=0.1),
    "momentum": Recipe(optimizer="sgd", learning_rate=0.1, momentum=0.9, weight_decay=0.01),
    "adam": Recipe(optimizer="adam", weight_decay=0.01),
    "adamw": Recipe(optimizer="adamw", weight_decay=0.1),
    "adagrad": Recipe(optimizer="adagrad", learning_rate=0.1),
}
THEIRS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1),
    "momentum": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.01),
    "adam": lambda p: torch.optim.Adam(p, weight_decay=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, weight_decay=0.1),
    "adagrad": lambda p: torch.optim.Adagrad(p, 0.1, eps=1e-6),
}
FLOAT32 = PrecisionPlan("plain", (Rule("*"),))


def layer():
    torch.manual_seed(0)
    return nn.Linear(17, 5)


def steps(net, update, count=12):
    """Run updates with the same made-up gradients every time."""
    generator = torch.Generator().manual_seed(3)
    for _ in range(count):
        for p in net.parameters():
            p.grad = torch.randn(p.shape, generator=generator)
        update()
    return [p.detach().clone() for p in net.parameters()]


@pytest.mark.parametrize("name", RECIPES)
def test_float32_follows_torch(name):
    ours, theirs = layer(), layer()
    optimizer = Optimizer(ours, FLOAT32, RECIPES[name])
    mine = steps(ours, lambda: optimizer.update(RECIPES[name].learning_rate))
    other = THEIRS[name](theirs.parameters())
    plain = steps(theirs, other.step)
    for a, b in zip(mine, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-6, atol=2e-7)


@pytest.mark.parametrize("name", RECIPES)
def test_fused_kernels_give_the_bits_of_the_definition(name):
    found = []
    for fused in (True, False):
        net = layer()
        optimizer = Optimizer(net, FLOAT32, RECIPES[name])
        if not fused:
            optimizer._fuses = lambda part, gradient: False
        found.append(steps(net, lambda opt=optimizer: opt.update(RECIPES[name].learning_rate)))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    net = layer()  # the break: one float32 step away must be seen
    optimizer = Optimizer(net, FLOAT32, RECIPES[name])
    other = steps(net, lambda: optimizer.update(RECIPES[name].learning_rate * (1 + 2**-20)))
    assert not all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("name", ["momentum", "adam", "adagrad"])
def test_states_never_get_stuck_below_the_normal_numbers(name):
    for fused in (True, False):
        net = layer()
        optimizer = Optimizer(net, FLOAT32, Recipe(**{**RECIPES[name].model_dump(), "weight_decay": 0.0}))
        if not fused:
            optimizer._fuses = lambda part, gradient: False
        for value in (2.0**-120, 2.0**-70, *[0.0] * 200):
            for p in net.parameters():
                p.grad = torch.full_like(p, value)
            optimizer.update(0.001)
            for part in optimizer.parameters:
                for state in part.states.values():
                    assert not ((state != 0) & (state.abs() < 2.0**-126)).any()


def test_weights_and_states_are_always_in_their_formats():
    plan = PrecisionPlan(
        "narrow", (Rule("*", {"master_weight": "bfloat16 stochastic", "optimizer_state": "float8_e5m2"}),)
    )
    net = layer()
    optimizer = Optimizer(net, plan, RECIPES["adam"], seed=1)
    held = [hwsim.quantize(p.detach(), "bfloat16") for p in net.parameters()]
    assert all(torch.equal(p.detach(), h) for p, h in zip(net.parameters(), held, strict=True)), "from the start"
    steps(net, lambda: optimizer.update(0.001), 3)
    for part in optimizer.parameters:
        assert torch.equal(part.parameter.detach(), hwsim.quantize(part.parameter.detach(), "bfloat16"))
        assert set(part.states) == {"moment1", "moment2"}
        for state in part.states.values():
            assert torch.equal(state, hwsim.quantize(state, "float8_e5m2")) and state.abs().max() > 0


def test_small_updates_vanish_without_compensation_and_add_up_with_it():
    """Contracts A13 and the trap: compensation in the weight's own fixed-point grid does nothing."""
    ends = {}
    for name, casts in {
        "plain": {},
        "same grid": {"compensation": "fixed8.6"},
        "finer grid": {"compensation": "fixed16.14"},
    }.items():
        net = nn.Linear(1, 1, bias=False)
        with torch.no_grad():
            net.weight.fill_(0.5)
        plan = PrecisionPlan(name, (Rule("*", {"master_weight": "fixed8.6", **casts}),))
        optimizer = Optimizer(net, plan, Recipe(optimizer="sgd", learning_rate=0.001))
        for _ in range(64):
            net.weight.grad = torch.ones(1, 1)
            optimizer.update(0.001)
        ends[name] = float(net.weight.detach())
    assert ends["plain"] == ends["same grid"] == 0.5
    assert ends["finer grid"] == pytest.approx(0.5 - 0.064, abs=2**-6)


def test_biases_may_have_formats_of_their_own():
    net = layer()
    casts = {"master_weight": "fixed6.5", "compensation": "fixed12.16", "weight_gradient": "fixed8.7"}
    own = {"bias.master_weight": "float32", "bias.compensation": "float32"}
    optimizer = Optimizer(net, PrecisionPlan("own", (Rule("*", {**casts, **own}),)), RECIPES["sgd"])
    states = {part.path: set(part.states) for part in optimizer.parameters}
    assert states == {"weight": {"compensation"}, "bias": set()}
    weight, bias = steps(net, lambda: optimizer.update(0.1))
    assert torch.equal(weight, hwsim.quantize(weight, "fixed6.5"))
    assert not torch.equal(bias, hwsim.quantize(bias, "fixed6.5"))
    same = Optimizer(layer(), PrecisionPlan("same", (Rule("*", casts),)), RECIPES["sgd"])  # the plain name is for both
    assert all("compensation" in part.states for part in same.parameters)


def test_dynamic_loss_scale_skips_and_halves_then_grows():
    net = layer()
    plan = FLOAT32.with_loss_scale(4.0, dynamic=True)
    optimizer = Optimizer(net, plan, RECIPES["sgd"])
    before = net.weight.detach().clone()
    for p in net.parameters():
        p.grad = torch.full_like(p, float("inf"))
    assert optimizer.update(0.1) is False
    assert torch.equal(before, net.weight.detach()) and optimizer.loss_scale.factor == 2.0 and optimizer.updates == 0
    for _ in range(plan.loss_scale.growth_steps):
        optimizer.loss_scale.note(True)
    assert optimizer.loss_scale.factor == 4.0


def test_loss_scale_leaves_no_trace_in_the_update():
    ends = []
    for factor in (1.0, 1024.0):
        net = layer()
        optimizer = Optimizer(net, FLOAT32.with_loss_scale(factor), RECIPES["adam"])
        for p in net.parameters():
            p.grad = torch.linspace(-1, 1, p.numel()).reshape(p.shape) * factor
        optimizer.update(0.001)
        ends.append(net.weight.detach().clone())
    assert torch.equal(*ends)


def test_clipping_is_by_element():
    net = layer()
    twin = copy.deepcopy(net)
    for part, value in ((net, 7.0), (twin, 0.5)):
        optimizer = Optimizer(part, FLOAT32, Recipe(optimizer="sgd", learning_rate=0.1, clip=0.5))
        for p in part.parameters():
            p.grad = torch.full_like(p, value)
        optimizer.update(0.1)
    assert torch.equal(net.weight, twin.weight)


@pytest.mark.parametrize("name", RECIPES)
def test_the_fused_kernel_clips_as_the_definition_does(name):
    """Long before and long after Adam's correction of the second moment has become 1."""
    recipe = Recipe(**{**RECIPES[name].model_dump(), "clip": 0.25})
    odd = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0, 0.25, -0.25, 1e-40])
    for updates in (0, 30000):
        found = []
        for fused in (True, False):
            net = layer()
            optimizer = Optimizer(net, FLOAT32, recipe)
            optimizer.updates = updates
            if not fused:
                optimizer._fuses = lambda part, gradient: False

            def update(opt=optimizer, net=net):
                net.weight.grad.view(-1)[: len(odd)] = odd
                opt.update(recipe.learning_rate)

            found.append([p.view(torch.int32) for p in steps(net, update)])
            assert net.weight.isnan().sum() == 1
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_a_sum_is_rounded_once():
    """A tie of bfloat16 plus a speck: rounded twice it goes to even, rounded once it goes up."""
    tie, speck = torch.tensor([1.0 + 2**-8]), torch.tensor([2.0**-60])
    cast = hwsim.Cast("bfloat16")
    assert float(add_rounded(tie, speck, cast)) == 1.0 + 2**-7
    assert float(hwsim.quantize((tie.double() + speck.double()), "bfloat16")) == 1.0, "what rounding twice gives"
    assert float(add_rounded(tie, -speck, cast)) == 1.0
    exact = torch.tensor([3.0]), torch.tensor([4.0])
    assert float(add_to_odd(*exact)) == 7.0


@pytest.mark.parametrize("name", ["adam", "adagrad"])
def test_no_epsilon_divides_zero_by_zero_like_the_definition(name):
    found = []
    for fused in (True, False):
        net = layer()
        optimizer = Optimizer(net, FLOAT32, Recipe(optimizer=name, epsilon=0.0))
        if not fused:
            optimizer._fuses = lambda part, gradient: False
        for p in net.parameters():
            p.grad = torch.zeros_like(p)
            p.grad.view(-1)[::2] = 0.5
        optimizer.update(0.1)
        found.append(net.weight.detach().clone())
    assert torch.equal(found[0].isnan(), found[1].isnan()) and found[0].isnan().any()
    assert torch.equal(found[0].nan_to_num(), found[1].nan_to_num())
