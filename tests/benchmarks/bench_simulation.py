"""How fast the simulator is: 78 GEMMs, a ResNet-18 training step, ten million tiles, memory, and starting up.

Run as `python tests/benchmarks/bench_simulation.py`. Times are the best of several runs; targets stand beside them.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from hwsim.hardware.accelerator import Accelerator
from hwsim.hardware.mapping import DATAFLOWS
from hwsim.simulation import recurrence
from hwsim.simulation.engine import gemm_workload, simulate
from hwsim.simulation.program import Job, Pass, Repeat, count_passes
from hwsim.simulation.topology import ConvShape, LinearShape, Shape, workload_of
from hwsim.spec import load_yaml

ACCELERATORS = Path(__file__).resolve().parents[2] / "accelerators"

# The 8 GEMMs of a 784-500-500-10 training step at batch 64, and the 5 that top-k (25 of 500, 5 of 10) reduces.
GEMMS = [
    (64, 500, 784), (64, 500, 500), (64, 10, 500), (64, 500, 500), (64, 500, 10), (500, 784, 64), (500, 500, 64),
    (10, 500, 64), (64, 500, 25), (25, 784, 64), (25, 500, 64), (64, 500, 5), (5, 500, 64),
]  # fmt: skip


def resnet18() -> list[Shape]:
    """The convolutions and the classifier of ResNet-18 for 224 x 224 images (shortcut convolutions left out)."""
    layers: list[Shape] = [ConvShape("conv1", 3, (224, 224), 64, (7, 7), (2, 2), (3, 3))]
    size, channels = 56, 64
    for stage, filters in enumerate((64, 128, 256, 512), 1):
        for block in range(2):
            stride = 2 if stage > 1 and block == 0 else 1
            name = f"layer{stage}.{block}"
            layers.append(ConvShape(f"{name}.conv1", channels, (size, size), filters, (3, 3), (stride, stride), (1, 1)))
            size //= stride
            layers.append(ConvShape(f"{name}.conv2", filters, (size, size), filters, (3, 3), (1, 1), (1, 1)))
            channels = filters
    layers.append(LinearShape("fc", 512, 1000))
    return layers


def best_of(runs: int, work: Callable[[], object]) -> float:
    """Seconds of the fastest of several runs."""
    best = float("inf")
    for _ in range(runs):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best


def load(name: str) -> Accelerator:
    """A shipped machine."""
    return load_yaml(ACCELERATORS / f"{name}.yaml", Accelerator)


def gemm_runs() -> list[tuple[str, float, float]]:
    """78 GEMM runs: 13 GEMMs, two arrays, three dataflows."""
    workload = gemm_workload((m, n, k, "float32") for m, n, k in GEMMS)
    machines = [
        chip.model_copy(update={"arrays": chip.arrays.model_copy(update={"dataflow": flow})})
        for chip in (load("systolic_32x32"), load("systolic_128x128"))
        for flow in DATAFLOWS
    ]
    pins = [{op.id: op.mapping for op in simulate(workload, machine).ops} for machine in machines]
    rows = []
    for engine, target in (("fast", 0.05), ("events", 0.5)):
        searched = best_of(7, lambda engine=engine: [simulate(workload, m, engine) for m in machines])
        pinned = best_of(
            7,
            lambda engine=engine: [
                simulate(workload, m, engine, mapping=p) for m, p in zip(machines, pins, strict=True)
            ],
        )
        rows.append((f"78 GEMM runs, {engine}, mappings searched", searched, target))
        rows.append((f"78 GEMM runs, {engine}, mappings given", pinned, target))
    return rows


def training_step() -> list[tuple[str, float, float]]:
    """A ResNet-18 training step on a 128 x 128 array, mapping search included."""
    workload, chip = workload_of(resnet18(), batch=32, training=True), load("systolic_128x128")
    return [
        (
            f"ResNet-18 training step, batch 32, {engine}",
            best_of(3, lambda e=engine: simulate(workload, chip, e)),
            target,
        )
        for engine, target in (("fast", 3.0), ("events", 30.0))
    ]


def ten_million_tiles() -> list[tuple[str, float, float]]:
    """An op of ten million tiles: the recurrence alone."""
    inner = Repeat(1000, (Pass(10_240, 11_000, 0), Pass(9_216, 8_000, 1_024)))
    nodes = (Repeat(100, (Pass(51_200, 7_777, 3_072), Repeat(50, (inner, Pass(1_024, 2_048, 3_072))))),)
    assert count_passes(nodes) > 10_000_000
    job = Job("op", "array", nodes)
    seconds = best_of(9, lambda: recurrence.run([job], 2, 102_400))
    return [(f"one op of {count_passes(nodes) / 1e6:.1f} million tiles, fast", seconds, 0.010)]


def ten_million_tile_gemm() -> list[tuple[str, float, float]]:
    """The same through the whole way: a GEMM that a small scratchpad cuts into ten million tiles, mapping given."""
    chip = load("systolic_16x16")
    workload = gemm_workload([(16 * 216, 16 * 216, 16 * 216, "float32")])
    mapping = "output_stationary tile=16x16x16 order=mnk keep=c"
    seconds = best_of(5, lambda: simulate(workload, chip, mapping=mapping))
    return [(f"simulate() of a GEMM of {216**3 / 1e6:.1f} million tiles, fast", seconds, 0.010)]


def start_up() -> list[tuple[str, float, float]]:
    """`hwsim simulate` from a cold process, in seconds."""
    command = [sys.executable, "-m", "hwsim.cli.main", "simulate", "--gemm", "64,500,784", "--accelerator"]
    script = Path(sys.executable).with_name("hwsim")
    command = [str(script), *command[3:]] if script.exists() else command

    def run() -> None:
        subprocess.run([*command, "systolic_32x32"], check=True, capture_output=True)

    return [("hwsim simulate --gemm 64,500,784, whole process", best_of(5, run), 0.5)]


def status_mib(field: str) -> float:
    """A field of /proc/self/status (Linux) in MiB."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 1024


def forget_peak() -> None:
    """Start the high-water mark of this process's memory anew (Linux)."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_memory_mib() -> float:
    """MiB that the ResNet-18 step takes beyond its imports, in a fresh process."""
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import bench_simulation as b; "
        "w = b.resnet18(); before = b.status_mib('VmRSS'); b.forget_peak(); "
        "b.simulate(b.workload_of(w, batch=32, training=True), b.load('systolic_128x128'), 'events'); "
        "b.ten_million_tiles(); print(b.status_mib('VmHWM') - before)"
    )
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return float(out.stdout)


def main() -> None:
    """Print the table."""
    print(f"{'what':<58} {'seconds':>9} {'target':>8}")
    for part in (gemm_runs, training_step, ten_million_tiles, ten_million_tile_gemm, start_up):
        for name, seconds, target in part():
            print(f"{name:<58} {seconds:>9.4f} {target:>8.3f}{'' if seconds <= target else '   MISSED'}")
    mib = peak_memory_mib()
    print(f"{'peak memory of the ResNet-18 step above imports':<58} {mib:>7.1f} MiB {100:>5} MiB")


if __name__ == "__main__":
    main()
