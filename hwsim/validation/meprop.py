"""meProp's GPU tables: how the speed-up of top-k backprop falls as k grows, on a described GTX 1080.

Sun et al., ICML 2017 (arXiv 1706.06197), tables 7 and 8, measured on a GTX 1080. They state neither the number of
layers nor that of iterations (nor, for table 8, the mini-batch), so milliseconds cannot be compared, ratios can.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from hwsim.hardware.accelerator import Accelerator
from hwsim.section import Axis, Column, Figure, Section, Series, Table
from hwsim.simulation.engine import simulate
from hwsim.simulation.topology import LinearShape, RandomTopK, workload_of
from hwsim.workload import Workload

WIDTH = 8192
BATCH = 1024
KEPT = (8, 16, 32, 64, 128, 256, 512)
SOURCE = "Sun et al., meProp, ICML 2017, arXiv 1706.06197, tables 7 and 8 (GTX 1080)"
TABLE_7_MS = (308.00, 8.37, 9.16, 11.20, 14.38, 21.28, 38.57, 69.95)  # dense, then by k
TABLE_8_MS = (17696.2, 1501.5, 1542.8, 1656.9, 1828.3, 2200.0, 3149.6, 4874.1)


@dataclass(frozen=True)
class Speedups:
    """Dense time over top-k time by k: measured and simulated."""

    measured: np.ndarray
    simulated: np.ndarray

    @property
    def worst_factor(self) -> float:
        """Largest factor between the two, either way."""
        return float(np.exp(np.abs(np.log(self.simulated / self.measured)).max()))

    @property
    def scaled_worst_factor(self) -> float:
        """The same for the shape alone: after the best common factor."""
        logs = np.log(self.simulated / self.measured)
        return float(np.exp(np.abs(logs - (logs.max() + logs.min()) / 2).max()))


def one_layer(machine: Accelerator, kept: Sequence[int] = KEPT) -> np.ndarray:
    """Return the speed-up by k of table 7: both backward GEMMs of one hidden layer, with selection and gathering."""
    layers = [LinearShape(name, WIDTH, WIDTH) for name in ("before", "layer", "after")]

    def time_us(workload: Workload) -> float:
        step = simulate(workload, machine).steps[0]
        mine = [op for op in step.ops if op.layer == "layer" and op.phase == "backward"]
        wanted = [op for op in mine if op.kind in ("gemm", "select", "gather", "scatter")]
        launches = machine.launch.overhead_us * len(wanted) if machine.launch else 0.0
        cycles = sum(op.end_cycle - op.start_cycle for op in wanted)
        return cycles / (machine.clock.running_ghz * 1e3) + launches

    return _speedups(layers, time_us, kept)


def whole_backward(machine: Accelerator, kept: Sequence[int] = KEPT) -> np.ndarray:
    """Return the speed-up by k of table 8: from the loss back to the first layer of a 784-8192-8192-10 network."""
    layers = [LinearShape("first", 784, WIDTH), LinearShape("second", WIDTH, WIDTH), LinearShape("output", WIDTH, 10)]

    def time_us(workload: Workload) -> float:
        step = simulate(workload, machine).steps[0]
        wanted = [op for op in step.ops if op.phase in ("backward", "loss")]
        launches = machine.launch.overhead_us * len(wanted) if machine.launch else 0.0
        return sum(op.end_cycle - op.start_cycle for op in wanted) / (machine.clock.running_ghz * 1e3) + launches

    return _speedups(layers, time_us, kept)


def _speedups(layers: Sequence[LinearShape], time_us: Callable[[Workload], float], kept: Sequence[int]) -> np.ndarray:
    dense = time_us(workload_of(layers, batch=BATCH, training=True))
    sparse = [time_us(workload_of(layers, batch=BATCH, training=True, topk=RandomTopK(k))) for k in kept]
    return dense / np.array(sparse)


def beside(measured_ms: Sequence[float], simulated: np.ndarray) -> Speedups:
    """Return a table's speed-ups beside simulated ones."""
    return Speedups(measured_ms[0] / np.array(measured_ms[1:]), simulated)


def meprop_section(machine: Accelerator) -> Section:
    """Both tables, measured beside simulated."""
    found = {
        "table 7, one layer": beside(TABLE_7_MS, one_layer(machine)),
        "table 8, whole backward": beside(TABLE_8_MS, whole_backward(machine)),
    }
    falls = all(np.all(np.diff(speedups.simulated) < 0) for speedups in found.values())
    alike = all(speedups.scaled_worst_factor <= 2.0 for speedups in found.values())
    rows = [
        (name, kept, float(measured), float(simulated))
        for name, speedups in found.items()
        for kept, measured, simulated in zip(KEPT, speedups.measured, speedups.simulated, strict=True)
    ]
    styles: tuple[tuple[str, Literal["points", "line"]], ...] = (("measured", "points"), ("simulated", "line"))
    shapes = ", ".join(f"{name}: {speedups.scaled_worst_factor:.2f}" for name, speedups in found.items())
    return Section(
        title=f"meProp's speed-up over k on {machine.name}",
        verdict="confirmed" if falls and alike else "not confirmed",
        text=(
            "Dense backward time over top-k backward time, selection and gathering included, batch 1024, width 8192. "
            "Nothing is fitted to these tables; the machine is described from its data sheet and the V100's fit. "
            "The paper states no layer counts, iterations or (table 8) mini-batch, so only ratios are compared: "
            "the verdict asks that the speed-up falls with k and that its shape, up to one common factor, stays within "
            f"a factor of 2 at every k. Largest factor in shape: {shapes}."
        ),
        figures=(
            Figure(
                title="Speed-up of the backward pass over k",
                x=Axis(label="kept (k)", scale="log"),
                y=Axis(label="dense time / top-k time", scale="log"),
                series=tuple(
                    Series(
                        name=f"{name}, {who}",
                        x=tuple(float(k) for k in KEPT),
                        y=tuple(map(float, getattr(speedups, who))),
                        style=style,
                    )
                    for name, speedups in found.items()
                    for who, style in styles
                ),
                source=SOURCE,
            ),
        ),
        tables=(
            Table(
                title="Speed-up by k",
                columns=(
                    Column(name="table"),
                    Column(name="k", kind="number", digits=0),
                    Column(name="measured", kind="ratio", digits=1),
                    Column(name="simulated", kind="ratio", digits=1),
                ),
                rows=tuple(rows),
                source=SOURCE,
            ),
        ),
    )
