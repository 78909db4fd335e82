"""Heat maps as tables: every cell shows its number, its color only repeats it, and narrow screens scroll sideways."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from hwsim.report import words

_HUE = "196,78,0"  # of the palette's second hue; black on it stays readable up to the deepest shade
_DEEPEST = 0.62


@dataclass(frozen=True)
class HeatMap:
    """Numbers by row and column; `shade` says how deep a number is colored, 0 to 1."""

    title: str
    corner: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[float | None]]]
    write: Callable[[float], str]
    shade: Callable[[float], float]
    note: str = ""


@dataclass(frozen=True)
class Histogram:
    """One row of a `histograms` table: the share of the values in each binade, and which binades the format holds."""

    name: str
    lowest: int
    shares: Sequence[float]
    held: tuple[int, int] | None
    """First and last binade that neither underflow nor saturate; None for formats with a scale of their own."""


def heat_map(content: HeatMap) -> str:
    """Draw a heat map; a dash stands where nothing was recorded."""
    heads = "".join(f'<th scope="col" class="num">{escape(column)}</th>' for column in content.columns)
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th>{"".join(_cell(value, content) for value in values)}</tr>'
        for name, values in content.rows
    )
    corner = f'<th scope="col">{escape(content.corner)}</th>'
    return _framed(content.title, f"<thead><tr>{corner}{heads}</tr></thead><tbody>{rows}</tbody>", content.note)


def histograms(title: str, rows: Sequence[Histogram], note: str) -> str:
    """Draw one row of colored binades a place; those that a format cannot hold are framed."""
    low = min(row.lowest for row in rows)
    high = max(row.lowest + len(row.shares) for row in rows)
    heads = "".join(
        f'<th scope="col">{f"2<sup>{e}</sup>".replace("-", "−") if e % 4 == 0 else ""}</th>' for e in range(low, high)
    )
    body = ""
    for row in rows:
        cells = "".join(_binade(row, e) for e in range(low, high))
        body += f'<tr><th scope="row">{escape(row.name)}</th>{cells}</tr>'
    table = f'<thead><tr><th scope="col">place</th>{heads}</tr></thead><tbody>{body}</tbody>'
    return _framed(title, table, note, "heat binades")


def _cell(value: float | None, content: HeatMap) -> str:
    if value is None:
        return f'<td class="num">{words.UNKNOWN}</td>'
    return f'<td class="num"{_background(content.shade(value))}>{escape(content.write(value))}</td>'


def _binade(row: Histogram, exponent: int) -> str:
    place = exponent - row.lowest
    share = row.shares[place] if 0 <= place < len(row.shares) else 0.0
    out = row.held is not None and not row.held[0] <= exponent <= row.held[1]
    look = ' class="out"' if out else ""
    hint = f' title="{escape(row.name)}: {words.percent(share, 2)} in 2^{exponent}"' if share else ""
    return f"<td{look}{_background(share**0.5)}{hint}></td>"


def _background(depth: float) -> str:
    depth = min(1.0, max(0.0, depth)) * _DEEPEST
    return f' style="background:rgba({_HUE},{depth:.2f})"' if depth >= 0.005 else ""


def _framed(title: str, table: str, note: str, kind: str = "heat") -> str:
    foot = f'<p class="note">{escape(note)}</p>' if note else ""
    region = f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(title)}">'
    return f'<h3>{escape(title)}</h3>{region}<table class="{kind}">{table}</table></div>{foot}'
