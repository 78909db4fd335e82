"""Blocks of a machine file: numbers that do not load without the source that they come from."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from hwsim.spec import Spec

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, le=1)]
Name = Annotated[str, Field(min_length=1)]


class Sourced(Spec):
    """A block of numbers and where they come from."""

    source: Annotated[str, Field(min_length=4)]
