"""Initial weights from a seed: every layer's own `reset_parameters`, in a fixed order, from a generator of our own.

Two published codes of meProp (Sun et al., repository lancopku/meProp) start their linear layers otherwise:

- `meprop`, the C# code of the CPU tables: normal with deviation sqrt(6 / (inputs + outputs)), biases 0. That root is
  the bound of Glorot's uniform distribution; taken as a deviation it gives weights sqrt(3) times as wide.
- `meprop_gpu`, the PyTorch code of the GPU tables: weights and biases uniform within 1 / sqrt(outputs), where torch's
  own layers take the inputs. An output layer of 10 starts with weights up to 0.32.
"""

from __future__ import annotations

import copy
from math import sqrt
from typing import Literal

import torch
from torch import nn

from hwsim.errors import SpecError

Initial = Literal["default", "meprop", "meprop_gpu"]


def draw_initial_weights(module: nn.Module, seed: int, initial: Initial = "default") -> None:
    """Draw all weights anew, in place; the caller's random generator stays as it was.

    Inner modules come before the ones that hold them, so that a network's own `reset_parameters` has the last word;
    a published way of starting linear layers then draws those again, in the network's order.

    Raises:
        SpecError: a parameter belongs to a module that has no `reset_parameters`, or the network has no linear layer
            that `initial` could start in its way.
    """
    if any(p.device.type != "cpu" for p in module.parameters()):
        _draw_on_host(module, seed, initial)
        return
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        _draw(module, "")
        if initial != "default":
            layers = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
            if not layers:
                raise SpecError(
                    f"initial: got {initial}, expected default: the network has no linear layer to start so"
                )
            for layer in layers:
                _draw_linear(layer, initial)


def _draw_on_host(module: nn.Module, seed: int, initial: Initial) -> None:
    """Draw in a copy on the CPU: a GPU's generator gives other numbers for the same seed."""
    host = copy.deepcopy(module).cpu()
    draw_initial_weights(host, seed, initial)
    with torch.no_grad():
        for kept, drawn in zip(module.state_dict().values(), host.state_dict().values(), strict=True):
            kept.copy_(drawn)


def _draw(module: nn.Module, path: str) -> None:
    for name, child in module.named_children():
        _draw(child, f"{path}.{name}" if path else name)
    reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
    if callable(reset):
        reset()
    elif any(True for _ in module.parameters(recurse=False)):
        name = next(name for name, _ in module.named_parameters(recurse=False))
        raise SpecError(
            f"parameter {f'{path}.{name}' if path else name}: {type(module).__name__} has no reset_parameters(), so it "
            "cannot be drawn from the seed; define that method, or pass initialize=False"
        )


def _draw_linear(layer: nn.Linear, initial: Initial) -> None:
    """Draw one linear layer as a published code does; the module's docstring has the two ways."""
    with torch.no_grad():
        if initial == "meprop":
            layer.weight.normal_(0.0, sqrt(6 / (layer.in_features + layer.out_features)))
            if layer.bias is not None:
                layer.bias.zero_()
        else:
            bound = 1 / sqrt(layer.out_features)
            layer.weight.uniform_(-bound, bound)
            if layer.bias is not None:
                layer.bias.uniform_(-bound, bound)
