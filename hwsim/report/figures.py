"""The figures of a results page, as plain data: one function a figure, from `Results` alone.

Each function returns `Figure` values (hwsim.section), so their numbers can be tested without drawing; `drawing.py`
turns them into plots. A figure without data is left out by its function: it returns None or an empty list.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal

from hwsim.records import Machine, SimulatedOp, SimulationRecord
from hwsim.report import words
from hwsim.results import Results
from hwsim.section import Axis, Figure, Marker, Series
from hwsim.summary import CostRow, Summary

PASSES = ("forward", "loss", "grad_input", "grad_weight", "selection", "other backward", "update")
"""The parts of a step in the order they are drawn; every op belongs to exactly one."""

_BAR_OF_WORK = {
    "dense": ", unpruned",
    "zeros": ", unpruned, zeros skipped",
    "trained": "",
    "ideal": ", selection free",
}
_MEANING_OF_BAR = {
    "unpruned": " Unpruned: the same step, formats and machine without top-k; left out where it equals a bar above.",
    "zeros skipped": " Zeros skipped: a dense machine that skips the zeros that ReLU leaves.",
    "selection free": " Selection free: as if pruned work vanished at no cost.",
}
_SELECTION_KINDS = ("select", "gather", "scatter")
_MARKER_OF_GEMM: dict[str, Marker] = {"output": "circle", "grad_input": "triangle-up", "grad_weight": "square"}
_MOST_LAYERS = 24
_WIDE = 5  # costs further apart than this are drawn on a logarithmic axis


def pass_of(op: SimulatedOp) -> str:
    """Name the part of the step that an op belongs to."""
    if op.phase != "backward":
        return op.phase
    if op.gemm in ("grad_input", "grad_weight"):
        return op.gemm
    return "selection" if op.kind in _SELECTION_KINDS else "other backward"


def tradeoff(results: Results, machine: Machine, against: str) -> Figure | None:
    """Test accuracy against the energy ("energy") or the cycles ("cycles") of a step on one machine."""
    summary = results.summary()
    rows = [row for row in summary.costs if row.accelerator == machine.name]
    points = []
    for row in rows:
        accuracy = summary.accuracy_of(row.configuration.name)
        if accuracy is not None and accuracy.test_accuracy is not None:
            points.append((row, accuracy.test_accuracy))
    if not points:
        return None

    def cost(row: CostRow) -> tuple[float, float, float]:
        """Middle, low and high end of the cost."""
        if against == "energy":
            energy = row.step.energy_pj
            return energy.nominal, energy.low, energy.high
        return row.step.cycles, row.step_cycles.low, row.step_cycles.high

    lowest, highest = min(cost(row)[1] for row, _ in points), max(cost(row)[2] for row, _ in points)
    scale: Literal["linear", "log"] = "log" if lowest > 0 and highest / lowest > _WIDE else "linear"
    divisor, unit = words.energy_scale(highest) if against == "energy" else words.count_scale(highest)
    axis = Axis(label=f"{against} per step", unit=unit, scale=scale)
    front = pareto_front([(cost(row)[0], spread.mean) for row, spread in points])
    series = [
        Series(
            name="Pareto front",
            x=[cost(points[i][0])[0] / divisor for i in front],
            y=[points[i][1].mean for i in front],
            style="line",
            color="front",
        )
    ]
    for row, spread in points:
        middle, low, high = cost(row)
        series.append(
            Series(
                name=row.configuration.name,
                color=row.configuration.name,
                x=[middle / divisor],
                y=[spread.mean],
                x_low=[low / divisor],
                x_high=[high / divisor],
                low=[spread.low],
                high=[spread.high],
                labels=[f"{words.accuracy(spread)}, {words.plural(spread.count, 'seed')}"],
            )
        )
    meaning = "low to high prices" if against == "energy" else "the range over recorded steps"
    return Figure(
        title=f"{words.capital(summary.measure)} against {against}: {machine.name}",
        x=axis,
        y=Axis(label=f"test {summary.measure}", unit="%", percent=True),
        series=series,
        caption=(
            f"Up and to the left is better. Whiskers: the range over seeds upward, {meaning} sideways. "
            "The line joins the configurations that no other one beats in both."
        ),
    )


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the (cost, accuracy) points that no other one beats (lower cost, higher accuracy), by cost."""
    front: list[int] = []
    for index in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if not front or points[index][1] > points[front[-1]][1]:
            front.append(index)
    return front


def by_pass(results: Results, machine: Machine, what: str) -> Figure | None:
    """Cycles or energy of a step by pass, one bar a configuration; a top-k one stands beside its dense twin."""
    bars = step_bars(results, machine)
    if not bars:
        return None
    measure, axis = _measure(what, [[record.ops for record in records] for _, records in bars])
    totals = [_by_group(records, pass_of, measure) for _, records in bars]
    names = [name for name, _ in bars]
    series = [
        Series(name=part, color=part, style="bars", x=names, y=[total.get(part, 0.0) for total in totals])
        for part in PASSES
        if any(total.get(part) for total in totals)
    ]
    return Figure(
        title=f"{what.capitalize()} of a step by pass: {machine.name}",
        x=Axis(label="configuration"),
        y=axis,
        series=series,
        stacked=True,
        horizontal=True,
        caption=(
            "Selection: finding, gathering and scattering what top-k kept."
            + (" Energy at nominal prices." if what == "energy" else "")
            + "".join(meaning for suffix, meaning in _MEANING_OF_BAR.items() if any(suffix in name for name in names))
        ),
    )


def step_bars(results: Results, machine: Machine, rivals: bool = True) -> list[tuple[str, list[SimulationRecord]]]:
    """The simulated steps on one machine by the name of their bar, with or without the rivals of top-k steps.

    An unpruned rival that costs exactly what a bar before it costs (the dense configuration of the same formats, or
    the rival of another k) would show the same bar again and is left out.
    """
    bars: list[tuple[str, list[SimulationRecord]]] = []
    seen: set[tuple[float, float]] = set()
    for configuration in results.configurations:
        for work, suffix in _BAR_OF_WORK.items() if rivals else (("trained", ""),):
            wanted = (configuration.name, machine.name, work)
            records = [s for s in results.simulations if (s.configuration, s.accelerator, s.work) == wanted]
            if not records:
                continue
            cost = (records[0].step_cycles[0], records[0].step_energy_pj[0])
            if work != "dense" or cost not in seen:
                bars.append((configuration.name + suffix, records))
            seen.add(cost)
    return bars


def by_layer(results: Results, machine: Machine, configuration: str, what: str) -> Figure | None:
    """Cycles or energy of one configuration's step by layer, stacked by pass."""
    records = [
        s
        for s in results.simulations
        if (s.configuration, s.accelerator, s.work) == (configuration, machine.name, "trained")
    ]
    if not records:
        return None
    measure, axis = _measure(what, [[record.ops for record in records]])
    totals: dict[str, dict[str, float]] = {}
    for record in records:
        for op in record.ops:
            row = totals.setdefault(op.layer or "whole network", {})
            row[pass_of(op)] = row.get(pass_of(op), 0.0) + measure(op) / len(records)
    layers = list(totals)
    note = ""
    if len(layers) > _MOST_LAYERS:
        kept = set(sorted(layers, key=lambda layer: -sum(totals[layer].values()))[: _MOST_LAYERS - 1])
        rest: dict[str, float] = {}
        for layer in layers:
            if layer not in kept:
                for part, value in totals[layer].items():
                    rest[part] = rest.get(part, 0.0) + value
        note = f" The {len(layers) - len(kept)} smallest layers are added up."
        totals = {**{layer: totals[layer] for layer in layers if layer in kept}, "all other layers": rest}
        layers = list(totals)
    return Figure(
        title=f"{what.capitalize()} by layer: {configuration} on {machine.name}",
        x=Axis(label="layer"),
        y=axis,
        series=[
            Series(name=part, color=part, style="bars", x=layers, y=[totals[layer].get(part, 0.0) for layer in layers])
            for part in PASSES
            if any(totals[layer].get(part) for layer in layers)
        ],
        stacked=True,
        horizontal=True,
        caption=("Energy at nominal prices." if what == "energy" else "") + note,
    )


def energy_ranges(results: Results, machine: Machine) -> Figure | None:
    """Energy of a step by component at nominal prices, with the whole step's range from low to high prices."""
    bars = step_bars(results, machine, rivals=False)
    if not bars:
        return None
    names = [name for name, _ in bars]
    components: list[dict[str, float]] = []
    for _, records in bars:
        total: dict[str, float] = {}
        for record in records:
            for op in record.ops:
                for component, energy in op.energy_pj.items():
                    total[component] = total.get(component, 0.0) + energy.nominal / len(records)
        components.append(total)
    low, nominal, high = (
        [_mean(_step_energy(record, end) for record in records) for _, records in bars]
        for end in ("low", "nominal", "high")
    )
    divisor, unit = words.energy_scale(max(high))
    order = sorted(
        {name for total in components for name in total}, key=lambda c: -max(t.get(c, 0.0) for t in components)
    )
    series = [
        Series(
            name=component,
            color=component,
            style="bars",
            x=names,
            y=[total.get(component, 0.0) / divisor for total in components],
        )
        for component in order
        if any(total.get(component) for total in components)
    ]
    series.append(
        Series(
            name="whole step, low to high prices",
            color="ink",
            marker="diamond",
            x=names,
            y=[value / divisor for value in nominal],
            low=[value / divisor for value in low],
            high=[value / divisor for value in high],
        )
    )
    return Figure(
        title=f"Energy of a step by component: {machine.name}",
        x=Axis(label="configuration"),
        y=Axis(label="energy per step", unit=unit),
        series=series,
        stacked=True,
        horizontal=True,
        caption="Bars: nominal prices. Diamond and whiskers: the whole step at low, nominal and high prices.",
    )


def stalls(results: Results, machine: Machine) -> Figure | None:
    """What the MAC array does during a step: busy, or idle for one cause."""
    bars = step_bars(results, machine, rivals=False)
    if not any(op.stalls for _, records in bars for record in records for op in record.ops):
        return None
    shares: list[dict[str, float]] = []
    for _, records in bars:
        total = sum(op.cycles for record in records for op in record.ops)
        row: dict[str, float] = {}
        for record in records:
            for op in record.ops:
                for cause, cycles in op.stalls.items():
                    row[cause] = row.get(cause, 0.0) + cycles / total
        shares.append({"busy": max(0.0, 1.0 - sum(row.values())), **row})
    causes = sorted({cause for row in shares for cause in row}, key=lambda c: (c != "busy", c))
    return Figure(
        title=f"What the MAC array waits for: {machine.name}",
        x=Axis(label="configuration"),
        y=Axis(label="share of the step's cycles", unit="%", percent=True),
        series=[
            Series(
                name=cause.replace("_", " "),
                color=cause,
                style="bars",
                x=[name for name, _ in bars],
                y=[row.get(cause, 0.0) for row in shares],
            )
            for cause in causes
        ],
        stacked=True,
        horizontal=True,
        caption="Each idle cycle has one cause; busy and the causes add up to the whole step.",
    )


def roofline(results: Results, machine: Machine) -> Figure | None:
    """Each GEMM of the step under the machine's roofs: MACs per cycle over MACs per byte of DRAM traffic."""
    series = []
    drawn: list[SimulatedOp] = []
    on_chip = 0
    for configuration in results.configurations:
        first = _first(results.simulations, configuration.name, machine.name)
        gemms = [op for record in first for op in record.ops if op.gemm and op.macs and op.cycles]
        ops = [op for op in gemms if op.bytes.get("dram")]
        on_chip += len(gemms) - len(ops)
        drawn += ops
        for gemm, marker in _MARKER_OF_GEMM.items():
            of_gemm = [op for op in ops if op.gemm == gemm]
            if of_gemm:
                series.append(
                    Series(
                        name=configuration.name,
                        color=configuration.name,
                        marker=marker,
                        x=[op.macs / op.bytes["dram"] for op in of_gemm],
                        y=[op.macs / op.cycles for op in of_gemm],
                        labels=[op.id for op in of_gemm],
                    )
                )
    if not series:
        return None
    roofs = _roofs(machine, drawn)
    bandwidth = machine.dram_bytes_per_cycle
    early = bandwidth is not None and any(op.bytes["dram"] > bandwidth * op.cycles * (1 + 1e-9) for op in drawn)
    return Figure(
        title=f"Roofline: {machine.name}",
        x=Axis(label="MACs per byte of DRAM traffic", scale="log"),
        y=Axis(label="MACs per cycle", scale="log"),
        series=[*roofs, *series],
        caption=(
            "Circle: output, triangle: grad_input, square: grad_weight. A point on the slope waits for memory, one "
            "under the flat part for something else: filling, draining, short operands. "
            + ("" if roofs else "The machine's roofs are not recorded. ")
            + ("A point above the slope had operands fetched while the op before it ran. " if early else "")
            + (f"Left out: {words.plural(on_chip, 'GEMM')} without any DRAM traffic." if on_chip else "")
        ),
    )


def _first(simulations: Iterable[SimulationRecord], configuration: str, accelerator: str) -> list[SimulationRecord]:
    """One trial's trained step: it shows the shape, the others differ by a few kept indices."""
    wanted = (configuration, accelerator, "trained")
    return [s for s in simulations if (s.configuration, s.accelerator, s.work) == wanted][:1]


def _roofs(machine: Machine, ops: Sequence[SimulatedOp]) -> list[Series]:
    """The roof of every format that the ops use: the slope of the DRAM up to the peak of the arrays."""
    bandwidth = machine.dram_bytes_per_cycle
    used = [op.macs / op.ideal_cycles for op in ops if op.ideal_cycles]
    peaks = {
        name: peak
        for name, peak in machine.peak_macs_per_cycle.items()
        if any(abs(peak - u) < 1e-6 * peak for u in used)
    }
    if not peaks or not bandwidth:
        return []
    intensities = [op.macs / op.bytes["dram"] for op in ops]
    left = min(*intensities, min(peaks.values()) / bandwidth) / 2
    right = max(*intensities, max(peaks.values()) / bandwidth) * 2
    roofs = []
    for peak in sorted(set(peaks.values()), reverse=True):
        formats = ", ".join(name for name, value in peaks.items() if value == peak)
        roofs.append(
            Series(
                name=f"roof: {words.number(peak)} MACs and {words.number(bandwidth)} bytes per cycle ({formats})",
                color="roof",
                style="line",
                x=[left, peak / bandwidth, right],
                y=[left * bandwidth, peak, peak],
            )
        )
    return roofs


def training_curves(results: Results, curve: str, label: str, percent: bool) -> Figure | None:
    """One curve over the updates made: the mean over seeds, and the range as a band."""
    series = []
    for configuration in results.configurations:
        trials = [trial.training for trial in results.trials if trial.configuration == configuration.name]
        steps, means, lows, highs = mean_curve([(t.curves.get("step", ()), t.curves.get(curve, ())) for t in trials])
        if steps:
            series.append(
                Series(
                    name=configuration.name,
                    color=configuration.name,
                    style="band",
                    x=steps,
                    y=means,
                    low=lows,
                    high=highs,
                )
            )
    if not series:
        return None
    return Figure(
        title=label[:1].upper() + label[1:],
        x=Axis(label="updates"),
        y=Axis(label=label, unit="%" if percent else "", percent=percent),
        series=series,
        caption="Line: mean over seeds. Band: smallest to largest.",
    )


def mean_curve(
    curves: Iterable[tuple[Sequence[float | None], Sequence[float | None]]],
) -> tuple[list[float], list[float], list[float], list[float]]:
    """Mean, smallest and largest value at each step that some curve has: (steps, means, lows, highs)."""
    at: dict[float, list[float]] = {}
    for steps, values in curves:
        for step, value in zip(steps, values, strict=False):
            if step is not None and value is not None:
                at.setdefault(step, []).append(value)
    steps = sorted(at)
    return steps, [_mean(at[s]) for s in steps], [min(at[s]) for s in steps], [max(at[s]) for s in steps]


def kept_shares(results: Results) -> Figure | None:
    """Kept share a row and union over the batch, by configuration and layer."""
    names: list[str] = []
    kept: list[float] = []
    union: list[float] = []
    norm: list[float | None] = []
    for configuration in results.configurations:
        trials = [trial.training for trial in results.trials if trial.configuration == configuration.name]
        layers: dict[str, list] = {}
        for trial in trials:
            for layer in trial.sparsity:
                layers.setdefault(layer.layer, []).append(layer)
        for layer_name, found in layers.items():
            names.append(f"{configuration.name}: {layer_name}")
            kept.append(_mean(layer.kept_share for layer in found))
            union.append(_mean(layer.union_share for layer in found))
            norms = [layer.norm_share for layer in found if layer.norm_share is not None]
            norm.append(_mean(norms) if norms else None)
    if not names:
        return None
    series = [
        Series(name="kept by a row", color="grad_weight", style="bars", x=names, y=kept),
        Series(name="kept by any row of the batch", color="selection", style="bars", x=names, y=union),
    ]
    if any(value is not None for value in norm):
        series.append(
            Series(name="share of the gradient's squares kept", color="update", style="bars", x=names, y=norm)
        )
    return Figure(
        title="What top-k keeps",
        x=Axis(label="layer"),
        y=Axis(label="share", unit="%", percent=True),
        series=series,
        horizontal=True,
        caption=(
            "A machine that cannot skip single elements gains only what no row of the batch keeps: the distance from "
            "the second bar to 100 %."
        ),
    )


def _measure(
    what: str, groups: Sequence[Sequence[Sequence[SimulatedOp]]]
) -> tuple[Callable[[SimulatedOp], float], Axis]:
    if what == "cycles":
        largest = max((sum(op.cycles for op in ops) for bar in groups for ops in bar), default=0.0)
        divisor, word = words.count_scale(largest)
        return (lambda op: op.cycles / divisor), Axis(label="cycles per step", unit=word)
    divisor, unit = words.energy_scale(_largest_energy(groups))
    return (lambda op: _op_energy(op, "nominal") / divisor), Axis(label="energy per step", unit=unit)


def _largest_energy(groups: Sequence[Sequence[Sequence[SimulatedOp]]]) -> float:
    return max((sum(_op_energy(op, "nominal") for op in ops) for bar in groups for ops in bar), default=0.0)


def _by_group(
    records: Sequence[SimulationRecord], group: Callable[[SimulatedOp], str], measure: Callable[[SimulatedOp], float]
) -> dict[str, float]:
    total: dict[str, float] = {}
    for record in records:
        for op in record.ops:
            total[group(op)] = total.get(group(op), 0.0) + measure(op) / len(records)
    return total


def _op_energy(op: SimulatedOp, end: str) -> float:
    return sum(getattr(energy, end) for energy in op.energy_pj.values())


def _step_energy(record: SimulationRecord, end: str) -> float:
    return sum(_op_energy(op, end) for op in record.ops)


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return sum(numbers) / len(numbers)


def targets(summary: Summary) -> str:
    """Say what "to the target" means."""
    if summary.target_accuracy is None:
        return f"There is no target accuracy: {summary.target_rule.removeprefix('no target: ')}."
    return f"Target: {words.percent(summary.target_accuracy)} dev {summary.measure} ({summary.target_rule})."
