"""meProp's speed claims taken apart: Tables 1 and 2 beside counts, 7 and 8 beside a simulated GPU, and processors here.

Sun, Ren, Ma, Wang, ICML 2017, arXiv 1706.06197. Its CPU times are of scalar loops, so their ratios should follow the
count of multiplications; its GPU times are of an unstated number of layers and iterations, so only ratios compare.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, log
from pathlib import Path

import numpy as np

from hwsim.analysis.break_even import crossing
from hwsim.analysis.cpu_record import CpuRecord
from hwsim.analysis.meprop_counts import Layer, backward_gain, mnist, parser, tagger, total_gain
from hwsim.catalog import load_accelerator
from hwsim.measurement.compare import speed_ups
from hwsim.measurement.record import FILE_NAME, MeasurementFile
from hwsim.section import Axis, Cell, Column, Figure, ReferenceLine, Section, Series, Table
from hwsim.spec import load_json
from hwsim.validation.meprop import KEPT, SOURCE, TABLE_7_MS, TABLE_8_MS, one_layer, whole_backward

PAPER = "Sun et al., meProp, ICML 2017, arXiv 1706.06197"
CPU_FILE = "cpu.json"
GPU_FOLDER = "gpu_h200"
GPU = "nvidia_gtx_1080"
MORE_KEPT = (*KEPT, 1024, 2048, 4096, 6144)
FOLLOWS = 2.0  # a published ratio follows the count if the two are within this factor

# task, optimizer, k, published speed-up of the linear part of backprop, layers
TABLE_1 = (
    ("MNIST", "AdaGrad", 10, 41.7, mnist()),
    ("MNIST", "Adam", 20, 21.4, mnist()),
    ("parsing", "AdaGrad", 20, 18.1, parser()),
    ("parsing", "Adam", 20, 18.6, parser()),
    ("tagging, gates together", "AdaGrad", 5, 69.2, tagger(False)),
    ("tagging, gates together", "Adam", 5, 65.4, tagger(False)),
    ("tagging, gates apart", "Adam", 5, 65.4, tagger(True)),
)
# task, k, seconds an epoch: dense forward, dense backprop, top-k forward, top-k backprop
TABLE_2 = (
    ("MNIST", 20, 69, 171, 68, 9, mnist()),
    ("parsing", 20, 3906, 9114, 4002, 513, parser()),
    ("tagging, gates together", 5, 7334, 16522, 7362, 540, tagger(False)),
    ("tagging, gates apart", 5, 7334, 16522, 7362, 540, tagger(True)),
)


def counts_section() -> Section:
    """Tables 1 and 2 beside the ratio of multiplications."""
    one = [(task, opt, k, theirs, backward_gain(layers, k)) for task, opt, k, theirs, layers in TABLE_1]
    worst = max(exp(abs(log(theirs / ours))) for _, _, _, theirs, ours in one)
    two: list[tuple[Cell, ...]] = [
        (task, k, back / back_k, backward_gain(layers, k), (fore + back) / (fore_k + back_k), total_gain(layers, k))
        for task, k, fore, back, fore_k, back_k, layers in TABLE_2
    ]
    ratio = {"kind": "ratio", "digits": 1}
    return Section(
        title="The CPU speed-ups are counts of multiplications",
        verdict="confirmed" if worst <= FOLLOWS else "not confirmed",
        text=(
            "The authors' times are of scalar C# loops at about 0.3 GMAC/s, dense and sparse alike, so a speed-up is "
            f"the ratio of multiplications, and they agree within a factor of {worst:.2f} here. They are no speed-ups "
            "over a tuned library, and they leave the optimizer's dense update out. The verdict asks for a factor of "
            f"{FOLLOWS:g} at most. Forward and backward together gain 3 times by their clock; by count less, because "
            "their backward pass was slower for each multiplication than their forward pass."
        ),
        figures=(
            Figure(
                title="Table 1: published speed-up and ratio of multiplications",
                x=Axis(label="task"),
                y=Axis(label="dense over top-k"),
                series=[
                    Series(name="published", x=_names(one), y=[row[3] for row in one], marker="diamond"),
                    Series(name="multiplications", x=_names(one), y=[row[4] for row in one], marker="circle"),
                ],
                horizontal=True,
                source=f"{PAPER}, table 1",
            ),
        ),
        tables=(
            Table(
                title="Table 1: linear part of backprop",
                columns=(
                    Column(name="task"),
                    Column(name="optimizer"),
                    Column(name="k", kind="number", digits=0),
                    Column(name="published speed-up", **ratio),  # type: ignore[arg-type]
                    Column(name="ratio of multiplications", **ratio),  # type: ignore[arg-type]
                ),
                rows=one,
                note="The tagger's output layer is dense in the paper. It does not say whether k is of each gate or of "
                "all four, so both are counted.",
                source=f"{PAPER}, table 1",
            ),
            Table(
                title="Table 2: whole epochs",
                columns=(
                    Column(name="task"),
                    Column(name="k", kind="number", digits=0),
                    Column(name="backprop, published", **ratio),  # type: ignore[arg-type]
                    Column(name="backward, by count", **ratio),  # type: ignore[arg-type]
                    Column(name="forward and backprop, published", **ratio),  # type: ignore[arg-type]
                    Column(name="forward and backward, by count", **ratio),  # type: ignore[arg-type]
                ),
                rows=two,
                source=f"{PAPER}, table 2 (Adam)",
            ),
        ),
    )


def _names(rows: Sequence[tuple[str, str, int, float, float]]) -> list[str]:
    return [f"{task}, {optimizer}, k={k}" for task, optimizer, k, _, _ in rows]


def fitted_break_even(milliseconds: Sequence[float], width: int) -> float:
    """Return the k at which a straight line through the table's times meets the dense time (an extrapolation)."""
    slope, fixed = np.polyfit(np.array(KEPT, float), np.array(milliseconds[1:]), 1)
    return min(float(width), float((milliseconds[0] - fixed) / slope))


def gpu_section(folder: Path) -> Section:
    """Tables 7 and 8 beside a simulated GTX 1080 and, where it was recorded, a measured GPU."""
    machine = load_accelerator(GPU)
    found = {
        "table 7, one layer": (TABLE_7_MS, one_layer(machine, MORE_KEPT)),
        "table 8, whole backward": (TABLE_8_MS, whole_backward(machine, MORE_KEPT)),
    }
    rows: list[tuple[Cell, ...]] = []
    ends: list[tuple[Cell, ...]] = []
    series = []
    for name, (published, ours) in found.items():
        ratios = [published[0] / ms for ms in published[1:]]
        for place, k in enumerate(MORE_KEPT):
            rows.append((name, k, ratios[place] if place < len(ratios) else None, float(ours[place])))
        fit = fitted_break_even(published, 8192)
        gains = list(zip(map(float, MORE_KEPT), map(float, ours), strict=True))
        ends.append((name, "GTX 1080, published", f"{fit:.0f} (a line through k up to 512, extended)"))
        ends.append((name, f"{GPU}, simulated", crossing(gains)))
        series.append(Series(name=f"{name}, published", x=[float(k) for k in KEPT], y=ratios))
        series.append(Series(name=f"{name}, simulated", style="line", x=[k for k, _ in gains], y=[g for _, g in gains]))
    measured = _measured_gpu(folder)
    ends += measured
    words = (
        "A measured GPU stands in the table of break-evens."
        if measured
        else f"No GPU has been measured yet (reports/{GPU_FOLDER} holds the suite that does it), so simulated numbers "
        "stand alone beside the published ones."
    )
    return Section(
        title="The GPU speed-ups: Tables 7 and 8",
        text=(
            "Batch 1024, width 8192, one choice for the batch; selection, gather and scatter are in the time, the "
            "optimizer's update is not. The paper states neither layers nor iterations, so ratios are compared. "
            + words
        ),
        figures=(
            Figure(
                title="Speed-up over k",
                x=Axis(label="kept (k)", scale="log"),
                y=Axis(label="dense time over top-k time", scale="log"),
                series=series,
                lines=[ReferenceLine(label="break-even", at=1.0)],
                source=SOURCE,
            ),
        ),
        tables=(
            Table(
                title="Tables 7 and 8",
                columns=(
                    Column(name="table"),
                    Column(name="k", kind="number", digits=0),
                    Column(name="published", kind="ratio", digits=1),
                    Column(name="simulated GTX 1080", kind="ratio", digits=1),
                ),
                rows=rows,
                source=SOURCE,
            ),
            Table(
                title="Break-even k of 8192",
                columns=(Column(name="work"), Column(name="machine"), Column(name="pays up to k")),
                rows=ends,
            ),
        ),
    )


def _measured_gpu(folder: Path) -> list[tuple[Cell, ...]]:
    """Return a row for each curve in a recorded GPU file; nothing if there is none."""
    path = folder.parent / GPU_FOLDER / FILE_NAME
    if not path.is_file():
        return []
    found = speed_ups(MeasurementFile.read(path).measurements.values())
    return [
        (
            f"measured, {curve.out} x {curve.inputs}, batch {curve.batch}",
            f"{GPU_FOLDER}: {curve.kernel}, {curve.dtype}",
            crossing(curve.ratios),
        )
        for curve in found
        if len(curve.ratios) > 1
    ]


def cpu_section(folder: Path) -> Section:
    """What top-k gains on a processor that was measured; a plain statement if none was."""
    path = folder / CPU_FILE
    title = "On a processor, measured"
    if not path.is_file():
        return Section(title=title, text=f"Nothing was measured: there is no {CPU_FILE} beside the experiment.")
    record = load_json(path, CpuRecord)
    rows: list[tuple[Cell, ...]] = []
    ends: list[tuple[Cell, ...]] = []
    series = []
    for (width, scope), curve in record.curves().items():
        layer = f"{width} x {width}, over the {scope}"
        rows += [(layer, k, k / width, ratio, backward_gain((Layer(width, width),), k)) for k, ratio in curve]
        ends.append((layer, crossing(curve)))
        series.append(Series(name=layer, style="line", x=[k / width for k, _ in curve], y=[r for _, r in curve]))
    versions = ", ".join(f"{name} {version}" for name, version in sorted(record.versions.items()))
    return Section(
        title=title,
        text=(
            f"Backward pass of one linear layer in hwsim's float32 training, batch {record.batch}, {record.threads} "
            f"thread of {record.device}, {record.date}, {versions}. Dense time (a tuned BLAS) over top-k time, with "
            "ranking, gather and scatter inside; best of interleaved runs."
        ),
        figures=(
            Figure(
                title="Measured speed-up of one layer's backward pass",
                x=Axis(label="kept share", scale="log", percent=True, unit="%"),
                y=Axis(label="dense time over top-k time", scale="log"),
                series=series,
                lines=[ReferenceLine(label="break-even", at=1.0)],
            ),
        ),
        tables=(
            Table(
                title="Measured speed-up",
                columns=(
                    Column(name="layer"),
                    Column(name="k", kind="number", digits=0),
                    Column(name="share", unit="%", kind="percent", digits=0),
                    Column(name="dense over top-k, measured", kind="ratio", digits=2),
                    Column(name="ratio of multiplications", kind="ratio", digits=1),
                ),
                rows=rows,
            ),
            Table(title="Break-even", columns=(Column(name="layer"), Column(name="pays up to k")), rows=ends),
        ),
    )
