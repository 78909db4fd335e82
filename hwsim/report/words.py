"""Numbers as people read them: a unit that fits, four significant digits, and a dash where nothing is known."""

from __future__ import annotations

from math import floor, isfinite, log10

from hwsim.records import EnergyRange
from hwsim.summary import Spread

UNKNOWN = "–"
QUICK = "A quick run: the same code on less, to show that everything works. Its numbers answer nothing."
UNBROKEN = "\u00a0"  # a space at which a line does not break

_ENERGY = ((1.0, "pJ"), (1e3, "nJ"), (1e6, "µJ"), (1e9, "mJ"), (1e12, "J"), (1e15, "kJ"))
_TIME = ((1e-3, "ns"), (1.0, "µs"), (1e3, "ms"), (1e6, "s"))
_COUNT = ((1.0, ""), (1e3, "thousand"), (1e6, "million"), (1e9, "billion"), (1e12, "trillion"))


def energy_scale(largest_pj: float) -> tuple[float, str]:
    """Divisor and unit in which the largest of some energies (pJ) reads well."""
    return _scale(_ENERGY, largest_pj)


def time_scale(largest_us: float) -> tuple[float, str]:
    """Divisor and unit in which the largest of some times (microseconds) reads well."""
    return _scale(_TIME, largest_us)


def count_scale(largest: float) -> tuple[float, str]:
    """Divisor and word ("million") for the largest of some counts; "" up to 99,999."""
    return (1.0, "") if largest < 1e5 else _scale(_COUNT, largest)


def unit(text: str) -> str:
    """Write a unit with its sign: "us" is "µs"."""
    return {"us": "µs", "uJ": "µJ", "um": "µm", "x": "×"}.get(text, text)


def number(value: float | None, digits: int | None = None) -> str:
    """Write a number with `digits` after the point, or with four significant digits; thousands are set apart."""
    if value is None or not isfinite(value):
        return UNKNOWN
    if digits is None:
        if value == 0:
            return "0"
        digits = max(0, 3 - floor(log10(abs(value))))
        if digits > 6:
            return f"{value:.3e}"
        if isinstance(value, int) or float(value).is_integer():
            digits = 0
    return f"{value:,.{digits}f}".replace("-", "−")


def percent(share: float | None, digits: int = 2) -> str:
    """Write a share as percent: 0.9741 is "97.41 %"."""
    return UNKNOWN if share is None else f"{number(share * 100, digits)} %"


def ratio(value: float | None) -> str:
    """Write a gain: "2.41x"; three significant digits."""
    if value is None or not isfinite(value):
        return UNKNOWN
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}×"


def gain(value: float | None, better: str) -> str:
    """Write a gain so that its direction is plain: "2.41× fewer", and "1.20× more" for what is no gain."""
    if value is None or not isfinite(value) or value <= 0:
        return UNKNOWN
    return f"{ratio(value)} {better}" if value >= 1 else f"{ratio(1 / value)} more"


def energy_with_unit(value_pj: float | None) -> str:
    """Write an energy given in pJ, in a unit that fits."""
    return _with_unit(_ENERGY, value_pj)


def span(low: str, high: str) -> str:
    """Write a range that stays on one line: "1.2 to 3.4"."""
    return f"{low}{UNBROKEN}to{UNBROKEN}{high}"


def energy_range(value: EnergyRange | None) -> str:
    """Write low and high of an energy in the unit of its high end: "1.2 to 3.4 µJ"."""
    if value is None:
        return UNKNOWN
    divisor, unit = energy_scale(value.high)
    return f"{span(number(value.low / divisor), number(value.high / divisor))} {unit}"


def time_with_unit(value_us: float | None) -> str:
    """Write a time given in microseconds, in a unit that fits."""
    return _with_unit(_TIME, value_us)


def count(value: float | None) -> str:
    """Write a count in full up to 99,999, else as "1.234 million"."""
    if value is None:
        return UNKNOWN
    divisor, word = count_scale(abs(value))
    return f"{number(value / divisor, 0 if divisor == 1.0 else None)} {word}".strip()


def accuracy(spread: Spread | None) -> str:
    """Write an accuracy over seeds: "97.41 ± 0.12 %"; a single seed has no spread and says none."""
    if spread is None:
        return UNKNOWN
    if spread.deviation is None:
        return percent(spread.mean)
    return f"{number(spread.mean * 100, 2)} ± {number(spread.deviation * 100, 2)} %"


def points(share: float | None) -> str:
    """Write a difference of accuracies in percentage points, with its sign."""
    if share is None:
        return UNKNOWN
    text = number(abs(share) * 100, 2)
    sign = "" if float(text.replace(",", "")) == 0 else "+" if share > 0 else "−"
    return f"{sign}{text} points"


def capital(text: str) -> str:
    """Write a word as a title begins: "Accuracy"; "UAS" stays as it is."""
    return text[:1].upper() + text[1:]


def plural(amount: int, noun: str) -> str:
    """Write an amount of something: "1 seed", "5 seeds"."""
    return f"{amount:,} {noun}" if amount == 1 else f"{amount:,} {noun}s"


def _scale(units: tuple[tuple[float, str], ...], largest: float) -> tuple[float, str]:
    fitting = [unit for unit in units if largest >= unit[0]]
    return fitting[-1] if fitting else units[0]


def _with_unit(units: tuple[tuple[float, str], ...], value: float | None) -> str:
    if value is None or not isfinite(value):
        return UNKNOWN
    divisor, unit = _scale(units, abs(value))
    return f"{number(value / divisor)} {unit}"
