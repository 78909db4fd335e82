"""Gradients that meet at one tensor, added up as the plan says."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

import hwsim
from hwsim import PrecisionPlan
from hwsim.training.emulation import emulate
from hwsim.training.loop import train
from hwsim.training.plan import Rule
from hwsim.training.recipe import Recipe


def plan(mac, **casts):
    return PrecisionPlan("meeting", (Rule("*", casts, {"accumulate_grad": mac}),))


class Branches(nn.Module):
    """One tensor with five readers, two of them views; the gradients of readers are `factors`."""

    def __init__(self, factors):
        super().__init__()
        self.factors = torch.tensor(factors)

    def forward(self, x):
        x = x.abs()  # not a leaf
        first, second, third, fourth, fifth = self.factors
        return (x * first).sum() + (x.reshape(-1) * second).sum() + (x.T * third).sum() + (fourth * x + x * fifth).sum()


def bfloat16_sum(values):
    total = torch.zeros((), dtype=torch.float32)
    for v in values:
        total = (total + v).bfloat16().float()
    return float(total)


FACTORS = [256.0, 1.0, 0.75, 0.5, 3.0]


def test_readers_gradients_are_added_from_the_last_to_the_first():
    x = torch.ones(2, 2, requires_grad=True)
    network = Branches(FACTORS)
    with emulate(network, plan("bfloat16")):
        network(x).backward()
    assert torch.equal(x.grad, torch.full((2, 2), bfloat16_sum(FACTORS[::-1])))
    assert bfloat16_sum(FACTORS[::-1]) != bfloat16_sum(FACTORS) and bfloat16_sum(FACTORS[::-1]) != sum(FACTORS)


def test_sums_are_stored_by_role():
    x = torch.ones(2, 2, requires_grad=True)
    network = Branches(FACTORS)
    with emulate(network, plan("float32", activation_gradient="float8_e5m2")):
        network(x).backward()
    assert torch.equal(x.grad, hwsim.quantize(x.grad, "float8_e5m2"))


class Tied(nn.Module):
    """One weight read at the start and at the end, as embeddings are."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(6, 4)
        self.mix = nn.Linear(4, 4)
        self.mix2 = nn.LSTM(4, 4)

    def forward(self, x):
        y = self.mix(self.embed(x))
        y = y + self.mix2(y)[0]
        return functional.linear(self.mix(y), self.embed.weight)


def gradients(network, context, x):
    network.zero_grad()
    with context:
        network(x).square().sum().backward()
    return [p.grad for p in network.parameters()]


def test_in_float32_the_gradients_are_autograds_within_reassociation():
    torch.manual_seed(0)
    network, x = Tied(), torch.tensor([[0, 1], [2, 2], [5, 3]])
    mine = gradients(network, emulate(network, plan("float32")), x)
    theirs = gradients(copy.deepcopy(network), emulate(network, "float32"), x)
    theirs = gradients(network, emulate(network, "float32"), x) if theirs[0] is None else theirs
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["embed.weight", "mix.weight", "mix2.weight_hh_l0"])
def test_tied_weights_and_time_steps_add_up_in_the_plans_arithmetic(name):
    torch.manual_seed(0)
    network, x = Tied(), torch.tensor([[0, 1], [2, 2], [5, 3]])
    coarse = dict(
        zip(
            (n for n, _ in network.named_parameters()),
            gradients(network, emulate(network, plan("e8m2")), x),
            strict=True,
        )
    )
    assert torch.equal(coarse[name], hwsim.quantize(coarse[name], "e8m2")), "what the sum left"
    assert coarse[name].count_nonzero() > 3


def test_micro_batches_add_up_in_the_plans_arithmetic():
    recipe = Recipe(batch=32, micro_batches=4, epochs=1, train_examples=96, evaluate_examples=20, recorded_steps=1)

    def ends(p):
        return train(hwsim.load_model("mlp_digits", hidden=8), p, recipe=recipe).summary.hashes["final_weights"]

    base = PrecisionPlan("float32", (Rule("*"),))
    assert ends(plan("float32")) == ends(base), "no reader but one, and float32 in autograd's order"
    assert ends(plan("e8m2")) != ends(base)


def test_a_recorded_step_has_the_same_graph():
    recipe = Recipe(batch=16, epochs=1, train_examples=32, evaluate_examples=20, recorded_steps=1)
    ops = [
        [
            (op.id, op.kind, op.reads, op.writes)
            for op in train(hwsim.load_model("mlp_digits", hidden=8), p, recipe=recipe).workload.ops
        ]
        for p in (plan("float32"), PrecisionPlan("float32", (Rule("*"),)))
    ]
    assert ops[0] == ops[1]
