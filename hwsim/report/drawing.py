"""A `Figure` (plain data) to what plotly.js draws, to a legend in HTML, and to the table of its numbers.

Legends are HTML beside the plot and not part of it: they wrap on a phone and cover nothing. Texts that come from
users are escaped here, because plotly reads a little HTML in every text.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, log10
from typing import Any

from hwsim.report import words
from hwsim.report.palette import INK, MUTED, Palette
from hwsim.section import Axis, Cell, Column, Figure, Kind, Series, Table

_MOST_ROWS = 200
_LABEL_WIDTH, _NARROW_LABEL_WIDTH = 26, 15  # characters, on a wide and on a narrow screen


@dataclass(frozen=True)
class Key:
    """One entry of a legend."""

    name: str
    color: str
    kind: str  # bar, line or point
    detail: str  # dash of a line, marker of a point


@dataclass(frozen=True)
class Drawing:
    """A figure ready for the page."""

    data: list[dict[str, Any]]
    layout: dict[str, Any]
    height: int
    legend: tuple[Key, ...]
    numbers: Table


def draw(figure: Figure, palette: Palette) -> Drawing:
    """Turn a figure into plotly's traces and layout, its legend and its numbers."""
    data: list[dict[str, Any]] = []
    legend: dict[str, Key] = {}
    if figure.identity:
        data += _identity(figure)
    for place, series in enumerate(figure.series):
        traces, key = _traces(figure, series, place, palette)
        data += traces
        legend.setdefault(series.name, key)
    return Drawing(data, _layout(figure), _height(figure), tuple(legend.values()), numbers(figure))


def numbers(figure: Figure) -> Table:
    """The numbers of a figure as a table, in the figure's units; long ones are cut and say so."""
    if figure.series and all(series.x == figure.series[0].x for series in figure.series) and _is_named(figure):
        return _table_by_name(figure)
    return _table_by_point(figure)


def axis_title(axis: Axis) -> str:
    """Label and unit: "energy per step (µJ)"."""
    unit = _unit(axis)
    return f"{axis.label} ({unit})" if unit else axis.label


def _table_by_name(figure: Figure) -> Table:
    columns = [Column(name=figure.x.label)]
    for series in figure.series:
        columns.append(Column(name=series.name, unit=_unit(figure.y), kind=_kind(figure.y)))
        if series.low:
            columns += [Column(name=end, unit=_unit(figure.y), kind=_kind(figure.y)) for end in ("low", "high")]
    rows: list[tuple[Cell, ...]] = []
    for index, name in enumerate(figure.series[0].x):
        row: list[Cell] = [name]
        for series in figure.series:
            row.append(series.y[index])
            row += [series.low[index], series.high[index]] if series.low else []
        rows.append(tuple(row))
    return Table(title=figure.title, columns=columns, rows=rows)


def _table_by_point(figure: Figure) -> Table:
    shown = [series for series in figure.series if series.color not in ("front", "roof")]
    has_range = any(series.low for series in shown)
    has_x_range = any(series.x_low for series in shown)
    has_labels = any(series.labels for series in shown)
    columns = [Column(name="series")]
    columns += [Column(name="what")] if has_labels else []
    columns.append(Column(name=figure.x.label, unit=_unit(figure.x), kind=_kind(figure.x, figure)))
    columns += [Column(name=end, unit=_unit(figure.x), kind=_kind(figure.x)) for end in ("low", "high") if has_x_range]
    columns.append(Column(name=figure.y.label, unit=_unit(figure.y), kind=_kind(figure.y)))
    columns += [Column(name=end, unit=_unit(figure.y), kind=_kind(figure.y)) for end in ("low", "high") if has_range]
    rows: list[tuple[Cell, ...]] = []
    for series in shown:
        for index, x in enumerate(series.x):
            row: list[Cell] = [series.name]
            row += [series.labels[index] if series.labels else None] if has_labels else []
            row.append(x)
            row += [_at(series.x_low, index), _at(series.x_high, index)] if has_x_range else []
            row.append(series.y[index])
            row += [_at(series.low, index), _at(series.high, index)] if has_range else []
            rows.append(tuple(row))
    note = f"The first {_MOST_ROWS} of {len(rows):,} rows; all are in results.json." if len(rows) > _MOST_ROWS else ""
    return Table(title=figure.title, columns=columns, rows=rows[:_MOST_ROWS], note=note)


def _at(values: Sequence[float | None], index: int) -> float | None:
    return values[index] if values else None


def _is_named(figure: Figure) -> bool:
    return all(isinstance(x, str) for series in figure.series for x in series.x)


def _unit(axis: Axis) -> str:
    return "%" if axis.percent else words.unit(axis.unit)


def _kind(axis: Axis, figure: Figure | None = None) -> Kind:
    if figure is not None and _is_named(figure):
        return "text"
    return "percent" if axis.percent else "number"


def _traces(figure: Figure, series: Series, place: int, palette: Palette) -> tuple[list[dict[str, Any]], Key]:
    color = {"front": MUTED, "roof": MUTED, "ink": INK}.get(series.color or "") or palette.color(series.color, place)
    marker = series.marker or palette.marker(series.color, place)
    dash = (
        "dash" if series.color == "front" else "solid" if series.color == "roof" else palette.dash(series.color, place)
    )
    xs = list(_scaled(series.x, figure.x))
    ys = list(_scaled(series.y, figure.y))
    trace: dict[str, Any] = {"name": escape(series.name), "legendgroup": series.name, "showlegend": False}
    trace |= {"y": xs, "x": ys, "orientation": "h"} if figure.horizontal else {"x": xs, "y": ys}
    trace |= _hover(figure, series)
    error = _whiskers(series.low, series.high, series.y, figure.y, color)
    x_error = _whiskers(series.x_low, series.x_high, series.x, figure.x, color)
    if series.style == "bars":
        trace |= {"type": "bar", "marker": {"color": color, "line": {"color": "#ffffff", "width": 0.6}}}
        if error:
            trace["error_x" if figure.horizontal else "error_y"] = {**error, "color": INK}
        return [trace], Key(series.name, color, "bar", "")
    trace |= {"type": "scatter"}
    trace.pop("orientation", None)
    if series.style == "points":
        many = len(series.x) > 200
        size = 6 if many else 9 if len(series.x) > 12 else 12
        look = {"color": color, "symbol": marker, "size": size, "opacity": 0.6 if many else 0.9}
        trace |= {"mode": "markers", "marker": {**look, "line": {"color": "#ffffff", "width": 1}}}
        if error:
            trace["error_x" if figure.horizontal else "error_y"] = error
        if x_error:
            trace["error_y" if figure.horizontal else "error_x"] = x_error
        return [trace], Key(series.name, color, "point", marker)
    trace |= {"mode": "lines", "line": {"color": color, "dash": dash, "width": 1.5 if series.color else 2}}
    if series.style == "band":
        trace["line"]["width"] = 2
        if len(series.x) <= 30:
            trace |= {"mode": "lines+markers", "marker": {"color": color, "size": 5, "symbol": marker}}
        return [_band(figure, series, color), trace], Key(series.name, color, "line", dash)
    if series.color in ("front", "roof"):
        trace["hoverinfo"] = "skip"
        trace.pop("hovertemplate", None)
    return [trace], Key(series.name, color, "line", dash)


def _hover(figure: Figure, series: Series) -> dict[str, Any]:
    x, y = ("y", "x") if figure.horizontal else ("x", "y")
    lines = [f"<b>{_no_template(escape(series.name))}</b>"]
    hover: dict[str, Any] = {}
    if series.labels:
        hover["customdata"] = [escape(label) for label in series.labels]
        lines.append("%{customdata}")
    named = all(isinstance(value, str) for value in series.x)
    lines.append("%{" + x + "}" if named else _hover_line(figure.x, x))
    lines.append(_hover_line(figure.y, y))
    return {**hover, "hovertemplate": "<br>".join(lines) + "<extra></extra>"}


def _hover_line(axis: Axis, letter: str) -> str:
    unit = _unit(axis)
    return f"{_no_template(escape(axis.label))}: %{{{letter}:,.4~g}}{' ' + escape(unit) if unit else ''}"


def _no_template(text: str) -> str:
    return text.replace("%{", "% {")


def _scaled(values: Iterable[str | float | None], axis: Axis) -> Iterable[str | float | None]:
    for value in values:
        yield value * 100 if axis.percent and value is not None and not isinstance(value, str) else value


def _whiskers(
    low: Sequence[float | None], high: Sequence[float | None], middle: Sequence[Any], axis: Axis, color: str
) -> dict[str, Any]:
    if not low:
        return {}
    factor = 100 if axis.percent else 1
    up = [0 if h is None or m is None else max(0.0, h - m) * factor for h, m in zip(high, middle, strict=True)]
    down = [0 if h is None or m is None else max(0.0, m - h) * factor for h, m in zip(low, middle, strict=True)]
    return {
        "type": "data",
        "array": up,
        "arrayminus": down,
        "symmetric": False,
        "color": color,
        "thickness": 1.3,
        "width": 4,
    }


def _band(figure: Figure, series: Series, color: str) -> dict[str, Any]:
    present = [
        (x, low, high)
        for x, low, high in zip(series.x, series.low, series.high, strict=True)
        if low is not None and high is not None
    ]
    xs = [x for x, _, _ in present] + [x for x, _, _ in reversed(present)]
    ys = [high for _, _, high in present] + [low for _, low, _ in reversed(present)]
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return {
        "type": "scatter",
        "mode": "lines",
        "legendgroup": series.name,
        "showlegend": False,
        "x": list(_scaled(xs, figure.x)),
        "y": list(_scaled(ys, figure.y)),
        "fill": "toself",
        "fillcolor": f"rgba({red},{green},{blue},0.14)",
        "line": {"width": 0},
        "hoverinfo": "skip",
    }


def _identity(figure: Figure) -> list[dict[str, Any]]:
    values = [
        value
        for series in figure.series
        for value in (*series.x, *series.y)
        if isinstance(value, int | float) and (value > 0 or figure.x.scale == "linear")
    ]
    if not values:
        return []
    low, high = min(values), max(values)
    ends = [value * (100 if figure.x.percent else 1) for value in (low, high)]
    look = {"type": "scatter", "mode": "lines", "showlegend": False, "hoverinfo": "skip", "x": ends}
    line = {**look, "y": ends, "line": {"color": INK, "width": 1.2, "dash": "dot"}}
    if figure.identity_band is None:
        return [line]
    wide = figure.identity_band
    shade = {
        **look,
        "x": [*ends, *reversed(ends)],
        "y": [*(e * (1 + wide) for e in ends), *(e * (1 - wide) for e in reversed(ends))],
        "fill": "toself",
        "fillcolor": "rgba(91,103,117,0.15)",
        "line": {"width": 0},
    }
    return [shade, line]


def _layout(figure: Figure) -> dict[str, Any]:
    names = _names(figure)
    along = _axis(figure.x, _values(figure, "x"), names)
    across = _axis(figure.y, _values(figure, "y"), [])
    has_bars = any(series.style == "bars" for series in figure.series)
    if has_bars and figure.y.scale == "linear":
        across["rangemode"] = "tozero"
    layout: dict[str, Any] = {"barmode": "stack" if figure.stacked else "group", "bargap": 0.28}
    if figure.horizontal:
        along |= {"range": [len(names) - 0.5, -0.5], "title": None, "showgrid": False}
        layout |= {"xaxis": across, "yaxis": along}
        layout["meta"] = {"narrow_labels": [_wrapped(name, _NARROW_LABEL_WIDTH) for name in names]}
    else:
        layout |= {"xaxis": along, "yaxis": across}
    if figure.lines:
        layout["shapes"], layout["annotations"] = _reference_lines(figure)
    return layout


def _axis(axis: Axis, values: Sequence[float], names: Sequence[str]) -> dict[str, Any]:
    drawn: dict[str, Any] = {"title": {"text": escape(axis_title(axis))}, "automargin": True}
    if names:
        drawn |= {"type": "category", "tickvals": list(names), "ticktext": [_wrapped(name) for name in names]}
        return drawn
    positive = [value * (100 if axis.percent else 1) for value in values if value > 0]
    if axis.scale == "log" and positive:
        ticks = log_ticks(min(positive), max(positive))
        return drawn | {"type": "log", "tickvals": ticks, "ticktext": [_tick_text(tick) for tick in ticks]}
    return drawn | {"type": axis.scale, "nticks": 7}


def log_ticks(low: float, high: float) -> list[float]:
    """Round values for a log axis from `low` to `high`: about four to ten, however many decades that is.

    Plotly's own choice shows one labeled tick, or none, on less than a decade.
    """
    if high < low * 1.1:  # one value, or nearly: leave room for ticks around it
        low, high = low / 1.05, high * 1.05
    first, last = floor(log10(low)), ceil(log10(high) + 1e-9)
    if last - first > 3:
        return [10.0**n for n in range(first, last + 1, 1 + (last - first) // 9)]
    for parts in ((1, 2, 5), (1, 1.5, 2, 3, 5, 7), (1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 9)):
        ticks = [float(f"{part}e{n}") for n in range(first, last + 1) for part in parts]
        inside = [tick for tick in ticks if low / 1.3 <= tick <= high * 1.3]
        if len(inside) >= 4:
            return inside
    return [float(f"{low + (high - low) * i / 4:.3g}") for i in range(5)]


def _tick_text(value: float) -> str:
    if 1e-3 <= value < 1e6:
        return f"{value:,.10g}"
    exponent = floor(log10(value) + 1e-9)
    factor = value / 10.0**exponent
    return f"10<sup>{exponent}</sup>" if abs(factor - 1) < 1e-9 else f"{factor:.3g}×10<sup>{exponent}</sup>"


def _names(figure: Figure) -> list[str]:
    return list(dict.fromkeys(x for series in figure.series for x in series.x if isinstance(x, str)))


def _values(figure: Figure, letter: str) -> list[float]:
    fields = ("x", "x_low", "x_high") if letter == "x" else ("y", "low", "high")
    drawn = [
        float(value)
        for series in figure.series
        for name in fields
        for value in getattr(series, name)
        if isinstance(value, int | float)
    ]
    return drawn + [line.at for line in figure.lines if line.axis == letter]


def _wrapped(name: str, width: int = _LABEL_WIDTH) -> str:
    return "<br>".join(escape(line) for line in textwrap.wrap(name, width) or [name])


def _reference_lines(figure: Figure) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    shapes, annotations = [], []
    for line in figure.lines:
        along_x = (line.axis == "x") != figure.horizontal
        axis = figure.x if line.axis == "x" else figure.y
        at = line.at * 100 if axis.percent else line.at
        place = log10(at) if axis.scale == "log" else at  # plotly places annotations on log axes by exponent
        ends: dict[str, Any] = (
            {"xref": "x", "x0": at, "x1": at, "yref": "paper", "y0": 0, "y1": 1}
            if along_x
            else {"yref": "y", "y0": at, "y1": at, "xref": "paper", "x0": 0, "x1": 1}
        )
        shapes.append({"type": "line", "line": {"color": INK, "width": 1.2, "dash": "dash"}, **ends})
        where: dict[str, Any] = (
            {"xref": "x", "x": place, "yref": "paper", "y": 1, "xanchor": "left", "yanchor": "top"}
            if along_x
            else {"yref": "y", "y": place, "xref": "paper", "x": 1, "xanchor": "right", "yanchor": "bottom"}
        )
        note = {"text": escape(line.label), "showarrow": False, "bgcolor": "rgba(255,255,255,0.8)", **where}
        annotations.append({**note, "font": {"color": INK, "size": 12}})
    return shapes, annotations


def _height(figure: Figure) -> int:
    if not figure.horizontal:
        return 380
    names = _names(figure)
    per_name = 1 if figure.stacked else max(1, sum(series.style == "bars" for series in figure.series))
    lines = sum(max(per_name * 0.8, 1 + _wrapped(name).count("<br>") * 0.55) for name in names)
    return int(96 + 30 * lines)
