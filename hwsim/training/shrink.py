"""Removing hidden units that are always 0 from a network: the physically smaller one gives the same outputs.

Unit j of a hidden linear layer is row j of its weight; what it computes enters the next linear layer by column j. Which
layers follow each other in that way is found by trying it on an example, so no network has to say how it is built.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from hwsim.errors import SpecError

Hook = Callable[..., object]


@dataclass(frozen=True, slots=True)
class Link:
    """A hidden linear layer and the one that alone reads its units; paths as `named_modules` gives them."""

    layer: str
    reader: str


def hidden_links(model: nn.Module, example: Tensor) -> tuple[Link, ...]:
    """Return the hidden linear layers whose units can be removed, in forward order.

    For each linear layer and the one that runs after it, three things are tried on the example: a unit that is 0
    enters the reader as 0, it changes no other unit on its way there, and nothing but the reader sees the units. So
    ReLU, tanh or dropout may stand between the two, while a sigmoid, a normalization or a skip connection rules the
    pair out.
    """
    order: list[str] = []
    linear = {path: part for path, part in model.named_modules() if type(part) is nn.Linear}
    hooks = [(part, "pre", lambda module, inputs, path=path: order.append(path)) for path, part in linear.items()]
    with _probing(model, hooks):
        model(example)
    once = [path for path in order if order.count(path) == 1]
    pairs = [(a, b) for a, b in pairwise(order) if a in once and b in once]
    return tuple(Link(a, b) for a, b in pairs if _reads_alone(model, linear[a], linear[b], example))


def _reads_alone(model: nn.Module, layer: nn.Linear, reader: nn.Linear, example: Tensor) -> bool:
    """Return whether `reader` is the only one that sees the units of `layer`, each in a column of its own."""
    if layer.out_features != reader.in_features:
        return False
    seen: list[Tensor] = []
    silent = torch.arange(layer.out_features, device=layer.weight.device) % 2 == 0

    def silence(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        return output.masked_fill(silent, 0.0)

    def shift(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        return output + 1.0

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append(inputs[0])

    def pin(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (seen[0],)

    with _probing(model, [(reader, "pre", note)]):
        whole = model(example)
    with _probing(model, [(layer, "post", silence), (reader, "pre", note)]):
        model(example)
    with _probing(model, [(layer, "post", shift), (reader, "pre", pin)]):
        pinned = model(example)
    before, after = seen[0], seen[1]
    if after.shape != before.shape or torch.count_nonzero(after[..., silent]):
        return False
    return torch.equal(after[..., ~silent], before[..., ~silent]) and torch.equal(pinned, whole)


@contextmanager
def _probing(model: nn.Module, hooks: Sequence[tuple[nn.Module, str, Hook]]) -> Iterator[None]:
    """Within it, the network evaluates without gradients and the hooks hang at their modules."""
    was_training = {path: part.training for path, part in model.named_modules()}
    model.eval()
    handles = [
        part.register_forward_pre_hook(hook) if kind == "pre" else part.register_forward_hook(hook)
        for part, kind, hook in hooks
    ]
    try:
        with torch.no_grad():
            yield
    finally:
        for handle in handles:
            handle.remove()
        for path, part in model.named_modules():
            part.training = was_training[path]


def living_units(layer: nn.Linear) -> Tensor:
    """Return, for each unit, whether its row of the weight or its bias holds anything but 0."""
    living = (layer.weight.detach() != 0).any(1)
    return living if layer.bias is None else living | (layer.bias.detach() != 0)


def shrink(model: nn.Module, example: Tensor) -> nn.Module:
    """Return a copy of the network without the hidden units that are always 0.

    Args:
        model: a network whose dead units have weights and bias 0, as training with `simplify` leaves it.
        example: an input batch (two rows will do), to find which linear layer reads which.

    The outputs are those of the given network, to the bit wherever products of 0 leave the sum as it is: sequential,
    exact and Kahan sums. Sums whose order depends on positions (chunks, trees, BLAS) may differ in their roundings.

    Raises:
        SpecError: no hidden linear layer feeds just one other.
    """
    links = hidden_links(model, example)
    if not links:
        raise SpecError("shrink: no hidden linear layer of this network is read by exactly one other")
    smaller = copy.deepcopy(model)
    for link in links:
        layer, reader = smaller.get_submodule(link.layer), smaller.get_submodule(link.reader)
        assert isinstance(layer, nn.Linear) and isinstance(reader, nn.Linear)
        living = living_units(layer)
        if bool(living.all()) or not bool(living.any()):
            continue
        layer.weight = nn.Parameter(layer.weight.detach()[living].clone())
        if layer.bias is not None:
            layer.bias = nn.Parameter(layer.bias.detach()[living].clone())
        reader.weight = nn.Parameter(reader.weight.detach()[:, living].clone())
        layer.out_features = reader.in_features = int(living.sum())
    return smaller
