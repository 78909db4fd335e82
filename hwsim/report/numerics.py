"""What a profiled run recorded, as advice and heat maps by place and step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from html import escape
from math import log2
from typing import TYPE_CHECKING, Any

from hwsim.advice import SNR_DB, Advice, advise, held_binades, place_name
from hwsim.report import words
from hwsim.report.heat_map import HeatMap, Histogram, heat_map, histograms
from hwsim.results import Results

if TYPE_CHECKING:
    from hwsim.training.profile import Profile

_MOST_ADVICE = 12
_MOST_ROWS = 40  # of a heat map: those that matter most
_LEAST_SHARE = 0.001  # a place whose worst step stays under this share is not shown
_CLEAN_DB = 40.0  # signal to noise that is not colored at all

Value = Callable[[Any], float | None]


def profiled(results: Results) -> list[tuple[str, int, Profile]]:
    """Configuration, seed and profile of the first profiled trial of each configuration."""
    found: dict[str, tuple[str, int, Profile]] = {}
    for trial in results.trials:
        if trial.training.profile is not None:
            found.setdefault(trial.configuration, (trial.configuration, trial.seed, trial.training.profile))
    return list(found.values())


def numbers(profile: Profile, seed: int) -> str:
    """The part of the page about one profiled trial."""
    steps = ", ".join(f"{step:,}" for step in profile.steps)
    intro = f"Seed {seed}, steps {steps}. Counts of sums are from every 16th row."
    if profile.uncounted:
        intro += f" Sums that no kernel can count: {'; '.join(f'{k} ({v})' for k, v in profile.uncounted.items())}."
    maps = [*_gradient_maps(profile), *_cast_maps(profile), *_sum_maps(profile), *_update_maps(profile)]
    drawn = "".join(heat_map(each) for each in maps if each.rows)
    return f'{_advice(profile)}<p class="note">{escape(intro)}</p>{drawn}{_exponents(profile)}'


def _advice(profile: Profile) -> str:
    said = advise(profile)
    if not said:
        return "<p>No rule of the advice fires: nothing here asks for a change.</p>"
    items = [_item(one) for one in said]
    more = "".join(items[_MOST_ADVICE:])
    rest = f"{len(said) - _MOST_ADVICE} more"
    content = f'<h3>Advice</h3><ol class="advice">{"".join(items[:_MOST_ADVICE])}</ol>'
    return content + (f'<details><summary>{rest}</summary><ol class="advice">{more}</ol></details>' if more else "")


def _item(one: Advice) -> str:
    return f'<li><span class="rule">{escape(one.rule)}</span> {escape(one.text)}</li>'


def _gradient_maps(profile: Profile) -> Iterable[HeatMap]:
    layers = [(row.layer or "whole network", row) for row in profile.gradients]
    yield _by_step(
        profile, layers, lambda row: row.cosine, "Gradient beside float32's: cosine", "layer",
        lambda value: f"{value:.3f}", lambda value: (1 - value) / 0.5,
        note="Of each layer's weight gradients, same weights and batch. 1: the same direction.",
    )  # fmt: skip
    yield _by_step(
        profile, layers, lambda row: row.norm_ratio, "Gradient beside float32's: length", "layer",
        lambda value: f"{value:.3f}", lambda value: abs(log2(value)) / 2 if value > 0 else 1.0,
        note="Norm over that of float32. 1: the same length.",
    )  # fmt: skip


def _cast_maps(profile: Profile) -> Iterable[HeatMap]:
    rows = [(place_name(row.layer, row.gemm, row.role), row) for row in profile.tensors]

    def share(field: str) -> Value:
        return lambda row: (getattr(row, field) or 0) / row.nonzero if row.nonzero else None

    for title, field in (("Underflow of casts", "underflowed"), ("Saturation of casts", "saturated")):
        what = "became 0" if field == "underflowed" else "lay beyond the format's range"
        yield _shares(profile, rows, share(field), title, f"Share of the non-zero elements that {what}, in %.")
    snr = _by_step(
        profile, rows, lambda row: row.snr_db, "Signal to noise of casts (dB)", "place",
        lambda value: f"{value:.0f}", lambda value: (_CLEAN_DB - value) / (_CLEAN_DB - SNR_DB / 2),
        worst=lambda values: -min(values), least=-_CLEAN_DB,
        note=f"Power of the tensor over power of the cast's error; places above {_CLEAN_DB:.0f} dB are left out.",
    )  # fmt: skip
    yield snr


def _sum_maps(profile: Profile) -> Iterable[HeatMap]:
    rows = [(f"{place_name(row.layer, row.gemm, '')} ({row.mac})", row) for row in profile.sums]
    for title, field, what in (
        ("Swamped adds", "swamped", "left the accumulator as it was"),
        ("Overflow of sums", "overflowed", "took the sum to the end of its range or beyond"),
    ):

        def value(row: Any, field: str = field) -> float | None:
            return getattr(row, field) / row.terms if row.terms else None

        yield _shares(profile, rows, value, title, f"Share of the products, not 0, that {what}, in %.")


def _update_maps(profile: Profile) -> Iterable[HeatMap]:
    rows = [(f"{row.parameter} ({row.cast})", row) for row in profile.updates]
    yield _shares(
        profile, rows, lambda row: row.lost / row.updates if row.updates else None, "Lost updates",
        "Share of the updates that left the weight as it was, in %; with compensation they are kept for later.",
    )  # fmt: skip


def _shares(
    profile: Profile, rows: Sequence[tuple[str, Any]], value: Value, title: str, note: str
) -> HeatMap:  # fmt: skip
    return _by_step(
        profile, rows, value, title, "place", lambda share: words.number(100 * share, 1), lambda share: share**0.5,
        worst=max, least=_LEAST_SHARE, note=note,
    )  # fmt: skip


def _by_step(
    profile: Profile, rows: Sequence[tuple[str, Any]], value: Value, title: str, corner: str,
    write: Callable[[float], str], shade: Callable[[float], float],
    worst: Callable[[list[float]], float] | None = None, least: float = 0.0, note: str = "",
) -> HeatMap:  # fmt: skip
    """Lay rows out by name and step; with `worst`, only the places whose worst step reaches `least`, the worst 40."""
    table: dict[str, dict[int, float | None]] = {}
    for name, row in rows:
        table.setdefault(name, {})[row.step] = value(row)
    names = list(table)
    if worst is not None:
        known = {name: [v for v in found.values() if v is not None] for name, found in table.items()}
        rank = {name: worst(values) for name, values in known.items() if values}
        kept = sorted((name for name in rank if rank[name] >= least), key=lambda name: -rank[name])[:_MOST_ROWS]
        left = len(names) - len(kept)
        note += f" {words.plural(left, 'other place')} left out, below what matters." if left else ""
        names = [name for name in names if name in set(kept)]
    laid = [(name, [table[name].get(step) for step in profile.steps]) for name in names]
    return HeatMap(title, corner, [f"step {step:,}" for step in profile.steps], laid, write, shade, note.strip())


def _exponents(profile: Profile) -> str:
    """Histograms of what was cast, over all profiled steps."""
    places: dict[str, tuple[str, dict[int, int]]] = {}
    for row in profile.tensors:
        _, found = places.setdefault(place_name(row.layer, row.gemm, row.role), (row.cast, {}))
        for place, count in enumerate(row.exponents):
            found[row.lowest_exponent + place] = found.get(row.lowest_exponent + place, 0) + count
    rows = []
    for name, (text, found) in places.items():
        if found:
            low, high, total = min(found), max(found), sum(found.values())
            shares = [found.get(e, 0) / total for e in range(low, high + 1)]
            rows.append(Histogram(f"{name} ({text})", low, shares, held_binades(text)))
    if not rows:
        return ""
    note = (
        "Share of the non-zero values in each binade, darker for more, over all profiled steps. Framed: binades that "
        "underflow or saturate in the place's format."
    )
    left = max(0, len(rows) - _MOST_ROWS)
    note += f" The first {_MOST_ROWS} of {len(rows)} places; all are in results.json." if left else ""
    drawn = histograms("Exponents of what was cast", rows[:_MOST_ROWS], note)
    return f"<details><summary>Exponents</summary>{drawn}</details>"
