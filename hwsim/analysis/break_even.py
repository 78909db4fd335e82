"""How the simulated gain of top-k falls as k grows, and the k from which on it does not pay."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from hwsim.records import SimulatedOp
from hwsim.results import Results
from hwsim.section import Axis, Cell, Column, Figure, ReferenceLine, Section, Series, Table
from hwsim.summary import is_any, is_backward, is_backward_gemm, part_cost

PARTS: dict[str, Callable[[SimulatedOp], bool]] = {
    "backward GEMMs": is_backward_gemm,
    "backward": is_backward,
    "step": is_any,
}
RIVALS = {"dense": "dense", "zeros": "a dense machine that skips ReLU zeros"}


@dataclass(frozen=True)
class Curve:
    """The gain of one family of configurations on one machine, by k."""

    family: str
    machine: str
    part: str
    rival: str
    cost: str  # cycles or energy
    gains: tuple[tuple[int, float], ...]  # (k, rival over top-k), ascending k

    @property
    def break_even(self) -> str:
        """The k up to which top-k is the better one, in words."""
        return crossing(self.gains)


def crossing(gains: Sequence[tuple[float, float]]) -> str:
    """Return the largest k that still pays, between points on logarithmic axes; "none" or "over K" off their ends.

    The last crossing counts: beyond it, no point is above 1.
    """
    if gains[-1][1] > 1:
        return f"over {gains[-1][0]:g}"
    for (k0, gain0), (k1, gain1) in reversed(list(pairwise(gains))):
        if gain0 > 1 >= gain1:
            share = math.log(gain0) / (math.log(gain0) - math.log(gain1))
            return f"{k0 * (k1 / k0) ** share:.0f}"
    return "none"


def curves(results: Results) -> tuple[Curve, ...]:
    """Return every curve that the results hold: families with a grid over k, each machine, part, rival and cost."""
    kept: dict[str, dict[str, int]] = {}
    for configuration in results.configurations:
        sparse = configuration.settings.get("sparse")
        k = sparse.get("k") if isinstance(sparse, dict) else None
        if isinstance(k, int):
            kept.setdefault(configuration.family, {})[configuration.name] = k
    found = []
    for family, names in kept.items():
        for machine in results.machines:
            for part, picks in PARTS.items():
                for cost in ("cycles", "energy"):
                    totals = _totals(results, names, machine.name, picks, cost)
                    for rival in RIVALS:
                        gains = sorted(
                            (k, totals[name, rival] / totals[name, "trained"])
                            for name, k in names.items()
                            if totals.get((name, rival)) and totals.get((name, "trained"))
                        )
                        if len(gains) > 1:
                            found.append(Curve(family, machine.name, part, rival, cost, tuple(gains)))
    return tuple(found)


def _totals(
    results: Results, names: dict[str, int], machine: str, picks: Callable[[SimulatedOp], bool], cost: str
) -> dict[tuple[str, str], float]:
    """Return cycles or nominal energy of a part of the step by configuration and work, added over seeds."""
    totals: dict[tuple[str, str], float] = {}
    for record in results.simulations:
        if record.accelerator == machine and record.configuration in names:
            part = part_cost(record, picks)
            value = part.cycles if cost == "cycles" else part.energy_pj.nominal
            key = (record.configuration, record.work)
            totals[key] = totals.get(key, 0.0) + value
    return totals


def break_even_section(results: Results) -> Section:
    """The gains by k, and a table of the k from which on top-k does not pay."""
    found = curves(results)
    if not found:
        return Section(title="Break-even", text="No configuration with a grid over sparse.k was simulated.")
    figures = []
    for family in dict.fromkeys(curve.family for curve in found):
        for part in PARTS:
            shown = [c for c in found if (c.family, c.part, c.cost, c.rival) == (family, part, "cycles", "dense")]
            figures.append(_figure(f"{family}: {part}, cycles", shown))
    rows: list[tuple[Cell, ...]] = [
        (curve.family, curve.machine, curve.part, RIVALS[curve.rival], curve.cost, curve.gains[0][1], curve.break_even)
        for curve in found
    ]
    smallest = min(k for curve in found for k, _ in curve.gains)
    table = Table(
        title="Break-even",
        columns=(
            Column(name="configuration"),
            Column(name="machine"),
            Column(name="part"),
            Column(name="against"),
            Column(name="in"),
            Column(name=f"gain at the smallest k ({smallest})", kind="ratio", digits=2),
            Column(name="pays up to k"),
        ),
        rows=rows,
        note="Backward: selection, gather, scatter and element-wise work as well as the GEMMs. Step: the forward pass "
        "and the dense optimizer update too. none: it pays at no k that was tried; over K: at all of them.",
    )
    text = (
        "Dense over top-k, from steps recorded in training: the kept indices, their overlap and the zeros are those "
        "that occurred. Above 1, top-k is the better one."
    )
    return Section(title="Break-even k", text=text, figures=figures, tables=[table])


def _figure(title: str, shown: Sequence[Curve]) -> Figure:
    return Figure(
        title=title,
        x=Axis(label="kept (k)", scale="log"),
        y=Axis(label="dense over top-k", scale="log"),
        series=[
            Series(
                name=curve.machine,
                style="line",
                x=[float(k) for k, _ in curve.gains],
                y=[gain for _, gain in curve.gains],
            )
            for curve in shown
        ],
        lines=[ReferenceLine(label="break-even", at=1.0)],
    )
