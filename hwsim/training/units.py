"""What a hidden unit owns in the layer that computes it: the rows that go, and the columns that read it.

Unit j of a linear layer is row j of its weight and its bias. Unit j of an LSTM is the j-th row of each of its four
gates, in both weights and both biases, and column j of the recurrent weight, which reads it: the unit's state is one
number, so its gates stay or go together. With all of these rows 0 the unit's candidate is tanh(0) = 0 at every step,
so that its memory and its output stay 0 from a start at 0. How the authors of meSimp (arXiv 1711.06528) divide an LSTM
is not known to us; this division is the only one that leaves an LSTM.
"""

from __future__ import annotations

from typing import TypeGuard

import torch
from torch import Tensor, nn

Layer = nn.Linear | nn.LSTM


def has_units(part: nn.Module) -> TypeGuard[Layer]:
    """Return whether single units could be removed: a linear layer, or an LSTM of one layer in one direction.

    torch's deeper and two-way LSTMs have one width for all their parts, whatever is left in each.
    """
    if type(part) is nn.LSTM:
        return part.num_layers == 1 and not part.bidirectional and part.proj_size == 0
    return type(part) is nn.Linear


def width(layer: Layer) -> int:
    """Return the number of units."""
    return layer.hidden_size if isinstance(layer, nn.LSTM) else layer.out_features


def inputs(layer: Layer) -> int:
    """Return the number of columns that read the layer before."""
    return layer.input_size if isinstance(layer, nn.LSTM) else layer.in_features


def gates(layer: Layer) -> int:
    """Return how many rows a unit has in each weight, `width` rows apart."""
    return 4 if isinstance(layer, nn.LSTM) else 1


def gradient_sites(path: str, layer: Layer) -> tuple[str, ...]:
    """Return the layer paths under which the gradient at its units comes by; the first has each row just once.

    An LSTM's gates add up what its two products give, so both products get the same gradient: the one of the inputs
    for all steps at once, the one of the state step by step.
    """
    return (f"{path}.l0.input", f"{path}.l0.state") if isinstance(layer, nn.LSTM) else (path,)


def rows(layer: Layer) -> dict[str, nn.Parameter]:
    """Return the parameters whose rows belong to units, by attribute."""
    return dict(layer.named_parameters(recurse=False))


def living_units(layer: Layer) -> Tensor:
    """Return, for each unit, whether any of its rows of weights and biases holds anything but 0."""
    living = torch.zeros(width(layer), dtype=torch.bool, device=next(layer.parameters()).device)
    for parameter in rows(layer).values():
        living |= (parameter.detach() != 0).reshape(gates(layer), width(layer), -1).any(-1).any(0)
    return living


def clear(layer: Layer, dead: Tensor) -> None:
    """Set all rows of the dead units (bool, one a unit) to 0, in place."""
    with torch.no_grad():
        for parameter in rows(layer).values():
            parameter[dead.to(parameter.device).repeat(gates(layer))] = 0.0


def keep_units(layer: Layer, living: Tensor) -> None:
    """Cut the layer, in place, to its living units."""
    for name, parameter in rows(layer).items():
        left = parameter.detach()[living.repeat(gates(layer))]
        setattr(layer, name, nn.Parameter((left[:, living] if name == "weight_hh_l0" else left).clone()))
    if isinstance(layer, nn.LSTM):
        layer.hidden_size = int(living.sum())
    else:
        layer.out_features = int(living.sum())


def keep_inputs(layer: Layer, living: Tensor) -> None:
    """Cut the layer, in place, to the columns that read living units."""
    name = "weight_ih_l0" if isinstance(layer, nn.LSTM) else "weight"
    setattr(layer, name, nn.Parameter(getattr(layer, name).detach()[:, living].clone()))
    if isinstance(layer, nn.LSTM):
        layer.input_size = int(living.sum())
    else:
        layer.in_features = int(living.sum())
