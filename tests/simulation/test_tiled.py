"""Tiles in waves: the closed form is what both engines run, and it obeys bounds that hold for any machine."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest

from hwsim.arithmetic.named import parse_format
from hwsim.catalog import accelerators, load_accelerator
from hwsim.hardware.accelerator import Accelerator
from hwsim.simulation import processes, recurrence
from hwsim.simulation.engine import simulate, simulate_gemms
from hwsim.simulation.lowering import Lowering
from hwsim.simulation.program import TICKS_PER_CYCLE, Job, sum_counts
from hwsim.simulation.tiled import TiledWork, convolution_work, gemm_work, plan
from hwsim.simulation.tiled_gemm import nodes_of
from hwsim.simulation.topology import ConvShape, LinearShape, RandomTopK, workload_of
from hwsim.workload import ConvGeometry, Gemm

TILED = [name for name in accelerators() if load_accelerator(name).tiled is not None]
BF16, F32 = parse_format("bfloat16"), parse_format("float32")


def dense(machine: Accelerator, m: int, n: int, k: int) -> TiledWork:
    number = F32 if machine.arrays.macs_per_cycle.get("float32") else BF16
    return gemm_work(m, n, k, machine, (number, number, number))


def shapes(seed: int, count: int):
    rng = random.Random(seed)
    return [tuple(int(2 ** rng.uniform(0, 11)) for _ in range(3)) for _ in range(count)]


@pytest.mark.parametrize("name", TILED)
def test_closed_form_recurrence_and_events_agree(name):
    machine = load_accelerator(name)
    lowering = Lowering(machine)
    for m, n, k in shapes(1, 12):
        chosen = plan(dense(machine, m, n, k), machine)
        job = [Job("gemm", "array", nodes_of(chosen, machine, lowering))]
        buffers = machine.scratchpad.buffers
        fast = recurrence.run(job, buffers, 0)[0]
        slow = processes.run(job, buffers, 0)[0][0]
        assert fast == slow
        # Every stage rounds its times up to a tick.
        late = fast.done / TICKS_PER_CYCLE - float(chosen.cycles)
        assert 0 <= late <= (3 * float(chosen.stages) + 3) / TICKS_PER_CYCLE


def test_the_agreement_can_fail():
    """A plan whose load is doubled after the choice no longer takes the cycles that it states."""
    machine = load_accelerator("nvidia_v100")
    chosen = plan(dense(machine, 64, 4096, 4096), machine)
    slower = replace(chosen, load=2 * chosen.load)
    done = recurrence.run([Job("gemm", "array", nodes_of(slower, machine, Lowering(machine)))], 2, 0)[0].done
    assert done / TICKS_PER_CYCLE > 1.2 * float(chosen.cycles)


@pytest.mark.parametrize("name", TILED)
def test_many_at_once_are_as_one_by_one(name):
    machine = load_accelerator(name)
    cases = shapes(2, 40)
    m, n, k = (np.array(axis) for axis in zip(*cases, strict=True))
    together = plan(dense(machine, m, n, k), machine)
    for index, case in enumerate(cases):
        alone = plan(dense(machine, *case), machine)
        assert float(alone.cycles) == float(together.cycles[index])
        assert str(alone).startswith(f"tile={int(together.tile_m[index])}x{int(together.tile_n[index])}")


@pytest.mark.parametrize("name", TILED)
def test_no_plan_beats_peak_or_compulsory_traffic(name):
    machine = load_accelerator(name)
    for m, n, k in shapes(3, 60):
        work = dense(machine, m, n, k)
        cycles = float(plan(work, machine).cycles)
        assert cycles >= m * n * k / (work.macs_per_cycle * machine.arrays.count) * (1 - 1e-9)
        traffic = work.a_bytes + work.b_bytes + work.c_bytes
        assert cycles >= traffic / float(machine.dram_bytes_per_cycle) * (1 - 1e-9)


@pytest.mark.parametrize("name", TILED)
def test_a_large_gemm_comes_near_the_bound_of_the_busiest_array(name):
    """8192 cubed: whole waves of the largest tile, so nothing but rounds and the first step is lost."""
    machine = load_accelerator(name)
    work = dense(machine, 8192, 8192, 8192)
    ideal = 8192**3 / (work.macs_per_cycle * machine.arrays.count)
    assert ideal <= float(plan(work, machine).cycles) <= 1.35 * ideal


@pytest.mark.parametrize("name", TILED)
def test_more_of_anything_is_never_slower(name):
    machine = load_accelerator(name)
    dram = machine.dram.model_copy(update={"peak_gb_per_s": 2 * machine.dram.peak_gb_per_s})
    richer = machine.model_copy(update={"dram": dram})
    for m, n, k in shapes(4, 40):
        cycles = [float(plan(dense(each, m, n, k), each).cycles) for each in (machine, richer)]
        assert cycles[1] <= cycles[0]
        larger = float(plan(dense(machine, m, n, 2 * k), machine).cycles)
        assert larger >= cycles[0] * (1 - 1e-9)


def test_bytes_are_those_of_the_plan_and_whole_bursts():
    machine = load_accelerator("nvidia_a100_80g")
    chosen = plan(dense(machine, 333, 777, 1234), machine)
    counts = sum_counts(nodes_of(chosen, machine, Lowering(machine)))
    burst = machine.dram.burst_bytes
    assert counts.dram_read % burst == 0
    assert 0 <= counts.dram_read - float(chosen.dram_read) < burst
    assert 0 <= counts.dram_written - float(chosen.dram_written) < burst


def test_one_tile_is_its_steps_one_after_the_other():
    """By hand: one 128 x 128 tile, k = 64, on one SM of a V100 with 16 float32 k a step and no reuse to find."""
    machine = load_accelerator("nvidia_v100")
    tiled = machine.tiled.model_copy(
        update={"tiles": ((128, 128),), "split_k": (1,), "step_floor_ns": 0.0, "convolution": None,
                "k_contiguous_efficiency": 1.0}
    )  # fmt: skip
    machine = machine.model_copy(update={"tiled": tiled})
    chosen = plan(gemm_work(128, 128, 64, machine, (F32, F32, F32)), machine)
    per_cycle = float(machine.dram_bytes_per_cycle)
    load = (3 * 4 * 128 * 64 + 4 * 128 * (128 - 64)) / per_cycle / 4  # a, b and c in four steps
    l2 = 256 * 16 * 4 / (machine.outermost.bytes_per_cycle / 80)
    compute = max(128 * 128 * 16 / 64, l2)
    assert int(chosen.stages) == 4
    assert float(chosen.load) == pytest.approx((2 * 4 * 128 * 64 + 4 * 128 * 128) / per_cycle / 4)
    assert load == pytest.approx(float(chosen.load))
    assert float(chosen.cycles) == pytest.approx(load + 3 * max(load, compute) + compute)


def conv(batch=16, channels=64, size=28, filters=128, kernel=3, stride=1) -> ConvGeometry:
    out = (size + 2 * (kernel // 2) - kernel) // stride + 1
    return ConvGeometry(batch, channels, (size, size), filters, (out, out), (kernel, kernel), (stride, stride),
                        (kernel // 2, kernel // 2))  # fmt: skip


@pytest.mark.parametrize("gemm", list(Gemm))
def test_convolution_work_covers_its_macs(gemm):
    machine = load_accelerator("nvidia_v100")
    for stride in (1, 2):
        layer = conv(stride=stride)
        work = convolution_work(layer, gemm, machine, (F32, F32, F32))
        macs = 16 * layer.out_size[0] ** 2 * 128 * 64 * 9
        assert work.m * work.n * work.k >= macs
        if stride == 1:
            assert work.m * work.n * work.k == macs


def test_channels_that_do_not_fit_the_matrix_units_are_slow():
    machine = load_accelerator("nvidia_v100")
    half = parse_format("float16")

    def cycles(channels: int) -> float:
        work = convolution_work(conv(channels=channels), Gemm.OUTPUT, machine, (half, half, half))
        return float(plan(work, machine).cycles)

    assert cycles(60) > 2 * cycles(64)


def test_a_training_step_on_a_gpu_adds_up_on_both_engines():
    machine = load_accelerator("nvidia_gtx_1080")
    layers = [ConvShape("conv", 3, (12, 12), 8, (3, 3)), LinearShape("fc", 800, 50), LinearShape("out", 50, 10)]
    work = workload_of(layers, batch=8, training=True, topk=RandomTopK(5))
    fast, events = (simulate(work, machine, engine) for engine in ("fast", "events"))
    assert fast.cycles == events.cycles
    assert fast.energy_pj == pytest.approx(sum(part.nominal for part in fast.energy.values()))
    for op in fast.steps[0].ops:
        assert op.busy_cycles + sum(op.stalls.values()) == pytest.approx(op.end_cycle - op.start_cycle)


def test_the_chosen_layout_is_reported():
    result = simulate_gemms([(64, 4096, 4096, "float32")], load_accelerator("nvidia_v100"))
    op = result.steps[0].ops[0]
    assert "tile=" in op.mapping and "split_k=" in op.mapping
