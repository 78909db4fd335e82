"""Activation checkpointing under emulation: the bits of the same network without it, and nothing counted twice."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

import hwsim
from hwsim import PrecisionPlan, UnsupportedError
from hwsim.training.emulation import emulate
from hwsim.training.loop import train
from hwsim.training.plan import Rule, Scaling
from hwsim.training.recipe import Recipe

ROLES = ("input", "weight", "gradient")


class Blocks(nn.Module):
    """A block used twice, bare functions in a lambda, dropout and batch norm; `way` is how regions are recomputed."""

    def __init__(self, way):
        super().__init__()
        self.way = way
        self.enter = nn.Linear(64, 12)
        self.block = nn.Sequential(nn.Linear(12, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.3), nn.Linear(12, 12))
        self.leave = nn.Linear(12, 10)

    def again(self, function, x):
        return function(x) if self.way is None else checkpoint(function, x, use_reentrant=self.way == "reentrant")

    def forward(self, x):
        y = self.enter(x)
        for _ in range(2):
            y = y + self.again(self.block, y)
        y = self.again(lambda z: torch.tanh(z * 2) @ self.enter.weight[:, :12], y)
        return self.leave(y)


PLANS = {
    "fp8": PrecisionPlan.uniform("float8_e4m3fn", "float8_e5m2", "bfloat16", overflow="saturate"),
    "stochastic": PrecisionPlan.uniform("float8_e4m3fn", accumulator="bfloat16", rounding="stochastic"),
    "delayed": PrecisionPlan(
        "delayed", (Rule("*", dict.fromkeys(ROLES, "int8"), scaling=dict.fromkeys(ROLES, Scaling("delayed", 2))),)
    ),
    "statistics": PrecisionPlan("statistics", (Rule("*", {"statistics": "bfloat16", "loss": "bfloat16"}),)),
    "float32": "float32",
}


def three_steps(network, plan, x, y, inside=True):
    """Outputs, gradients and buffers of three steps; the third backward pass outside of the context unless `inside`."""
    context, seen = emulate(network, plan, seed=7), []
    network.train()
    for _ in range(3):
        network.zero_grad()
        with context:
            scores = network(x)
            loss = functional.cross_entropy(scores, y)
            if inside:
                loss.backward()
        if not inside:
            loss.backward()
        seen += [scores.detach(), *(p.grad.clone() for p in network.parameters())]
        seen += [b.clone() for b in network.buffers()]
    assert not context.auditor.escaped
    return seen


@pytest.mark.parametrize("way", ["reentrant", "not reentrant"])
@pytest.mark.parametrize("name", PLANS)
def test_a_network_that_recomputes_has_the_bits_of_one_that_keeps(name, way):
    torch.manual_seed(0)
    x, y = torch.randn(16, 64), torch.randint(10, (16,))
    keeps = Blocks(None)
    recomputes = Blocks(way)
    recomputes.load_state_dict(keeps.state_dict())
    outside = copy.deepcopy(recomputes)
    wanted = three_steps(keeps, PLANS[name], x, y)
    for network, inside in ((recomputes, True), (outside, False)):
        for mine, theirs in zip(three_steps(network, PLANS[name], x, y, inside), wanted, strict=True):
            assert torch.equal(mine, theirs) or torch.allclose(mine, theirs, rtol=1e-6, atol=1e-7)
            if way != "reentrant":  # whose regions add weight gradients up in another order
                assert torch.equal(mine, theirs)


def test_without_the_return_the_bits_would_differ(monkeypatch):
    torch.manual_seed(0)
    x, y = torch.randn(16, 64), torch.randint(10, (16,))
    keeps, recomputes = Blocks(None), Blocks("not reentrant")
    recomputes.load_state_dict(keeps.state_dict())
    wanted = three_steps(keeps, PLANS["stochastic"], x, y)
    monkeypatch.setattr("hwsim.training.emulation.Emulation._return_to", lambda self, place: None)
    got = three_steps(recomputes, PLANS["stochastic"], x, y)
    assert not all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


@pytest.mark.parametrize("way", ["reentrant", "not reentrant"])
def test_a_recorded_step_counts_every_gemm_once(way):
    recipe = Recipe(batch=16, epochs=1, train_examples=32, evaluate_examples=20, recorded_steps=1)
    keeps, recomputes = (train(Blocks(w), PLANS["fp8"], recipe=recipe) for w in (None, way))
    described = [[(op.id, op.kind, op.reads, op.writes) for op in r.workload.ops] for r in (keeps, recomputes)]
    assert described[0] == described[1]
    assert keeps.summary.hashes == recomputes.summary.hashes or way == "reentrant"


def test_gradients_that_meet_are_added_once():
    plan = PrecisionPlan("meet", (Rule("*", {}, {"accumulate_grad": "bfloat16"}),))
    torch.manual_seed(0)
    x, y = torch.randn(16, 64), torch.randint(10, (16,))
    keeps, recomputes = Blocks(None), Blocks("not reentrant")
    recomputes.load_state_dict(keeps.state_dict())
    for a, b in zip(three_steps(keeps, plan, x, y), three_steps(recomputes, plan, x, y), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(UnsupportedError, match="use use_reentrant=False"):
        three_steps(Blocks("reentrant"), plan, x, y)


def test_torchs_own_checkpoint_is_left_as_it_was():
    before = {name: getattr(torch.utils.checkpoint, name) for name in dir(torch.utils.checkpoint)}
    with hwsim.emulated("float32"):
        pass
    assert {name: getattr(torch.utils.checkpoint, name) for name in dir(torch.utils.checkpoint)} == before
