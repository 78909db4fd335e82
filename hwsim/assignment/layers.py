"""The layers that widths are assigned to, and a look at what they read and give while a network runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from hwsim.errors import UnsupportedError

Layer = nn.Linear | nn.Conv1d | nn.Conv2d

Look = Callable[[str, Layer, Tensor, Tensor], Tensor | None]
"""Called with a layer's path, the layer, what it read and what it gave; may return what goes on in its place."""


def assigned_layers(model: nn.Module) -> dict[str, Layer]:
    """Return the linear and convolution layers by path, in the order of the network's definition.

    Raises:
        UnsupportedError: other weights take part in products, which the criteria do not cover.
    """
    found: dict[str, Layer] = {}
    for path, module in model.named_modules():
        if isinstance(module, Layer):
            found[path] = module
            if getattr(module, "padding_mode", "zeros") != "zeros":
                raise UnsupportedError(f"layer {path!r}: pads with {module.padding_mode!r}, expected zeros")
        elif any(p.ndim > 1 for p in module.parameters(recurse=False)):
            kind = type(module).__name__
            raise UnsupportedError(
                f"layer {path or kind!r}: assign covers Linear, Conv1d and Conv2d (and norms, left in float32), "
                f"not {kind}"
            )
    if not found:
        raise UnsupportedError(f"{type(model).__name__}: has no Linear, Conv1d or Conv2d to assign widths to")
    return found


@contextmanager
def looking_at(layers: dict[str, Layer], look: Look) -> Iterator[None]:
    """Within it, each forward pass of a layer calls `look`, as long as gradients are wanted."""

    def hook_of(path: str) -> Callable[..., Any]:
        def hook(module: Layer, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            return look(path, module, inputs[0], output) if torch.is_grad_enabled() else None

        return hook

    handles = [module.register_forward_hook(hook_of(path)) for path, module in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def products(layer: Layer, read: Tensor, weight: Tensor) -> Tensor:
    """Return what the layer would give without its bias for another input and other weights."""
    if isinstance(layer, nn.Linear):
        return functional.linear(read, weight)
    stride, padding, dilation, groups = layer.stride, layer.padding, layer.dilation, layer.groups
    if isinstance(layer, nn.Conv1d):
        return functional.conv1d(read, weight, None, stride, padding, dilation, groups)
    return functional.conv2d(read, weight, None, stride, padding, dilation, groups)
