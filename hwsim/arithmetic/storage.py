"""How one tensor is stored: a format, and what rounding, overflow and NaN do on the way in."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import cast as typing_cast

from hwsim.arithmetic.named import parse_format
from hwsim.arithmetic.number import BlockScaled, FixedPoint, NumberFormat
from hwsim.arithmetic.rounding import Overflow, Rounding, RoundingMode
from hwsim.errors import SpecError


class NanRule(StrEnum):
    """What a NaN does on its way into a format that has none."""

    ERROR = "error"
    ZERO = "zero"


@dataclass(frozen=True, slots=True)
class Cast:
    """A storage policy. Every field accepts its text form: ``Cast("float8_e4m3fn", "stochastic8", "saturate")``.

    The text form of a whole cast is the format followed by whatever differs from the defaults, in any order:
    ``"float8_e4m3fn stochastic8 saturate"``, ``"int8 nan_zero"``.

    Raises:
        SpecError: an unknown name, or a combination that means nothing (wrap-around of a float format).
    """

    format: NumberFormat
    rounding: Rounding = Rounding()  # noqa: RUF009 (frozen)
    overflow: Overflow = Overflow.NATIVE
    nan: NanRule = NanRule.ERROR

    def __init__(
        self,
        format: str | NumberFormat,
        rounding: str | Rounding = "nearest_even",
        overflow: str | Overflow = "native",
        nan: str | NanRule = "error",
    ) -> None:
        object.__setattr__(self, "format", parse_format(format))
        object.__setattr__(self, "rounding", Rounding.parse(rounding))
        object.__setattr__(self, "overflow", Overflow.parse(overflow))
        try:
            object.__setattr__(self, "nan", NanRule(nan))
        except ValueError:
            raise SpecError(f"nan: got {nan!r}, expected error or zero") from None
        if self.overflow is Overflow.WRAP and not isinstance(self.format, FixedPoint):
            raise SpecError(f"overflow: got wrap for {self.format}, expected a fixed-point or integer format")
        if isinstance(self.format, BlockScaled) and self.overflow is Overflow.ERROR:
            expected = "native or saturate (block elements saturate)"
            raise SpecError(f"overflow: got error for {self.format}, expected {expected}")

    def __str__(self) -> str:
        parts = [str(self.format)]
        if self.rounding.mode is not RoundingMode.NEAREST_EVEN:
            parts.append(str(self.rounding))
        if self.overflow is not Overflow.NATIVE:
            parts.append(self.overflow.value)
        if self.nan is NanRule.ZERO:
            parts.append("nan_zero")
        return " ".join(parts)

    @classmethod
    def parse(cls, text: str | Cast | NumberFormat) -> Cast:
        """Read the text form; a cast passes through and a bare format takes the default rules.

        >>> str(Cast.parse("float8_e4m3fn saturate stochastic8"))
        'float8_e4m3fn stochastic8 saturate'

        Raises:
            SpecError: a word that is no format, rounding or overflow rule.
        """
        if isinstance(text, Cast):
            return text
        if isinstance(text, NumberFormat):
            return cls(text)
        if not isinstance(text, str) or not text.strip():
            raise SpecError(f"cast: got {text!r}, expected a format, then rounding and overflow rules if wanted")
        return _parse_text(text)

    def with_format(self, format: str | NumberFormat) -> Cast:
        """Return the same rules with another format."""
        return Cast(format, self.rounding, self.overflow, self.nan)


@lru_cache(maxsize=4096)
def _parse_text(text: str) -> Cast:
    name, words = _split_format(text.strip())
    given: dict[str, str] = {}
    for word in words:
        if word in list(Overflow):
            key, value = "overflow", word
        elif word in ("nan_zero", "nan_error"):
            key, value = "nan", word.removeprefix("nan_")
        else:
            key, value = "rounding", word
            Rounding.parse(word)
        if key in given:
            raise SpecError(f"cast {text!r}: {key} is given twice")
        given[key] = value
    return Cast(name, **given)


def _split_format(text: str) -> tuple[str, list[str]]:
    """Split off the format, which may hold spaces inside parentheses."""
    depth = 0
    for position, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if letter == " " and depth == 0:
            return text[:position], text[position:].split()
    return text, []


def as_cast(value: str | Cast | NumberFormat) -> Cast:
    """Return `value` as a `Cast` (the function form of `Cast.parse`)."""
    return typing_cast(Cast, Cast.parse(value))
