"""Removing hidden units that are always 0 from a network: the physically smaller one gives the same outputs.

Unit j of a linear layer or an LSTM is what `hwsim.training.units` says; what it computes enters the next layer by
column j. Which layers follow each other in that way is found by trying it on an example, so no network has to say how
it is built.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from hwsim.errors import SpecError
from hwsim.training.units import Layer, has_units, inputs, keep_inputs, keep_units, living_units, width

Hook = Callable[..., object]


@dataclass(frozen=True, slots=True)
class Link:
    """A hidden layer and the one that alone reads its units; paths as `named_modules` gives them."""

    layer: str
    reader: str


def hidden_links(model: nn.Module, example: Tensor) -> tuple[Link, ...]:
    """Return the hidden linear layers and LSTMs whose units can be removed, in forward order.

    For each of them and the one that runs after it, three things are tried on the example: a unit that is 0 enters
    the reader as 0, it changes no other unit on its way there, and nothing but the reader sees the units. So ReLU,
    tanh or dropout may stand between the two, while a sigmoid, a normalization or a skip connection rules the pair
    out. An LSTM must start from its own state of 0, and its last states must go unread.
    """
    order: list[str] = []
    layers = {path: part for path, part in model.named_modules() if has_units(part)}
    hooks = [(part, "pre", lambda module, args, path=path: order.append(path)) for path, part in layers.items()]
    with _probing(model, hooks):
        model(example)
    once = [path for path in order if order.count(path) == 1]
    pairs = [(a, b) for a, b in pairwise(order) if a in once and b in once]
    return tuple(Link(a, b) for a, b in pairs if _reads_alone(model, layers[a], layers[b], example))


def _reads_alone(model: nn.Module, layer: Layer, reader: Layer, example: Tensor) -> bool:
    """Return whether `reader` is the only one that sees the units of `layer`, each in a column of its own."""
    if width(layer) != inputs(reader) or not _starts_at_zero(model, layer, example):
        return False
    seen: list[Any] = []
    silent = torch.arange(width(layer), device=next(layer.parameters()).device) % 2 == 0

    def silence(module: nn.Module, args: object, output: Any) -> Any:
        return _each(output, lambda units: units.masked_fill(silent, 0.0))

    def shift(module: nn.Module, args: object, output: Any) -> Any:
        return _each(output, lambda units: units + 1.0)

    def note(module: nn.Module, args: tuple[Any, ...]) -> None:
        seen.append(args[0])

    def pin(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (seen[0], *args[1:])

    with _probing(model, [(reader, "pre", note)]):
        whole = model(example)
    if not isinstance(seen[0], Tensor):  # a packed sequence
        return False
    with _probing(model, [(layer, "post", silence), (reader, "pre", note)]):
        model(example)
    with _probing(model, [(layer, "post", shift), (reader, "pre", pin)]):
        pinned = model(example)
    before, after = seen[0], seen[1]
    if after.shape != before.shape or torch.count_nonzero(after[..., silent]):
        return False
    return torch.equal(after[..., ~silent], before[..., ~silent]) and torch.equal(pinned, whole)


def _starts_at_zero(model: nn.Module, layer: Layer, example: Tensor) -> bool:
    """Return whether dead units stay at 0: all of a layer's units do when all its weights are 0."""
    found: list[bool] = []

    def note(module: nn.Module, args: object, output: Any) -> None:
        _each(output, lambda units: found.append(not torch.count_nonzero(units)))

    kept = {name: parameter.detach().clone() for name, parameter in layer.named_parameters()}
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
    try:
        with _probing(model, [(layer, "post", note)]):
            model(example)
    finally:
        with torch.no_grad():
            for name, parameter in layer.named_parameters():
                parameter.copy_(kept[name])
    return all(found)


def _each(output: Any, change: Callable[[Tensor], Any]) -> Any:
    """Return a layer's output with the change made to each tensor of units: an LSTM returns its last states too."""
    if isinstance(output, Tensor):
        return change(output)
    if not isinstance(output, tuple) or not all(isinstance(part, Tensor | tuple) for part in output):
        return output
    return tuple(_each(part, change) for part in output)


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


def shrink(model: nn.Module, example: Tensor) -> nn.Module:
    """Return a copy of the network without the hidden units that are always 0.

    Args:
        model: a network whose dead units have weights and bias 0, as training with `simplify` leaves it.
        example: an input batch (two rows will do), to find which layer reads which.

    The outputs are those of the given network, to the bit wherever products of 0 leave the sum as it is: sequential
    and exact sums. Sums whose order depends on positions (chunks, trees, BLAS) may differ in their roundings, and so
    may Kahan's, which applies its compensation once more at each product of 0.

    Raises:
        SpecError: no hidden linear layer or LSTM feeds just one other.
    """
    links = hidden_links(model, example)
    if not links:
        raise SpecError("shrink: no hidden linear layer or LSTM of this network is read by exactly one other")
    smaller = copy.deepcopy(model)
    for link in links:
        layer, reader = smaller.get_submodule(link.layer), smaller.get_submodule(link.reader)
        assert has_units(layer) and has_units(reader)
        living = living_units(layer)
        if bool(living.all()) or not bool(living.any()):
            continue
        keep_units(layer, living)
        keep_inputs(reader, living)
    return smaller
