"""What is measured for the criteria, against slow and plain ways to compute the same."""

import copy

import pytest
import torch
from torch import nn

import hwsim
from hwsim.assignment.gradients import READ_EVERY, GradientStatistics, squared_jacobian
from hwsim.assignment.layers import assigned_layers
from hwsim.assignment.noise_gain import noise_gains
from hwsim.data.dataset import load
from hwsim.errors import SpecError, UnsupportedError


def convnet() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Conv2d(4, 4, 3, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3),
    )  # fmt: skip


def slow_gains(net: nn.Sequential, inputs: torch.Tensor) -> tuple[dict[str, float], dict[str, float]]:
    """Noise gains by whole Jacobians of the scores, an example at a time."""
    layers = [index for index, module in enumerate(net) if isinstance(module, nn.Conv2d | nn.Linear)]
    weights, reads = {}, {}
    for index in layers:
        of_weight = of_read = 0.0
        for example in inputs:
            before = net[:index](example.unsqueeze(0)).detach()

            def scores(weight, read, index=index):
                y = torch.func.functional_call(net[index], {"weight": weight}, (read,))
                return net[index + 1 :](y)[0]

            z = net(example.unsqueeze(0))[0].detach()
            jacobians = torch.autograd.functional.jacobian(scores, (net[index].weight.detach(), before))
            chosen = int(z.argmax())
            for other in range(len(z)):
                if other != chosen:
                    below = 24 * float(z[other] - z[chosen]) ** 2
                    of_weight += float((jacobians[0][other] - jacobians[0][chosen]).square().sum()) / below
                    of_read += float((jacobians[1][other] - jacobians[1][chosen]).square().sum()) / below
        weights[str(index)] = of_weight / len(inputs)
        if index:
            reads[str(index)] = of_read / len(inputs)
    return weights, reads


def test_noise_gains_are_those_of_whole_jacobians() -> None:
    net, inputs = convnet(), torch.randn(5, 2, 8, 8)
    found = noise_gains(net, inputs)
    weights, reads = slow_gains(net, inputs)
    assert found.weights == pytest.approx(weights, rel=1e-4)
    assert found.activations == pytest.approx(reads, rel=1e-4)
    assert "0" not in found.activations  # the network's own input is not balanced
    twice = noise_gains(net, inputs * 1.01)  # the break: another input must be seen
    assert twice.weights != pytest.approx(weights, rel=1e-4)


def test_layers_that_read_one_tensor_share_its_gain() -> None:
    class Forked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.left, self.right = nn.Linear(4, 5), nn.Linear(5, 3), nn.Linear(5, 3)

        def forward(self, x):
            hidden = self.first(x).relu()
            return self.left(hidden) + self.right(hidden)

    found = noise_gains(Forked(), torch.randn(3, 4))
    assert found.sources == {"first": "first", "left": "left", "right": "left"}
    assert found.activations["left"] == found.activations["right"] > 0


@pytest.mark.parametrize("layer", [nn.Linear(6, 4), nn.Conv1d(4, 4, 3, groups=2), nn.Conv2d(3, 4, 3, 2, 1)])
def test_the_squared_jacobian_says_how_variance_is_passed_on(layer: nn.Module) -> None:
    torch.manual_seed(1)
    shape = {nn.Linear: (5, 6), nn.Conv1d: (3, 4, 7), nn.Conv2d: (2, 3, 5, 5)}[type(layer)]
    read = torch.randn(shape)
    gave = layer(read)
    gradient = torch.randn(gave.shape) * (torch.rand(gave.shape) > 0.5)
    slow = torch.zeros_like(layer.weight)
    for position in gradient.flatten().nonzero():  # one element of the gradient at a time
        unit = torch.zeros(gradient.numel())
        unit[position] = 1.0
        (passed,) = torch.autograd.grad(gave, layer.weight, unit.view(gave.shape), retain_graph=True)
        slow += passed.square()
    slow = slow.flatten(2).mean(2) if slow.ndim > 2 else slow
    torch.testing.assert_close(squared_jacobian(layer, read, gradient), slow)
    assert not torch.allclose(squared_jacobian(layer, read, torch.ones_like(gradient)), slow)


def test_running_deviations_and_their_extremes() -> None:
    net = nn.Sequential(nn.Linear(3, 2))
    watch = GradientStatistics()
    watch.watch(net, 2 * READ_EVERY)
    watch._every = 2
    running, readings = 0.0, []
    generator = torch.Generator().manual_seed(2)
    for number in range(6):
        x = torch.randn(4, 3, generator=generator) * (number + 1)
        net.zero_grad()
        net(x).square().sum().backward()
        now = net[0].weight.grad.double().var(correction=0).item()
        running = now if number == 0 else 0.9 * running + 0.1 * now
        readings += [running**0.5] if number % 2 else []
        watch.look(number)
    found = watch.layers["0"]
    assert found.weight_gradient == pytest.approx(running, rel=1e-5)
    assert (found.weight_gradient_least, found.weight_gradient_most) == pytest.approx(
        (min(readings), max(readings)), rel=1e-5
    )
    assert found.input_least < 0 < found.input_most
    watch.leave()
    assert not net[0]._forward_hooks


RECIPE = hwsim.Recipe(
    optimizer="sgd", learning_rate=0.1, batch=32, epochs=2, train_examples=320, evaluate_examples=64, recorded_steps=2
)


def test_watching_changes_nothing_and_survives_a_kill(tmp_path, monkeypatch) -> None:
    data = load("digits")

    def run(observer, **options):
        network = hwsim.load_model("mlp_digits", hidden=16)
        return hwsim.train(network, "float32", data, recipe=RECIPE, observer=observer, **options).summary

    plain, watch = run(None), GradientStatistics()
    assert run(watch).hashes == plain.hashes
    whole = watch.tensors()
    assert all(value.abs().sum() > 0 for value in whole.values())

    killed = GradientStatistics()
    look = killed.look
    monkeypatch.setattr(killed, "look", lambda number: look(number) if number < 13 else (_ for _ in ()).throw(OSError))
    with pytest.raises(OSError):
        run(killed, out=tmp_path / "run.checkpoint")
    again = GradientStatistics()
    assert run(again, out=tmp_path / "run.checkpoint", resume=True).hashes == plain.hashes
    assert all(torch.equal(value, whole[name]) for name, value in again.tensors().items())


def test_notes_of_another_network_are_refused() -> None:
    watch = GradientStatistics()
    watch.watch(nn.Sequential(nn.Linear(3, 2)), 10)
    with pytest.raises(SpecError, match="no gradient statistics of this network"):
        watch.restore({"other.numbers": torch.zeros(8)})


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (nn.Sequential(nn.LSTM(3, 4)), "layer '0': assign covers Linear, Conv1d and Conv2d.*not LSTM"),
        (nn.Sequential(nn.ReLU()), "has no Linear"),
        (nn.Sequential(nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular")), "pads with 'circular'"),
    ],
)
def test_networks_that_are_not_covered_are_named(net: nn.Module, message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        assigned_layers(net)


def test_a_layer_that_runs_twice_is_refused() -> None:
    net = nn.Sequential(nn.Linear(3, 3))
    watch = GradientStatistics()
    watch.watch(net, 10)
    with pytest.raises(UnsupportedError, match="runs twice in a step"):
        net(net(torch.randn(2, 3)))
    watch.leave()


def test_norms_are_left_alone() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 2))
    assert list(assigned_layers(copy.deepcopy(net))) == ["0", "3"]
