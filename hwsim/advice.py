"""What to change in a precision plan, and why, from what a profiled run recorded.

Each rule looks at one place (a layer, a pass and a role) over all profiled steps, fires above a stated threshold, and
names numbers. What a scale or another format would do is computed from the recorded exponents, not guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import acos, ceil, degrees, floor, log2
from statistics import median

from hwsim.arithmetic.mac import Chunked, Sequential, parse_mac
from hwsim.arithmetic.named import named_formats, parse_format
from hwsim.arithmetic.number import BlockScaled, FixedPoint, FloatingPoint, NumberFormat
from hwsim.arithmetic.rounding import RoundingMode
from hwsim.arithmetic.storage import Cast
from hwsim.arithmetic.variance_retention import needed_bits
from hwsim.training.profile import Profile, SumRow, TensorRow

UNDERFLOW = 0.10
"""Share of the non-zero elements that may become 0."""
UNDERFLOW_LEFT = 0.01
"""Share that may still become 0 with what is advised."""
SATURATION = 0.001
"""Share of the elements that may lie beyond the format's range."""
SNR_DB = 10.0
"""Signal to noise, in dB, under which a cast is noisy where neither end of the range explains it."""
SNR_WANTED_DB = 20.0
SWAMPED = 0.25
"""Share of the terms that may leave an accumulator unchanged, where it is narrower than the variance analysis asks."""
OVERFLOW = 1e-4
"""Share of the terms that may take a sum to the end of its accumulator's range."""
LOST_UPDATES = 0.5
"""Share of a parameter's updates that may leave it as it was."""
COSINE = 0.9
"""Least cosine (median over steps) between a layer's gradient and that of float32."""
NORM_RATIO = (0.8, 1.25)
"""Norm of a layer's gradient over that of float32 (median over steps)."""

PRODUCT_BITS = 7  # assumed of products, where the accumulator's need hardly depends on them
MOST_BINADES = 60  # how far a scale may move a tensor
CHUNK = 64

Exponents = dict[int, int]


@dataclass(frozen=True)
class Advice:
    """One thing to change."""

    rule: str
    place: str
    text: str
    weight: float
    """How bad it is, to sort by: a share, or 1 and more for what stops training."""


def advise(profile: Profile) -> tuple[Advice, ...]:
    """Return what the rules say about a profiled run, the worst first.

    >>> advise(Profile())
    ()
    """
    found = [*_casts(profile), *_sums(profile), *_updates(profile), *_gradients(profile)]
    return tuple(sorted(found, key=lambda advice: -advice.weight))


# ---- casts


def _casts(profile: Profile) -> Iterable[Advice]:
    for place, rows in _by(profile.tensors, lambda row: (row.layer, row.gemm, row.role)).items():
        cast, name = Cast.parse(rows[0].cast), place_name(*place)
        broken = sum(row.not_finite for row in rows)
        if broken:
            share = broken / sum(row.count for row in rows)
            text = f"{_percent(share)} of {_what(rows[0])} are NaN or infinite; {_against_infinity(cast)}"
            yield Advice("not finite", name, f"{name}: {text}.", 2.0)
            continue
        nonzero = sum(row.nonzero for row in rows)
        if not nonzero:
            continue
        exponents = _exponents(rows)
        beyond = sum(row.saturated or 0 for row in rows) / nonzero
        lost = sum(row.underflowed for row in rows) / nonzero
        if beyond > SATURATION:
            text = f"{_percent(beyond)} of {_what(rows[0])} lie beyond the format's range{_worst(rows, 'saturated')}; "
            yield Advice("saturation", name, f"{name}: {text}{_remedy(exponents, cast, -1, rows[0].role)}.", 1 + beyond)
        elif lost > UNDERFLOW and cast.rounding.mode is not RoundingMode.STOCHASTIC:  # there 0 is right on average
            text = f"{_percent(lost)} underflow of {_what(rows[0])}{_worst(rows, 'underflowed')}; "
            yield Advice("underflow", name, f"{name}: {text}{_remedy(exponents, cast, 1, rows[0].role)}.", lost)
        else:
            known = [row.snr_db for row in rows if row.snr_db is not None]
            if known and median(known) < SNR_DB:
                level = median(known)
                bits = ceil((SNR_WANTED_DB - level) / 6.02)
                text = f"{_what(rows[0])} has {level:.0f} dB of signal to noise; {bits} more bits give about"
                text += f" {level + 6.02 * bits:.0f} dB"
                yield Advice("noise", name, f"{name}: {text}.", 1 - level / 40)


def _remedy(exponents: Exponents, cast: Cast, direction: int, role: str) -> str:
    """Say which power of two, and which other format, would mend underflow (direction 1) or saturation (-1)."""
    ways = []
    shift = fitting_shift(exponents, cast, direction)
    if shift is not None:
        where = " (loss_scale, or scaling of the gradient)" if "gradient" in role else ""
        below, _ = losses(exponents, cast, shift)
        ways.append(f"scale by 2^{shift}{where}: {_percent(below)} underflow would be left")
    other = fitting_format(exponents, cast)
    if other is not None:
        ways.append(f"take {other}")
    if ways:
        return ", or ".join(ways)
    span = max(exponents) - min(exponents) + 1
    return f"its values span {span} binades, more than it holds: take a format with a scale a block, or a wider one"


def fitting_shift(exponents: Exponents, cast: Cast, direction: int) -> int | None:
    """Return the smallest shift (power of two) in this direction that leaves little underflow and saturation."""
    for distance in range(1, MOST_BINADES + 1):
        below, beyond = losses(exponents, cast, direction * distance)
        if below <= UNDERFLOW_LEFT and beyond <= SATURATION:
            return direction * distance
    return None


def fitting_format(exponents: Exponents, cast: Cast) -> str | None:
    """Return the nearest format that holds these values as they are: as many bits if there is one, else wider."""
    number = cast.format
    candidates: list[NumberFormat] = []
    if isinstance(number, FloatingPoint):
        floats = [
            f
            for f in named_formats().values()
            if isinstance(f, FloatingPoint)
            if f.bits in (number.bits, 16, 32) and f.exponent_bits > number.exponent_bits
        ]
        candidates = [*sorted(floats, key=lambda f: (f.bits, f.exponent_bits, "uz" in f.name))]
    elif isinstance(number, FixedPoint):
        moves = [(0, point) for point in (-1, 1, -2, 2, -3, 3, -4, 4)]  # (more bits, point moved to the left)
        moves += [(more, point) for more in range(1, 17) for point in range(-4, more + 5)]
        sign = "" if number.signed else "u"
        candidates = [
            parse_format(f"{sign}fixed{number.bits + more}.{number.fraction_bits + point}")
            for more, point in moves
            if number.fraction_bits + point >= 0
        ]
    for candidate in candidates:
        if candidate != number:
            below, beyond = losses(exponents, cast.with_format(candidate), 0)
            if below <= UNDERFLOW_LEFT and beyond <= SATURATION:
                return str(candidate)
    return None


def losses(exponents: Exponents, cast: Cast, shift: int) -> tuple[float, float]:
    """Return which shares of the values would underflow and saturate, if multiplied by 2^shift and cast.

    A binade [2^e, 2^(e+1)) counts as a whole: as lost below if it rounds to 0, and beyond if its middle is.
    """
    number = cast.format
    assert not isinstance(number, BlockScaled)
    smallest = number.smallest_exponent - (cast.rounding.mode is not RoundingMode.TOWARD_ZERO)
    total = sum(exponents.values())
    below = sum(count for e, count in exponents.items() if e + shift < smallest)
    beyond = sum(count for e, count in exponents.items() if 1.5 * 2.0 ** (e + shift) > number.largest)
    return below / total, beyond / total


def held_binades(cast_text: str) -> tuple[int, int] | None:
    """Return the first and last binade that a cast neither loses nor saturates; None for block formats."""
    cast = Cast.parse(cast_text)
    if isinstance(cast.format, BlockScaled):
        return None
    smallest, top = cast.format.smallest_exponent, floor(log2(cast.format.largest))
    low = next(e for e in (smallest - 1, smallest) if not losses({e: 1}, cast, 0)[0])
    return low, top if not losses({top: 1}, cast, 0)[1] else top - 1


def _against_infinity(cast: Cast) -> str:
    if "saturate" in str(cast):
        return "they come from before this cast: look at the sums of the layers around"
    return f"say overflow: saturate, or scale down, so that {cast.format} does not overflow"


def _what(row: TensorRow) -> str:
    return f"the {row.role.replace('_', ' ')} ({row.cast})"


def _worst(rows: Sequence[TensorRow], field: str) -> str:
    """Say how bad the worst step was, where there are several."""
    shares = [((getattr(row, field) or 0) / row.nonzero, row.step) for row in rows if row.nonzero]
    share, step = max(shares)
    return f" ({_percent(share)} at step {step:,})" if len(shares) > 1 else ""


def _exponents(rows: Iterable[TensorRow]) -> Exponents:
    found: Exponents = {}
    for row in rows:
        for place, count in enumerate(row.exponents):
            found[row.lowest_exponent + place] = found.get(row.lowest_exponent + place, 0) + count
    return found


# ---- sums


def _sums(profile: Profile) -> Iterable[Advice]:
    for place, rows in _by(profile.sums, lambda row: (row.layer, row.gemm, row.mac, row.length)).items():
        layer, gemm, mac, length = place
        terms = sum(row.terms for row in rows)
        if not terms:
            continue
        name = place_name(str(layer), str(gemm), "")
        beyond = sum(row.overflowed for row in rows) / terms
        if beyond > OVERFLOW:
            text = f"{_percent(beyond)} of the additions end at the end of the accumulator's range ({mac}); "
            yield Advice("overflow of sums", name, f"{name}: {text}{_more_range(str(mac))}.", 1 + beyond)
        swamped = sum(row.swamped for row in rows) / terms
        if swamped > SWAMPED and not rows[0].stochastic:
            remedy = _more_width(rows[0])
            if remedy:
                text = f"{_percent(swamped)} of the products change nothing in their sums of {length:,} ({mac}); "
                yield Advice("swamped adds", name, f"{name}: {text}{remedy}.", swamped)


def _more_range(mac: str) -> str:
    accumulator = parse_mac(mac).accumulator
    if isinstance(accumulator, FixedPoint):
        return f"take more bits before the point, such as fixed{accumulator.bits + 4}.{accumulator.fraction_bits}"
    return "take more exponent bits, or scale the operands down"


def _more_width(row: SumRow) -> str:
    """Say which width would do; empty where the variance analysis finds this one wide enough, or does not apply."""
    mac = parse_mac(row.mac)
    if not isinstance(mac.order, Sequential | Chunked):
        return ""  # trees, exact and compensated sums lose little by it, and tensor cores have no analysis here
    if isinstance(mac.accumulator, FixedPoint):
        return "they lie under its step: take more fraction bits"
    if not isinstance(mac.accumulator, FloatingPoint):
        return ""
    chunk = mac.order.size if isinstance(mac.order, Chunked) else None
    needed, has = needed_bits(row.length, PRODUCT_BITS, chunk), mac.accumulator.mantissa_bits
    if has >= needed:
        return ""
    ways = [f"take {needed} mantissa bits instead of {has}"]
    in_chunks = needed_bits(row.length, PRODUCT_BITS, CHUNK)
    if chunk is None and row.length > CHUNK and in_chunks < needed:
        ways.append(f"sum in chunks of {CHUNK}, for which {in_chunks} do")
    return ", or ".join(ways)


# ---- updates and gradients


def _updates(profile: Profile) -> Iterable[Advice]:
    for (parameter,), rows in _by(profile.updates, lambda row: (row.parameter,)).items():
        updates, lost = sum(row.updates for row in rows), sum(row.lost for row in rows)
        cast = Cast.parse(rows[0].cast)
        kept = rows[0].compensated or cast.rounding.mode is RoundingMode.STOCHASTIC
        if updates and lost / updates > LOST_UPDATES and not kept:
            text = f"{_percent(lost / updates)} of the updates leave the weight ({cast}) as it was; keep what is lost "
            text += "(casts: compensation, in a finer format), round the weight stochastically, or store more bits"
            yield Advice("lost updates", str(parameter), f"{parameter}: {text}.", lost / updates)


def _gradients(profile: Profile) -> Iterable[Advice]:
    for (layer,), rows in _by(profile.gradients, lambda row: (row.layer,)).items():
        if not layer:
            continue  # the whole network: its layers say it better
        cosines = [row.cosine for row in rows if row.cosine is not None]
        ratios = [row.norm_ratio for row in rows if row.norm_ratio is not None]
        if cosines and median(cosines) < COSINE:
            cosine = median(cosines)
            text = f"its gradient points {degrees(acos(cosine)):.0f}° off that of float32 (cosine {cosine:.2f})"
            yield Advice("gradient", str(layer), f"{layer}: {text}{_noisiest(profile, str(layer))}.", 1 - cosine)
        elif ratios and not NORM_RATIO[0] <= median(ratios) <= NORM_RATIO[1]:
            ratio = median(ratios)
            text = f"its gradient has {ratio:.2f} times the length of that of float32"
            away = min(1.0, abs(log2(ratio))) / 2 if ratio else 1.0
            yield Advice("gradient", str(layer), f"{layer}: {text}{_noisiest(profile, str(layer))}.", away)


def _noisiest(profile: Profile, layer: str) -> str:
    """Say which cast of the layer adds the most noise."""
    known = [row for row in profile.tensors if row.layer == layer and row.snr_db is not None]
    if not known:
        return "; none of its own casts adds noise: look at the layers after it, and at its sums"
    worst = min(known, key=lambda row: row.snr_db or 0.0)
    return (
        f"; of its casts {place_name('', worst.gemm, worst.role)} ({worst.cast}) adds the most noise: "
        f"{worst.snr_db:.0f} dB at step {worst.step:,}"
    )


# ---- words


def place_name(layer: str, gemm: str, role: str) -> str:
    """Return how a place is called: "conv3 grad_input gradient"."""
    parts = [layer, "" if gemm in ("every GEMM", "forward", "backward") else gemm, role]
    return " ".join(part for part in parts if part)


def _percent(share: float) -> str:
    percent = 100 * share
    if percent == 0 or percent >= 9.95:
        return f"{percent:.0f} %"
    return f"{percent:.{max(0, 1 - floor(log2(percent) / log2(10)))}f} %" if percent >= 0.001 else "under 0.001 %"


def _by(rows: Iterable, key: Callable) -> dict[tuple, list]:
    groups: dict[tuple, list] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups
