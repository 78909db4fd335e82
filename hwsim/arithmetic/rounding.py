"""Rounding rules and overflow rules: names and parameters; `hwsim.kernels.reference.rounding` carries them out."""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches
from enum import StrEnum

from hwsim.errors import SpecError

DEFAULT_RANDOM_BITS = 16
MAX_RANDOM_BITS = 32


class RoundingMode(StrEnum):
    """Which neighbour an inexact value takes. "Even" and "odd" speak of the last bit of the code."""

    NEAREST_EVEN = "nearest_even"
    NEAREST_AWAY = "nearest_away"
    TOWARD_ZERO = "toward_zero"
    UP = "up"
    DOWN = "down"
    TO_ODD = "to_odd"
    STOCHASTIC = "stochastic"


@dataclass(frozen=True, slots=True)
class Rounding:
    """A rounding rule; `random_bits` counts the random bits of stochastic rounding and is 0 for every other rule.

    Stochastic rounding with n bits adds an n-bit random word to the first n bits of the exact fraction and truncates:
    with f the fraction between the two neighbours, it rounds away from zero with probability floor(f * 2**n) / 2**n.
    """

    mode: RoundingMode = RoundingMode.NEAREST_EVEN
    random_bits: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "mode", _mode(self.mode))
        if self.mode is not RoundingMode.STOCHASTIC:
            if self.random_bits:
                raise SpecError(f"rounding {self.mode}: got {self.random_bits} random bits, expected none")
        elif self.random_bits == 0:
            object.__setattr__(self, "random_bits", DEFAULT_RANDOM_BITS)
        elif not 1 <= self.random_bits <= MAX_RANDOM_BITS:
            raise SpecError(
                f"rounding stochastic: got {self.random_bits} random bits, expected 1 to {MAX_RANDOM_BITS}"
            )

    def __str__(self) -> str:
        shown = self.random_bits not in (0, DEFAULT_RANDOM_BITS)
        return f"{self.mode.value}{self.random_bits}" if shown else self.mode.value

    @property
    def stochastic(self) -> bool:
        """Whether results depend on random bits."""
        return self.mode is RoundingMode.STOCHASTIC

    @property
    def nearest(self) -> bool:
        """Whether this is one of the two round-to-nearest rules."""
        return self.mode in (RoundingMode.NEAREST_EVEN, RoundingMode.NEAREST_AWAY)

    @classmethod
    def parse(cls, text: str | Rounding) -> Rounding:
        """Read a rule by name: a mode, or "stochastic" followed by its number of random bits.

        >>> str(Rounding.parse("stochastic8"))
        'stochastic8'

        Raises:
            SpecError: the name is not a rounding rule.
        """
        if isinstance(text, Rounding):
            return text
        match = re.fullmatch(r"stochastic(\d{1,3})", text) if isinstance(text, str) else None
        if match:
            if int(match[1]) == 0:
                raise SpecError(f"rounding stochastic: got 0 random bits, expected 1 to {MAX_RANDOM_BITS}")
            return cls(RoundingMode.STOCHASTIC, int(match[1]))
        return cls(_mode(text))


class Overflow(StrEnum):
    """What happens to a rounded value outside the range of the format."""

    NATIVE = "native"  # the format's own rule: infinity, else NaN, else saturate
    SATURATE = "saturate"  # the largest (lowest) finite value, for infinities too; NaN stays NaN
    WRAP = "wrap"  # modulo 2**bits; fixed point only
    ERROR = "error"  # raise

    @classmethod
    def parse(cls, text: str | Overflow) -> Overflow:
        """Read an overflow rule by name.

        Raises:
            SpecError: the name is not an overflow rule.
        """
        try:
            return cls(text)
        except ValueError:
            raise SpecError(f"overflow: got {text!r}, {expected_names([o.value for o in cls], text)}") from None


def expected_names(names: list[str], text: object) -> str:
    """Return "expected one of a, b, c", with "did you mean" where a name is near what came."""
    near = get_close_matches(str(text), names, n=1)
    hint = f". Did you mean {near[0]}?" if near else ""
    return f"expected one of {', '.join(names)}{hint}"


def _mode(text: object) -> RoundingMode:
    if text == "nearest":
        raise SpecError("rounding: got 'nearest', expected nearest_even or nearest_away (ties must be named)")
    try:
        return RoundingMode(text)  # type: ignore[arg-type]
    except ValueError:
        names = [m.value for m in RoundingMode]
        raise SpecError(f"rounding: got {text!r}, {expected_names(names, text)} (or stochasticN)") from None
