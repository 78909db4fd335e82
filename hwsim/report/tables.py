"""The tables and key numbers of a results page, as plain data, from `Results` alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hwsim.records import Machine
from hwsim.report import words
from hwsim.report.figures import targets
from hwsim.report.headline import findings
from hwsim.results import Results
from hwsim.section import Cell, Column, Table
from hwsim.summary import AccuracyRow, CostRow, Gain, Spread

COST_NOTE = (
    "A step is one optimizer update on one mini-batch; its costs are means over the recorded steps. The backward pass "
    "counts selection, gathering, scattering and element-wise work as well as its GEMMs. Time includes launch "
    "overhead. Energies are at nominal prices unless a range is given."
)
REPEATABLE = (
    "Casts, GEMMs, convolutions, our own sums, top-k and optimizer updates repeat bit for bit on any number of threads "
    "and on every back end. What torch computes by itself repeats on the same machine with the same torch and threads."
)


@dataclass(frozen=True)
class Card:
    """One key number at the head of the page."""

    title: str
    value: str
    note: str


def setting(results: Results) -> str:
    """Network, data and machines in one line; what the experiment does not say is left out."""
    experiment = results.experiment
    model = experiment.get("model")
    named = model.get("name") if isinstance(model, dict) else model
    parts = [f"{named} on {experiment['data']}" if named and experiment.get("data") else ""]
    parts.append(", ".join(machine.name for machine in results.machines))
    seeds = experiment.get("seeds")
    parts.append(words.plural(len(seeds), "seed") if isinstance(seeds, list) else "")
    return " · ".join(part for part in parts if part)


def cards(results: Results) -> list[Card]:
    """Key numbers: for each machine the gains of the best configuration that keeps the accuracy."""
    summary = results.summary()
    found: list[Card] = []
    for finding in findings(summary):
        best = finding.best
        if best is None or best.gain_over_baseline is None:
            continue
        machine, gain = finding.accelerator, best.gain_over_baseline
        against = f"{best.configuration.name} against {summary.baseline}"
        found.append(Card(f"Energy of a step on {machine}", words.gain(gain.energy, "less"), against))
        found.append(Card(f"Cycles of a step on {machine}", words.gain(gain.cycles, "fewer"), against))
        if best.gain_backward is not None and best.gain_step is not None:
            note = (
                f"in cycles; whole step {words.ratio(best.gain_step.cycles)} ({best.configuration.name}, same formats)"
            )
            found.append(
                Card(f"Top-k alone, backward pass on {machine}", words.gain(best.gain_backward.cycles, "fewer"), note)
            )
    return found[:6]


def baseline_rows(results: Results) -> list[int]:
    """Places of the baseline in a table with one row a configuration."""
    return [i for i, configuration in enumerate(results.configurations) if configuration.name == results.baseline]


def accuracy(results: Results) -> Table:
    """One row a configuration: arithmetic, sparsity, accuracy over seeds, steps to the target."""
    summary = results.summary()
    rows = [_accuracy_cells(row) for row in summary.accuracy]
    columns = [
        Column(name="configuration"),
        Column(name="precision"),
        Column(name="sparse backprop"),
        Column(name="seeds", kind="number", digits=0),
        Column(name=f"test {summary.measure}, mean", unit="%", kind="percent"),
        Column(name="± deviation", unit="points", kind="percent"),
        Column(name="against the baseline", unit="points"),
        Column(name="updates to the target", kind="number", digits=0),
        Column(name="reached it"),
    ]
    return Table(title="Accuracy", columns=columns, rows=rows)


def accuracy_note(results: Results) -> str:
    """What the accuracy table's words mean."""
    summary = results.summary()
    return (
        f"Test {summary.measure} is that of the selected epoch. {targets(summary)} “Against the baseline” is paired "
        "by seed: mean and 95 % interval (Student's t); it is within noise if the interval holds zero. The baseline is "
        "shaded."
    )


def _accuracy_cells(row: AccuracyRow) -> list[Cell]:
    spread = row.test_accuracy
    diverged = f" ({row.diverged} diverged)" if row.diverged else ""
    return [
        row.configuration.name,
        row.configuration.precision,
        row.configuration.sparse or "none (dense)",
        row.trials,
        spread.mean if spread else None,
        spread.deviation if spread else None,
        difference(row.difference),
        row.steps_to_target.mean if row.steps_to_target else None,
        f"{row.reached_target} of {row.trials}{diverged}",
    ]


def difference(spread: Spread | None) -> str | None:
    """A difference of accuracies with its interval: "−0.31 (−0.52 to −0.10)"."""
    if spread is None:
        return None
    text = words.points(spread.mean).removesuffix(" points")
    if spread.interval is None:
        return f"{text} (one seed)"
    low, high = (words.points(end).removesuffix(" points") for end in spread.interval)
    within = f", within{words.UNBROKEN}noise" if spread.interval[0] <= 0 <= spread.interval[1] else ""
    return f"{text} ({words.span(low, high)}{within})"


def costs(results: Results, machine: Machine) -> Table:
    """One row a configuration: what a step takes on one machine, and what the way to the target takes."""
    rows = [row for row in results.summary().costs if row.accelerator == machine.name]
    targets_met = [row.to_target for row in rows if row.to_target is not None]
    time, time_unit = words.time_scale(max((row.step.time_us for row in rows), default=0.0))
    energy, energy_unit = words.energy_scale(max((row.step.energy_pj.nominal for row in rows), default=0.0))
    long_time, long_time_unit = words.time_scale(max((cost.time_us for cost in targets_met), default=0.0))
    long_energy, long_energy_unit = words.energy_scale(
        max((cost.energy_pj.nominal for cost in targets_met), default=0.0)
    )
    many, many_word = words.count_scale(max((cost.cycles for cost in targets_met), default=0.0))

    def cells(row: CostRow) -> list[Cell]:
        price, goal = row.step.energy_pj, row.to_target
        return [
            row.configuration.name,
            row.step.cycles,
            row.backward.cycles,
            row.step.time_us / time,
            price.nominal / energy,
            words.span(words.number(price.low / energy), words.number(price.high / energy)),
            row.backward.energy_pj.nominal / energy,
            goal.cycles / many if goal else None,
            goal.time_us / long_time if goal else None,
            goal.energy_pj.nominal / long_energy if goal else None,
        ]

    columns = [
        Column(name="configuration"),
        Column(name="cycles", kind="number", digits=0),
        Column(name="backward cycles", kind="number", digits=0),
        Column(name="time", unit=time_unit, kind="number"),
        Column(name="energy", unit=energy_unit, kind="number"),
        Column(name="low to high prices", unit=energy_unit),
        Column(name="backward energy", unit=energy_unit, kind="number"),
        Column(name="cycles to the target", unit=many_word, kind="number"),
        Column(name="time to the target", unit=long_time_unit, kind="number"),
        Column(name="energy to the target", unit=long_energy_unit, kind="number"),
    ]
    return Table(title=f"One step on {machine.name}", columns=columns, rows=[cells(row) for row in rows])


def gains(results: Results, machine: Machine) -> Table:
    """Gains of each configuration on one machine: top-k alone, and against the baseline. Above 1 is better."""
    rows = []
    for row in results.summary().costs:
        given = (row.gain_backward_gemms, row.gain_backward, row.gain_step, row.gain_over_zeros, row.gain_over_baseline)
        if row.accelerator == machine.name and any(gain is not None for gain in given):
            rows.append([row.configuration.name, *map(_gain, (*given, row.gain_to_target))])
    columns = [
        Column(name="configuration"),
        Column(name="top-k: backward GEMMs"),
        Column(name="top-k: backward pass"),
        Column(name="top-k: whole step"),
        Column(name="whole step, rival skips ReLU zeros"),
        Column(name="against the baseline: whole step"),
        Column(name="against the baseline: to the target"),
    ]
    used = [0, *(i for i in range(1, len(columns)) if any(row[i] is not None for row in rows))]
    return Table(
        title=f"Gains on {machine.name}: cycles | energy",
        columns=[columns[i] for i in used],
        rows=[[row[i] for i in used] for row in rows],
        note="How many times less than the rival; above 1 is better. Top-k's own rival is the same step, formats and "
        "machine without selection.",
    )


def usage(results: Results, machine: Machine) -> Table:
    """One row a configuration: how much of the machine a step uses, as means over its simulated trials."""
    rows: list[list[Cell]] = []
    for configuration in results.configurations:
        wanted = (configuration.name, machine.name, "trained")
        records = [s for s in results.simulations if (s.configuration, s.accelerator, s.work) == wanted]
        if not records:
            continue
        ops = [op for record in records for op in record.ops]
        cycles, count = sum(op.cycles for op in ops), len(records)
        rows.append(
            [
                configuration.name,
                sum(op.macs for op in ops) / count / 1e6,
                sum(op.ideal_cycles for op in ops) / cycles if cycles else None,
                sum(op.bytes.get("dram", 0.0) for op in ops) / count / 1024,
                _mean_of(r.peak_memory_bytes / 1024 if r.peak_memory_bytes is not None else None for r in records),
            ]
        )
    columns = [
        Column(name="configuration"),
        Column(name="useful MACs", unit="million", kind="number"),
        Column(name="of the arrays' peak", kind="percent", digits=1),
        Column(name="DRAM traffic", unit="KiB", kind="number"),
        Column(name="peak memory", unit="KiB", kind="number"),
    ]
    return Table(
        title=f"Use of {machine.name} by one step",
        columns=columns,
        rows=rows,
        note="Useful MACs: padding and pruned positions are not counted. Peak memory: the largest sum of live tensors.",
    )


def _gain(gain: Gain | None) -> str | None:
    if gain is None:
        return None
    return f"{words.ratio(gain.cycles)}{words.UNBROKEN}|{words.UNBROKEN}{words.ratio(gain.energy)}"


KEPT_SHARES = ("kept_share", "union_share", "norm_share", "example_overlap", "step_overlap", "tie_share")


def kept_positions(results: Results) -> list[Table]:
    """What top-k kept, by configuration and layer, as means over trials and recorded steps."""
    rows: list[list[Cell]] = []
    for configuration in results.configurations:
        trials = [trial.training for trial in results.trials if trial.configuration == configuration.name]
        names = dict.fromkeys(layer.layer for trial in trials for layer in trial.sparsity)
        for name in names:
            found = [layer for trial in trials for layer in trial.sparsity if layer.layer == name]
            rows.append(
                [
                    configuration.name,
                    name,
                    found[0].extent,
                    *(_mean_of(getattr(layer, field) for layer in found) for field in KEPT_SHARES),
                ]
            )
    if not rows:
        return []
    columns = [
        Column(name="configuration"),
        Column(name="layer"),
        Column(name="positions", kind="number", digits=0),
        Column(name="kept by a row", kind="percent"),
        Column(name="kept by any row", kind="percent"),
        Column(name="of the gradient's squares", kind="percent"),
        Column(name="overlap of two rows", kind="percent"),
        Column(name="overlap of two steps", kind="percent"),
        Column(name="decided by ties", kind="percent"),
    ]
    note = (
        "Overlap: intersection over union of the kept positions. Decided by ties: kept places that went to the lowest "
        "index among equal magnitudes, not all of which were kept. A dash: not recorded, or without meaning there."
    )
    return [Table(title="Kept positions", columns=columns, rows=rows, note=note)]


def notes(results: Results) -> list[str]:
    """What the simulator wants said, each once, with whom it concerns."""
    said: dict[str, list[str]] = {}
    for record in results.simulations:
        for note in record.notes:
            place = f"{record.configuration} on {record.accelerator}"
            if place not in said.setdefault(note, []):
                said[note].append(place)
    everything = len({(r.configuration, r.accelerator) for r in results.simulations})
    return [
        note if len(places) == everything else f"{note} ({', '.join(places[:4])}{', …' if len(places) > 4 else ''})"
        for note, places in said.items()
    ]


def assumptions(results: Results) -> list[Table]:
    """What the costs rest on, with sources: the machine's numbers, then what the simulation assumed."""
    columns = [Column(name="what"), Column(name="value"), Column(name="source")]
    made = []
    for machine in results.machines:
        rows = [[a.what, a.value, a.source] for a in machine.assumptions]
        if rows:
            made.append(Table(title=f"Numbers of {machine.name}", columns=columns, rows=rows))
        assumed = {
            (a.what, a.value, a.source): None
            for record in results.simulations
            if record.accelerator == machine.name
            for a in record.assumptions
        }
        if assumed:
            shown = columns if any(value for _, value, _ in assumed) else [columns[0], columns[2]]
            cells = [list(entry) if len(shown) == 3 else [entry[0], entry[2]] for entry in assumed]
            made.append(Table(title=f"What the simulation of {machine.name} assumes", columns=shown, rows=cells))
    return made


def origin(results: Results) -> list[tuple[str, str]]:
    """Facts about how the results came about, as name and value; unknown ones are left out."""
    made = results.provenance
    orders: dict[str, dict[str, None]] = {}
    for record in results.simulations:
        orders.setdefault(record.accelerator, {}).update(dict.fromkeys(_orders(record.order)))
    engines = {record.engine for record in results.simulations if record.engine}
    facts = [
        ("hwsim", f"{made.hwsim}, {made.code}"),
        ("made", f"{made.created}, in {words.time_with_unit(made.wall_s * 1e6)}" if made.wall_s else made.created),
        ("device", made.device),
        ("back ends", ", ".join(made.backends)),
        ("versions", ", ".join(f"{name} {version}" for name, version in made.versions.items())),
        ("data", ", ".join(f"{name} (sha256 {digest})" for name, digest in made.data.items())),
        ("seeds", ", ".join(map(str, sorted({trial.seed for trial in results.trials})))),
        ("simulation engine", ", ".join(sorted(engines))),
        ("accumulation order", "; ".join(f"{name}: {', '.join(found)}" for name, found in orders.items() if found)),
        ("notes", " ".join(made.notes)),
    ]
    return [(name, value) for name, value in facts if value]


def _orders(text: str) -> list[str]:
    """Split "sequential, chunked(16, float32)" at the commas outside of parentheses."""
    parts, depth = [""], 0
    for sign in text:
        depth += (sign == "(") - (sign == ")")
        if sign == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += sign
    return [part.strip() for part in parts if part.strip()]


def _mean_of(values: Iterable[float | None]) -> float | None:
    present: Sequence[float] = [value for value in values if value is not None]
    return sum(present) / len(present) if present else None
