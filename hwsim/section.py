"""Blocks that a study adds to its page: text, tables and figures as plain data, drawn by `hwsim.report`.

A validation, a measurement or a reproduction has numbers that no fixed page knows. It states them as `Section`
objects in `Results.sections`; the page draws every section in the order given, with the units and sources that
the section states. Nothing here draws, and nothing here computes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, Field, model_validator

from hwsim.spec import Spec

Item = TypeVar("Item")
Many = Annotated[Sequence[Item], AfterValidator(tuple)]
"""Written as any list or tuple, held as a tuple."""

Kind = Literal["text", "number", "percent", "ratio", "verdict"]
Marker = Literal["circle", "square", "diamond", "triangle-up", "triangle-down", "cross"]

Cell = str | bool | int | float | None
"""One entry of a table; None is drawn as a dash and means "not known", never zero."""


class Column(Spec):
    """One column of a table: its heading, its unit and how its numbers are written."""

    name: str
    unit: str = ""
    kind: Kind = "text"
    """How a cell is written: percent takes a share (0.974 is drawn 97.4), ratio adds a times sign, verdict a mark."""
    digits: int | None = Field(default=None, ge=0, le=12)
    """Digits after the point; None writes four significant digits."""


class Table(Spec):
    """Rows under columns, with a note and the source of what is not ours."""

    title: str
    columns: Many[Column]
    rows: Many[Many[Cell]]
    note: str = ""
    source: str = ""

    @model_validator(mode="after")
    def _rows_fit(self) -> Table:
        for number, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise ValueError(f"rows[{number}] has {len(row)} cells, expected {len(self.columns)} (one a column)")
        return self


class Axis(Spec):
    """One axis of a figure. A unit belongs to every axis that is not a plain count or a name."""

    label: str
    unit: str = ""
    scale: Literal["linear", "log"] = "linear"
    percent: bool = False
    """True: the values are shares, drawn as percent."""


class Series(Spec):
    """One set of points under one name. `low` and `high` are the ends of each point's interval (not its length)."""

    name: str
    x: Many[str | float]
    y: Many[float | None]
    style: Literal["points", "line", "bars", "band"] = "points"
    """band draws the area between low and high with y as its middle line."""
    low: Many[float | None] = ()
    high: Many[float | None] = ()
    x_low: Many[float | None] = ()
    x_high: Many[float | None] = ()
    labels: Many[str] = ()
    """What the pointer shows at each point, for example the shape of the GEMM."""
    color: str | None = None
    """Name of a configuration, a pass or a component, to wear its color; None takes the next color of the figure."""
    marker: Marker | None = None
    """None takes the next one of the figure, so that color is never the only difference."""

    @model_validator(mode="after")
    def _lengths_agree(self) -> Series:
        for field in ("y", "low", "high", "x_low", "x_high", "labels"):
            values = getattr(self, field)
            if len(values) != len(self.x) and (values or field == "y"):
                raise ValueError(f"{field} has {len(values)} entries, expected {len(self.x)} (as many as x)")
        if bool(self.low) != bool(self.high) or bool(self.x_low) != bool(self.x_high):
            raise ValueError("low and high belong together: give both or neither")
        if self.style == "band" and not self.low:
            raise ValueError("style 'band' needs low and high")
        return self


class ReferenceLine(Spec):
    """A line to judge the points by: a constant on one axis, with its meaning."""

    label: str
    at: float
    axis: Literal["x", "y"] = "y"


class Figure(Spec):
    """Series over two axes. Bars may be stacked, and may lie: their names (x) then run down the side."""

    title: str
    x: Axis
    y: Axis
    series: Many[Series]
    caption: str = ""
    source: str = ""
    stacked: bool = False
    horizontal: bool = False
    identity: bool = False
    """True: draw y = x, as measured against simulated wants it."""
    identity_band: float | None = Field(default=None, gt=0)
    """Share around y = x to shade, such as 0.1 for plus and minus 10 %; needs `identity`."""
    lines: Many[ReferenceLine] = ()


class Section(Spec):
    """One part of the page: a claim as its title, words (paragraphs apart by an empty line), figures, tables."""

    title: str
    text: str = ""
    verdict: str | None = None
    """Shown as a mark beside the title: confirmed, within noise, not confirmed, not comparable, passed, failed."""
    figures: Many[Figure] = ()
    tables: Many[Table] = ()
