"""Plain values to HTML text. Everything that is not written in this package is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from hwsim.report import words
from hwsim.report.drawing import Key
from hwsim.section import Cell, Column, Table

_SHORT = 18  # characters
_GOOD = ("confirmed", "passed")
_BAD = ("not confirmed", "failed")


def paragraphs(text: str) -> str:
    """Text with empty lines between its paragraphs, as HTML paragraphs."""
    parts = [part.strip() for part in text.split("\n\n")]
    return "".join(f"<p>{escape(part)}</p>" for part in parts if part)


def verdict(text: str) -> str:
    """A verdict as a mark: its words carry the meaning, its color only repeats it."""
    known = text.lower().lstrip("0123456789 ")  # "5 confirmed" counts verdicts
    kind = "good" if known.startswith(_GOOD) else "bad" if known.startswith(_BAD) else "open"
    sign = {"good": "✓", "bad": "✗", "open": "○"}[kind]
    return f'<span class="verdict {kind}"><span aria-hidden="true">{sign}</span> {escape(text)}</span>'


def cell(value: Cell, column: Column) -> str:
    """One table entry as its column wants it written."""
    if value is None:
        return words.UNKNOWN
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return verdict(value) if column.kind == "verdict" else escape(value)
    if column.kind == "percent":
        return words.number(value * 100, 2 if column.digits is None else column.digits)
    if column.kind == "ratio":
        return words.ratio(value) if column.digits is None else f"{words.number(value, column.digits)}×"
    return words.number(value, column.digits)


def table(content: Table, *, caption: bool = True, emphasize: Iterable[int] = ()) -> str:
    """A table that scrolls sideways on a narrow screen; rows of `emphasize` are set in bold."""
    strong = set(emphasize)
    looks = [_look(column, [row[place] for row in content.rows]) for place, column in enumerate(content.columns)]
    heads = "".join(
        f'<th scope="col"{look}>{escape(column.name)}{_unit(column)}</th>'
        for column, look in zip(content.columns, looks, strict=True)
    )
    rows = []
    for index, row in enumerate(content.rows):
        cells = [
            f'<th scope="row"{look}>{cell(value, column)}</th>'
            if place == 0
            else f"<td{look}>{cell(value, column)}</td>"
            for place, (value, column, look) in enumerate(zip(row, content.columns, looks, strict=True))
        ]
        rows.append(f"<tr{' class=strong' if index in strong else ''}>{''.join(cells)}</tr>")
    title = f"<caption>{escape(content.title)}</caption>" if caption and content.title else ""
    foot = "".join(f'<p class="note">{escape(text)}</p>' for text in (content.note,) if text)
    foot += f'<p class="note">Source: {escape(content.source)}</p>' if content.source else ""
    body = f"<table>{title}<thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    name = escape(content.title or "table")
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{name}">{body}</div>{foot}'


def legend(keys: Iterable[Key]) -> str:
    """The legend of a figure; its entries are buttons that hide and show their series."""
    items = [
        f'<button type="button" class="key" data-series="{escape(key.name)}" aria-pressed="true">'
        f"{_swatch(key)}<span>{escape(key.name)}</span></button>"
        for key in keys
    ]
    return f'<div class="legend">{"".join(items)}</div>' if len(items) > 1 else ""


_SHAPES = {
    "circle": '<circle cx="9" cy="7" r="4.5"/>',
    "square": '<rect x="5" y="3" width="8" height="8"/>',
    "diamond": '<path d="M9 1.5 14.5 7 9 12.5 3.5 7Z"/>',
    "triangle-up": '<path d="M9 2 14 11.5H4Z"/>',
    "triangle-down": '<path d="M9 12 14 2.5H4Z"/>',
    "cross": '<path d="M7.4 2h3.2v3.4H14v3.2h-3.4V12H7.4V8.6H4V5.4h3.4Z"/>',
}
_DASH_ARRAYS = {"dash": "5 3", "dot": "1.5 2.5", "dashdot": "6 2 1.5 2", "longdash": "8 3"}


def _swatch(key: Key) -> str:
    if key.kind == "bar":
        drawing = f'<rect x="3" y="1" width="12" height="12" rx="2" fill="{key.color}"/>'
    elif key.kind == "point":
        drawing = f'<g fill="{key.color}">{_SHAPES[key.detail]}</g>'
    else:
        dash = _DASH_ARRAYS.get(key.detail)
        pattern = f' stroke-dasharray="{dash}"' if dash else ""
        drawing = f'<line x1="0" y1="7" x2="18" y2="7" stroke="{key.color}" stroke-width="2.4"{pattern}/>'
    return f'<svg viewBox="0 0 18 14" width="18" height="14" aria-hidden="true">{drawing}</svg>'


def _look(column: Column, values: Sequence[Cell]) -> str:
    """Numbers stand on the right; a column of short texts is not broken into lines."""
    if column.kind in ("number", "percent", "ratio"):
        return ' class="num"'
    return ' class="short"' if all(len(str(value)) <= _SHORT for value in values) else ""


def _unit(column: Column) -> str:
    unit = words.unit(column.unit) or ("%" if column.kind == "percent" else "")
    return f' <span class="unit">{escape(unit)}</span>' if unit else ""
