"""A quantity as a range (low, nominal, high), and a price: such a range with its source."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, model_validator

from hwsim.spec import Spec, field_problem


@dataclass(frozen=True, slots=True)
class Range:
    """A quantity between `low` and `high`, most likely `nominal`."""

    low: float
    nominal: float
    high: float

    def __add__(self, other: Range) -> Range:
        return Range(self.low + other.low, self.nominal + other.nominal, self.high + other.high)

    def __radd__(self, other: int | Range) -> Range:
        return self if other == 0 else other + self

    def __mul__(self, factor: float) -> Range:
        return Range(self.low * factor, self.nominal * factor, self.high * factor)

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> Range:
        return self * (1.0 / divisor)


FREE = Range(0.0, 0.0, 0.0)

LowNominalHigh = tuple[Annotated[float, Field(ge=0)], Annotated[float, Field(ge=0)], Annotated[float, Field(ge=0)]]


class Price(Spec):
    """A price [low, nominal, high] and where it comes from."""

    value: LowNominalHigh
    source: Annotated[str, Field(min_length=4)]

    @model_validator(mode="after")
    def _in_order(self) -> Price:
        low, nominal, high = self.value
        if not low <= nominal <= high:
            raise field_problem("value", f"got {list(self.value)}, expected [low, nominal, high] in ascending order")
        return self

    @property
    def range(self) -> Range:
        """The price as a `Range`."""
        return Range(*self.value)


def total(prices: Iterable[Range]) -> Range:
    """Sum of ranges (all low, all nominal, all high)."""
    result = FREE
    for price in prices:
        result = result + price
    return result
