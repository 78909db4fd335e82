"""Machines and workloads that the simulator's tests share, drawn from a seed or built from a few numbers."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hwsim.hardware.accelerator import Accelerator
from hwsim.simulation.topology import ConvShape, LinearShape, RandomTopK, Shape, workload_of
from hwsim.spec import load_yaml
from hwsim.workload import Workload

ROOT = Path(__file__).resolve().parents[2]


def changed(machine: Accelerator, **blocks: dict[str, Any]) -> Accelerator:
    """The machine with some fields of some blocks replaced: ``changed(chip, dram={"latency_ns": 0})``."""
    update: dict[str, Any] = {}
    for block, values in blocks.items():
        if block == "scratchpad":
            update["memories"] = (machine.memories[0].model_copy(update=values), *machine.memories[1:])
        else:
            update[block] = getattr(machine, block).model_copy(update=values)
    return machine.model_copy(update=update)


@pytest.fixture(scope="session")
def chip() -> Accelerator:
    return load_yaml(ROOT / "accelerators" / "systolic_32x32.yaml", Accelerator)


@pytest.fixture(scope="session")
def change() -> Callable[..., Accelerator]:
    return changed


@pytest.fixture(scope="session")
def unlimited(chip: Accelerator) -> Accelerator:
    """A machine that never waits for memory: what is left is the arrays' own time."""
    return changed(
        chip,
        dram={"peak_gb_per_s": 1e9, "latency_ns": 0},
        scratchpad={"capacity_kib": 1e9, "bytes_per_cycle": 1e9, "latency_cycles": 0, "resident_kib": 0},
    )


@pytest.fixture(scope="session")
def random_machine(chip: Accelerator) -> Callable[[random.Random], Accelerator]:
    def draw(rng: random.Random) -> Accelerator:
        machine = changed(
            chip,
            arrays={
                "rows": rng.choice([4, 8, 16]),
                "cols": rng.choice([4, 8, 16]),
                "count": rng.choice([1, 1, 3]),
                "depth": rng.choice([1, 1, 2]),
                "dataflow": rng.choice(["any", "weight_stationary", "output_stationary", "input_stationary"]),
                "folds": rng.choice(["separate", "back_to_back"]),
                "skewed": rng.random() < 0.7,
                "macs_per_cycle": {"float32": rng.choice([64, 256]), "int8": rng.choice([256, 512])},
            },
            dram={
                "peak_gb_per_s": rng.choice([0.7, 3.0, 16.0, 100.0]),
                "burst_bytes": rng.choice([1, 32, 64]),
                "latency_ns": rng.choice([0, 10, 333]),
            },
            scratchpad={
                "capacity_kib": rng.choice([8, 16, 64]),
                "bytes_per_cycle": rng.choice([8, 64, 512]),
                "latency_cycles": rng.choice([0, 3]),
                "buffers": rng.choice([1, 2, 2, 3]),
                "resident_kib": rng.choice([0, 2]),
            },
            vector={"lanes": rng.choice([2, 16]), "fused": rng.random() < 0.5},
            sparsity={
                "supports": tuple(
                    ability
                    for ability in ("gather", "row_skipping", "tile_union", "zero_gating", "zero_skipping")
                    if rng.random() < 0.4
                )
            },
        )
        if rng.random() < 0.3:
            outer = machine.memories[0].model_copy(
                update={"name": "buffer", "capacity_kib": 256, "bytes_per_cycle": rng.choice([16, 128])}
            )
            machine = machine.model_copy(update={"memories": (machine.memories[0], outer)})
        return machine.model_copy(
            update={
                "transpose": rng.choice(["port", "copy"]),
                "select": rng.choice([machine.select, None]),
            }
        )

    return draw


@pytest.fixture(scope="session")
def random_step() -> Callable[[random.Random], Workload]:
    """A small training step: two or three layers, dense or pruned in either scope."""

    def draw(rng: random.Random) -> Workload:
        layers: list[Shape] = []
        if rng.random() < 0.3:
            size, channels = rng.randint(4, 9), rng.randint(1, 6)
            conv = ConvShape(
                "conv", channels, (size, size), rng.randint(2, 12), (3, 3), (rng.randint(1, 2),) * 2, (1, 1)
            )
            layers.append(conv)
            inputs = conv.filters * conv.out_size[0] * conv.out_size[1]
        else:
            inputs = rng.randint(3, 60)
        for number in range(rng.randint(1, 3)):
            outputs = rng.randint(2, 60)
            layers.append(LinearShape(f"fc{number}", inputs, outputs))
            inputs = outputs
        scope = rng.choice(["batch", "example", ""])
        topk = RandomTopK(rng.randint(1, 20), scope, rng.randint(0, 99), rng.randint(1, 2)) if scope else None
        return workload_of(
            layers, batch=rng.randint(1, 12), format=rng.choice(["float32", "int8"]), training=True, topk=topk,
            optimizer_states=rng.randint(0, 2),
        )  # fmt: skip

    return draw
