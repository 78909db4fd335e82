"""Initial weights from a seed: every layer's own `reset_parameters`, in a fixed order, from a generator of our own."""

from __future__ import annotations

import torch
from torch import nn

from hwsim.errors import SpecError


def draw_initial_weights(module: nn.Module, seed: int) -> None:
    """Draw all weights anew, in place; the caller's random generator stays as it was.

    Inner modules come before the ones that hold them, so that a network's own `reset_parameters` has the last word.

    Raises:
        SpecError: a parameter belongs to a module that has no `reset_parameters`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _draw(module, "")


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
