"""Fit a few numbers of a machine's description inside ranges that are believable for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
from pydantic import BaseModel

from hwsim.errors import SpecError
from hwsim.hardware.accelerator import Accelerator
from hwsim.spec_errors import near

POINTS = 5  # tried at a time for one number
# How far around the best value so far a round looks, in shares of the range. The second descent starts where the
# first one ended, with all other numbers in place.
REACHES = (1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 4, 1 / 8, 1 / 16, 1 / 32)

Block = TypeVar("Block", bound=BaseModel)
Values = dict[str, float]


def with_setting(machine: Accelerator, path: str, value: float) -> Accelerator:
    """The machine with one number changed; entries of a list go by their name: ``memories.l2.bytes_per_cycle``.

    Raises:
        SpecError: the machine has no such number.
    """
    return _replace(machine, path.split("."), value, path)


def setting(machine: Accelerator, path: str) -> float:
    """The number at `path`.

    Raises:
        SpecError: the machine has no such number.
    """
    place: object = machine
    for part in path.split("."):
        place = _step(place, part, path)
    if not isinstance(place, int | float):
        raise SpecError(f"setting {path!r}: the machine states no number there")
    return float(place)


def _replace(block: Block, parts: list[str], value: float, path: str) -> Block:
    head, *rest = parts
    inside = _step(block, head, path)
    if not rest:
        return block.model_copy(update={head: value})
    if isinstance(inside, tuple):
        chosen = _step(inside, rest[0], path)
        changed = tuple(_replace(item, rest[1:], value, path) if item is chosen else item for item in inside)
        return block.model_copy(update={head: changed})
    if not isinstance(inside, BaseModel):
        raise SpecError(f"setting {path!r}: {head} has no parts")
    return block.model_copy(update={head: _replace(inside, rest, value, path)})


def _step(place: object, part: str, path: str) -> Any:
    if isinstance(place, tuple):
        found = [item for item in place if getattr(item, "name", None) == part]
        if found:
            return found[0]
        names = [str(getattr(item, "name", "")) for item in place]
    elif isinstance(place, BaseModel):
        if part in type(place).model_fields:
            return getattr(place, part)
        names = list(type(place).model_fields)
    else:
        names = []
    raise SpecError(f"setting {path!r}: got {part!r}, expected one of {', '.join(names)}{near(part, names)}")


def search(
    loss: Callable[[Values], float], start: Mapping[str, float], ranges: Mapping[str, tuple[float, float]]
) -> Values:
    """Minimize `loss` one number at a time over ever finer grids; deterministic, and never outside the ranges.

    Coordinate search finds these minima more reliably than a simplex: the loss has steps, because tiles are whole.
    """
    best = {name: min(max(start[name], low), high) for name, (low, high) in ranges.items()}
    least = loss(best)
    for share in REACHES:
        for name, (low, high) in ranges.items():
            reach = (high - low) * share
            for value in np.linspace(max(low, best[name] - reach), min(high, best[name] + reach), POINTS):
                tried = {**best, name: float(value)}
                found = loss(tried)
                if found < least:
                    least, best = found, tried
    return best
