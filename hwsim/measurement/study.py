"""The page of a measurement study: measured against simulated from a recorded file, or a plainly stated gap.

schema: measured/1
name: gpu_h200
question: ...
accelerator: nvidia_h200
measurements: measurements.json      # beside this file; need not exist yet
held_out: 0.5                        # share of the shapes that no fit may use
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from hwsim.errors import HwsimError
from hwsim.measurement.compare import SHORT_US, Comparison, Summary, compare, shape_against_table7, speed_ups
from hwsim.measurement.record import FILE_NAME, Measurement, MeasurementFile
from hwsim.measurement.work import workload_of
from hwsim.section import Axis, Column, Figure, ReferenceLine, Section, Series, Table
from hwsim.simulation.result import SimulationResult
from hwsim.spec import Spec
from hwsim.workload import Workload

Simulate = Callable[[Workload], SimulationResult]
PLOTTED = 2500  # points of one figure


class Gates(Spec):
    """What the study promises; shares of the measured time, and microseconds for the short kernels."""

    dense_gemm: Annotated[float, Field(gt=0, le=1)] = 0.08
    dense_gemm_short_us: Annotated[float, Field(gt=0)] = 1.5
    topk_backward: Annotated[float, Field(gt=0, le=1)] = 0.12
    energy: Annotated[float, Field(gt=0, le=1)] = 0.12


class MeasuredStudy(Spec):
    """The file of a measurement study."""

    SCHEMA: ClassVar[str | None] = "measured/1"

    name: Annotated[str, Field(min_length=1)]
    question: str = ""
    accelerator: str
    measurements: str = FILE_NAME
    held_out: Annotated[float, Field(gt=0, le=1)] = 0.5
    gates: Gates = Gates()


def study_sections(study: MeasuredStudy, folder: Path, simulate: Simulate) -> tuple[Section, ...]:
    """Return the blocks of the page; `simulate` runs a workload on the study's accelerator.

    Raises:
        SpecError: a measurements file that cannot be read. A missing one is no error: the page says so.
    """
    path = folder / study.measurements
    if not path.exists():
        return (gap(study),)
    file = MeasurementFile.read(path)
    comparison = compare(file.measurements.values(), simulate_all(file, simulate))
    sections = [provenance(study, file), errors(study, comparison), worst(comparison), topk(file), tensor_cores(file)]
    return tuple(section for section in sections if section is not None)


def gap(study: MeasuredStudy) -> Section:
    """The page of a study that nobody has measured yet."""
    return Section(
        title="Not measured yet",
        verdict="not comparable",
        text=(
            f"There is no {study.measurements} beside this study: no measurement on the real device exists, so "
            f"nothing here says how well {study.accelerator} describes it.\n\nOn a machine that has the device, "
            "this fills the gap, in slices of nine minutes, about three for everything:\n"
            "python -m hwsim.measurement.suite --suite all --minutes 9 --resume --device cuda "
            f"--out reports/{study.name}"
        ),
    )


def simulate_all(file: MeasurementFile, simulate: Simulate) -> dict[str, SimulationResult]:
    """Simulate the work of every measurement that has a model; what the machine refuses is left out."""
    results: dict[str, SimulationResult] = {}
    known: dict[tuple[object, ...], SimulationResult | None] = {}
    for entry in file.measurements.values():
        key = _work_key(entry)
        if key not in known:
            workload = workload_of(entry)
            try:
                known[key] = None if workload is None else simulate(workload)
            except HwsimError:
                known[key] = None
        found = known[key]
        if found is not None:
            results[entry.id] = found
    return results


def _work_key(entry: Measurement) -> tuple[object, ...]:
    return (entry.family, entry.operation, entry.kernel, entry.dtype, *entry.shape.items())


def provenance(study: MeasuredStudy, file: MeasurementFile) -> Section:
    """What was measured, where and with which software."""
    versions = file.device.get("versions", {})
    rows = [(key, str(value)) for key, value in file.device.items() if key != "versions"]
    rows += [(f"version of {key}", str(value)) for key, value in versions.items()]
    dates = sorted(entry.date for entry in file.measurements.values())
    commits = sorted({entry.commit[:12] for entry in file.measurements.values()})
    rows += [("measured", f"{dates[0]} to {dates[-1]}" if dates else "nothing"), ("commits", ", ".join(commits))]
    includes = sorted({entry.timing.includes for entry in file.measurements.values()})
    counts: dict[str, int] = {}
    for entry in file.measurements.values():
        counts[entry.family] = counts.get(entry.family, 0) + 1
    families = tuple((family, count) for family, count in counts.items())
    failed = tuple((failure.id, failure.reason) for failure in list(file.failures.values())[:40])
    return Section(
        title="What was measured",
        text=(
            f"{len(file.measurements)} kernels, each after a passed check of its result; {len(file.failures)} cases "
            "failed and "
            f"{file.remaining} are still to be measured.\n\nA time is the median: " + "; ".join(includes) + "."
        ),
        tables=(
            Table(title="Device and software", columns=(Column(name="what"), Column(name="value")), rows=tuple(rows)),
            Table(
                title="Kernels by family",
                columns=(Column(name="family"), Column(name="measured", kind="number", digits=0)),
                rows=families,
            ),
            *(
                [
                    Table(
                        title="Cases without a measurement",
                        columns=(Column(name="case"), Column(name="why")),
                        rows=failed,
                    )
                ]
                if failed
                else []
            ),
        ),
    )


def errors(study: MeasuredStudy, comparison: Comparison) -> Section:
    """Measured against simulated: the figure, and errors by pass, format and group, all rows and the held-out ones."""
    _, held = comparison.held_out(study.held_out)
    gates = study.gates
    rows = []
    for name, keep, gate, short in (
        ("dense GEMMs", lambda p: p.measurement.family == "dense_gemm", gates.dense_gemm, gates.dense_gemm_short_us),
        ("top-k kernels", lambda p: p.measurement.family == "topk_backward", gates.topk_backward, None),
        ("convolutions", lambda p: p.measurement.family == "convolution", None, None),
        ("memory and optimizer", lambda p: p.measurement.family in ("memory", "optimizer"), None, None),
        ("whole steps", lambda p: p.measurement.family == "training_step", None, None),
    ):
        summary = held.summary(name, keep)
        if summary.rows or summary.short_rows:
            rows.append((*_summary_row(summary), judge(summary, gate, short)))
    groups = comparison.by(lambda m: f"{m.family} {m.operation} {m.dtype}")
    count, energy = comparison.energy_mape()
    text = f"{len(comparison.pairs)} kernels have a model, {len(comparison.unmodeled)} have none."
    verdicts = [row[-1] for row in rows]
    if energy is not None:
        verdicts.append("passed" if energy <= gates.energy else "failed")
        verdict = "within" if energy <= gates.energy else "beyond"
        text += f" Energy: mean error {energy:.1%} over {count} kernels, {verdict} the {gates.energy:.0%} promised."
    columns = _summary_columns()
    return Section(
        title="Simulated against measured",
        verdict=overall(verdicts),
        text=text,
        figures=tuple(
            _scatter(comparison, family)
            for family in ("dense_gemm", "topk_backward", "convolution", "training_step")
            if any(pair.measurement.family == family for pair in comparison.pairs)
        ),
        tables=(
            Table(
                title=f"Held-out shapes ({study.held_out:.0%} of all)",
                columns=(*columns, Column(name="verdict", kind="verdict")),
                rows=tuple(rows),
                note="MAPE over kernels of 20 us and more; 95 % interval by bootstrap over shapes; below 20 us the "
                "mean difference in us.",
            ),
            Table(
                title="All shapes, by kernel and format", columns=columns, rows=tuple(_summary_row(s) for s in groups)
            ),
        ),
    )


def judge(summary: Summary, gate: float | None, short_us: float | None) -> str | None:
    """passed or failed against the gates that apply; None where nothing was promised or nothing is there."""
    verdicts = []
    if gate is not None and summary.mape is not None:
        verdicts.append(summary.mape <= gate)
    if short_us is not None and summary.short_us is not None:
        verdicts.append(summary.short_us <= short_us)
    return None if not verdicts else "passed" if all(verdicts) else "failed"


def overall(verdicts: Iterable[object]) -> Literal["passed", "failed"] | None:
    """Failed if one part failed, passed if one passed and none failed, None if nothing was promised."""
    given = list(verdicts)
    return "failed" if "failed" in given else "passed" if "passed" in given else None


def worst(comparison: Comparison) -> Section | None:
    """The kernels that the machine describes worst."""
    pairs = comparison.worst(15)
    if not pairs:
        return None
    rows = tuple(
        (
            pair.measurement.id,
            pair.measurement.timing.time_us,
            pair.simulated_us,
            pair.error,
            pair.measurement.tflops,
            pair.measurement.gb_per_s,
        )
        for pair in pairs
    )
    columns = (
        Column(name="kernel"),
        Column(name="measured", unit="us", kind="number"),
        Column(name="simulated", unit="us", kind="number"),
        Column(name="error", unit="%", kind="percent", digits=1),
        Column(name="rate", unit="TFLOP/s", kind="number"),
        Column(name="traffic", unit="GB/s", kind="number"),
    )
    return Section(
        title="Worst cases",
        text="Largest ratios of simulated and measured time.",
        tables=(Table(title="Worst cases", columns=columns, rows=rows),),
    )


def topk(file: MeasurementFile) -> Section | None:
    """Speed-up of top-k over k, its break-even, and the shape beside the paper's."""
    curves = speed_ups(file.measurements.values())
    if not curves:
        return None
    wide = [c for c in curves if (c.out, c.inputs, c.batch) == (8192, 8192, 1024)]
    named = lambda c: f"{c.kernel}, {c.dtype}, {c.out} x {c.inputs}, batch {c.batch}"  # noqa: E731
    series = tuple(
        Series(name=named(c), x=[float(k) for k, _ in c.ratios], y=[r for _, r in c.ratios], style="line")
        for c in curves
    )
    rows = tuple((named(c), c.dense_us, max(r for _, r in c.ratios), c.break_even) for c in curves)
    columns = (
        Column(name="layer"),
        Column(name="dense backward", unit="us", kind="number"),
        Column(name="largest speed-up", kind="ratio"),
        Column(name="break-even k", kind="number"),
    )
    tables = [Table(title="Break-even", columns=columns, rows=rows, note="A dash: no crossing among the measured k.")]
    for curve in wide:
        table = shape_against_table7(curve)
        tables.append(
            Table(
                title=f"Speed-up over k: {named(curve)}",
                columns=(
                    Column(name="k", kind="number", digits=0),
                    Column(name="GTX 1080, published", kind="ratio"),
                    Column(name="here", kind="ratio"),
                ),
                rows=tuple(table),
                note="Only the shape compares: the paper states neither layers nor iterations, and its dense baseline "
                "is of 2017.",
                source="Sun et al., meProp, arXiv 1706.06197, table 7",
            )
        )
    figure = Figure(
        title="Backward of one layer: dense time over top-k time",
        x=Axis(label="kept k", scale="log"),
        y=Axis(label="speed-up", scale="log"),
        series=series,
        lines=(ReferenceLine(label="break-even", at=1.0),),
    )
    return Section(
        title="What top-k gains on the real device",
        text="Selection, gather, both products, zero-fill and scatter are in the time.",
        figures=(figure,),
        tables=tuple(tables),
    )


def tensor_cores(file: MeasurementFile) -> Section | None:
    """The named MACs against the live chip."""
    if not file.tensor_core:
        return None
    rows = []
    for case in file.tensor_core.values():
        wrong = case.get("mismatches")
        layer = sum(case["layer"].values()) if case.get("layer") else None
        verdict = None if wrong is None else "passed" if wrong == 0 and not layer else "failed"
        rows.append((case["id"], case.get("dots"), wrong, layer, case.get("reason", case.get("against", "")), verdict))
    columns = (
        Column(name="instruction"),
        Column(name="dots", kind="number", digits=0),
        Column(name="mismatches", kind="number", digits=0),
        Column(name="in a layer's GEMMs", kind="number", digits=0),
        Column(name="against"),
        Column(name="verdict", kind="verdict"),
    )
    return Section(
        title="Tensor cores, bit for bit",
        verdict=overall(row[-1] for row in rows),
        tables=(Table(title="Single instructions", columns=columns, rows=tuple(rows)),),
        text="Random and adversarial dot products, and the three GEMMs of a layer with the order of steps fixed.",
    )


def _summary_columns() -> tuple[Column, ...]:
    return (
        Column(name="kernels"),
        Column(name="rows", kind="number", digits=0),
        Column(name="MAPE", unit="%", kind="percent", digits=1),
        Column(name="95 % interval", unit="%"),
        Column(name="bias", unit="%", kind="percent", digits=1),
        Column(name=f"rows under {SHORT_US:.0f} us", kind="number", digits=0),
        Column(name="mean difference there", unit="us", kind="number", digits=2),
    )


def _summary_row(s: Summary) -> tuple[str | int | float | None, ...]:
    interval = (
        None if s.mape_low is None or s.mape_high is None else f"{100 * s.mape_low:.1f} to {100 * s.mape_high:.1f}"
    )
    return (s.name, s.rows, s.mape, interval, s.bias, s.short_rows, s.short_us)


def _scatter(comparison: Comparison, family: str) -> Figure:
    pairs = [pair for pair in comparison.pairs if pair.measurement.family == family]
    thin = max(1, -(-len(pairs) // PLOTTED))
    chosen: dict[str, list] = {}
    for pair in pairs[::thin]:
        chosen.setdefault(pair.measurement.operation, []).append(pair)
    series = tuple(
        Series(
            name=name,
            x=[pair.measurement.timing.time_us for pair in group],
            y=[pair.simulated_us for pair in group],
            labels=[
                f"{pair.measurement.kernel} {pair.measurement.dtype} {dict(pair.measurement.shape)}" for pair in group
            ],
        )
        for name, group in chosen.items()
    )
    return Figure(
        title=f"{family.replace('_', ' ')}: simulated against measured",
        x=Axis(label="measured", unit="us", scale="log"),
        y=Axis(label="simulated", unit="us", scale="log"),
        identity=True,
        identity_band=0.1,
        series=series,
        caption="" if thin == 1 else f"every {thin}th kernel is drawn",
    )
