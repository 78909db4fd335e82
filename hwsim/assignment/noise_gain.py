"""Noise gains: how much noise in a weight or activation tensor moves the scores towards another class."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from hwsim.assignment.layers import Layer, assigned_layers, looking_at
from hwsim.errors import UnsupportedError

EXAMPLES = 200


@dataclass(frozen=True)
class NoiseGains:
    """Gains for noise of variance D^2 / 12, by layer, and which layers read the same tensor."""

    weights: dict[str, float] = field(default_factory=dict)
    activations: dict[str, float] = field(default_factory=dict)  # of what a layer reads; none for the network's input
    sources: dict[str, str] = field(default_factory=dict)  # layer -> the first layer that reads the same tensor


def noise_gains(model: nn.Module, inputs: Tensor) -> NoiseGains:
    """Return E of each weight tensor and of each tensor that a layer reads, over these examples.

    E = mean over examples of sum over classes i other than the chosen y of |d(z_i - z_y)/dT|^2 / (24 (z_i - z_y)^2).
    Classes that score exactly as much as the chosen one are left out.

    Raises:
        UnsupportedError: the network does not give one row of scores an example.
    """
    layers = assigned_layers(model)
    reads: dict[str, Tensor] = {}

    def note(path: str, module: Layer, read: Tensor, gave: Tensor) -> None:
        reads[path] = read

    training = model.training
    model.eval()
    weights, activations, sources = dict.fromkeys(layers, 0.0), dict.fromkeys(layers, 0.0), {}
    try:
        with looking_at(layers, note), torch.enable_grad():
            for example in inputs:
                reads.clear()
                scores = model(example.unsqueeze(0))
                if scores.ndim != 2 or scores.shape[0] != 1 or scores.shape[1] < 2:
                    shape = " x ".join(map(str, scores.shape))
                    raise UnsupportedError(f"{type(model).__name__}: gives scores of {shape}, expected 1 x classes")
                first = {id(read): path for path, read in reversed(reads.items())}
                sources = {path: first[id(read)] for path, read in reads.items()}
                _add_example(scores[0], layers, reads, set(sources.values()), weights, activations)
    finally:
        model.train(training)
    count = len(inputs)
    inner = {path for path, read in reads.items() if read.requires_grad}
    return NoiseGains(
        {path: gain / count for path, gain in weights.items() if path in sources},
        {path: activations[source] / count for path, source in sources.items() if path in inner},
        sources,
    )


def _add_example(
    scores: Tensor,
    layers: dict[str, Layer],
    reads: dict[str, Tensor],
    firsts: set[str],
    weights: dict[str, float],
    activations: dict[str, float],
) -> None:
    """Add one example's terms to the sums of `weights` and `activations`."""
    inner = [path for path, read in reads.items() if read.requires_grad and path in firsts]
    tensors = [layers[path].weight for path in reads] + [reads[path] for path in inner]
    chosen = int(scores.argmax())
    for other in range(len(scores)):
        margin = scores[other] - scores[chosen]
        distance = float(margin.detach())
        if distance == 0.0:
            continue
        gradients = torch.autograd.grad(margin, tensors, retain_graph=True, allow_unused=True)
        gains = [0.0 if g is None else float(g.double().square().sum()) / (24 * distance**2) for g in gradients]
        for path, gain in zip(reads, gains[: len(reads)], strict=True):
            weights[path] += gain
        for path, gain in zip(inner, gains[len(reads) :], strict=True):
            activations[path] += gain
