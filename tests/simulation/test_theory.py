"""What must hold on any machine: bounds, conservation, and times that follow from first principles."""

from __future__ import annotations

import random

import pytest

from hwsim.arithmetic.named import parse_format
from hwsim.errors import SpecError
from hwsim.hardware.mapping import DATAFLOWS, GemmWork, Mapping, Operand
from hwsim.simulation import recurrence
from hwsim.simulation.bounds import bound_ticks, compulsory_bytes
from hwsim.simulation.engine import simulate, simulate_gemms
from hwsim.simulation.gemm_work import Mapper
from hwsim.simulation.lowering import Lowering, Stream
from hwsim.simulation.program import TICKS_PER_CYCLE, Job, Pass, Repeat, sum_counts
from hwsim.simulation.topology import LinearShape, RandomTopK, workload_of

FLOAT32 = parse_format("float32")


def gemm(m: int, n: int, k: int, rate: int = 1024) -> GemmWork:
    bits = 32 * 256
    return GemmWork(m, n, k, 1, Operand(bits, "k"), Operand(bits, "n"), Operand(bits, "n"), 32, rate_of(rate))


def rate_of(rate: int):
    from fractions import Fraction

    return Fraction(rate)


def run_gemm(machine, work: GemmWork, mapping: Mapping):
    job = Job("gemm", "array", Lowering(machine).gemm(work, mapping))
    latency = round(machine.dram_latency_cycles * TICKS_PER_CYCLE)
    return recurrence.run([job], machine.scratchpad.buffers, latency)[0], sum_counts(job.nodes)


def test_one_tile_is_load_then_latency_then_arrays_then_store(chip):
    work = gemm(64, 96, 128)
    mapping = Mapping("output_stationary", (64, 96, 128), "mnk", "abc")
    times, counts = run_gemm(chip, work, mapping)
    operands = (64 * 128 + 128 * 96) * 4
    arrays = 2 * 3 * 128 + (32 + 32 - 2) + chip.scratchpad.latency_cycles  # folds back to back, one fill and drain
    cycles = operands / 64 + 100 + arrays + 64 * 96 * 4 / 64
    assert times.done == cycles * TICKS_PER_CYCLE
    assert counts.dram_read == operands
    assert counts.dram_written == 64 * 96 * 4


def test_nothing_is_done_one_tick_early():
    """A pass ends at load + latency + compute, its store as much later as it takes; a tick less anywhere shows."""
    work = Pass(30, 50, 20)
    for change in range(3):
        shorter = work._replace(**{("load", "compute", "store")[change]: work[change] - 1})
        full = recurrence.run([Job("x", "array", (work,))], 2, 7)[0]
        less = recurrence.run([Job("x", "array", (shorter,))], 2, 7)[0]
        assert full.done == 30 + 7 + 50 + 20
        assert less.done == full.done - 1


def test_double_buffering_hides_the_shorter_of_load_and_compute():
    for load, compute in ((10, 30), (30, 10), (20, 20)):
        nodes = (Repeat(1000, (Pass(load, compute, 0),)),)
        double = recurrence.run([Job("x", "array", nodes)], 2, 0)[0].end
        single = recurrence.run([Job("x", "array", nodes)], 1, 0)[0].end
        assert double == 1000 * max(load, compute) + min(load, compute)
        assert single == 1000 * (load + compute)


def test_more_bandwidth_is_never_slower_for_a_fixed_mapping(chip, change):
    rng = random.Random(2)
    for _ in range(40):
        work = gemm(*(rng.randint(1, 200) for _ in range(3)))
        tile = tuple(max(1, extent // rng.randint(1, 4)) for extent in (work.m, work.n, work.k))
        mapping = Mapping(rng.choice(DATAFLOWS), tile, rng.choice(("mnk", "knm", "nkm")), rng.choice(("", "ab", "abc")))
        ends = [
            run_gemm(change(chip, dram={"peak_gb_per_s": rate}), work, mapping)[0].done for rate in (1, 2, 7, 64, 500)
        ]
        assert ends == sorted(ends, reverse=True)


def test_the_search_reaches_the_bound_where_memory_or_arrays_alone_decide(chip, change):
    starved = change(chip, dram={"peak_gb_per_s": 0.1, "latency_ns": 0})
    op = simulate_gemms([(64, 64, 4096, "float32")], starved).ops[0]
    assert op.bound_cycles <= op.alone_cycles <= 1.02 * op.bound_cycles
    fed = change(chip, dram={"peak_gb_per_s": 1e6, "latency_ns": 0}, scratchpad={"bytes_per_cycle": 4096})
    op = simulate_gemms([(2048, 512, 512, "float32")], fed).ops[0]
    assert op.bound_cycles <= op.alone_cycles <= 1.05 * op.bound_cycles


def test_no_mapping_beats_the_bound_and_no_traffic_is_less_than_compulsory(random_machine):
    rng = random.Random(8)
    for _ in range(40):
        machine = random_machine(rng)
        work = gemm(*(rng.randint(1, 150) for _ in range(3)), machine.arrays.macs_per_cycle["float32"])
        mapper = Mapper(machine, recurrence_prices())
        try:
            mapping = mapper.choose(work, int(machine.scratchpad.capacity_kib * 1024)).mapping
        except SpecError:
            continue
        times, counts = run_gemm(machine, work, mapping)
        assert times.done >= bound_ticks(work, machine)
        assert counts.dram_read + counts.dram_written >= compulsory_bytes(work)


def recurrence_prices():
    from hwsim.hardware.mapping_search import SearchPrices

    return SearchPrices()


def test_a_machine_without_limits_never_stalls_for_memory(unlimited):
    result = simulate_gemms([(64, 500, 784, "float32"), (300, 20, 70, "float32")], unlimited)
    assert result.stalls["dram"] <= 0.1  # a few ticks of "infinitely" fast transfers
    assert result.stalls["scratchpad"] == 0
    assert result.stalls["fill_drain"] > 0


def step(topk=None):
    layers = [LinearShape("fc1", 100, 80), LinearShape("fc2", 80, 60), LinearShape("fc3", 60, 10)]
    return workload_of(layers, batch=20, training=True, topk=topk)


@pytest.mark.parametrize("topk", [None, RandomTopK(9, "batch"), RandomTopK(9, "example")], ids=str)
def test_everything_adds_up(chip, random_machine, topk):
    rng = random.Random(4)
    for machine in (chip, *(random_machine(rng) for _ in range(6))):
        try:
            result = simulate(step(topk), machine)
        except SpecError:
            continue
        for before, op in zip((None, *result.ops), result.ops, strict=False):
            assert op.start_cycle == (before.end_cycle if before else 0)
            assert op.busy_cycles + sum(op.stalls.values()) == op.cycles
            assert all(cycles >= 0 for cycles in op.stalls.values())
            assert op.macs <= op.mac_slots or op.kind != "gemm"
        assert result.busy_cycles + sum(result.stalls.values()) == pytest.approx(result.cycles, abs=1e-6)
        for key in ("layer", "phase", "gemm", "kind", "op"):
            groups = result.by(key).values()
            assert sum(group.cycles for group in groups) == pytest.approx(result.cycles)
            assert sum(group.energy_pj for group in groups) == pytest.approx(result.energy_pj)
        parts = result.by("component").values()
        assert sum(group.energy_pj for group in parts) == pytest.approx(result.energy_pj)
        assert 0 <= result.utilization <= 1
        assert result.useful_dram_bytes <= result.bytes["dram"]
        low, nominal, high = (getattr(result.energy_range, name) for name in ("low", "nominal", "high"))
        assert low <= nominal <= high


def test_every_byte_that_leaves_dram_arrives_in_the_scratchpad(chip):
    lowering = Lowering(chip)
    one = lowering.make_pass(Stream(128, 100, 100), Stream(64, 60, 60), 5, feed=(7, 9))
    counts = one.counts
    assert (counts.dram_read, counts.dram_written, counts.dram_useful) == (128, 64, 160)
    assert counts.inner_written == 100 + 9
    assert counts.inner_read == 60 + 7
    result = simulate_gemms([(64, 128, 64, "float32")], chip)
    moved = result.ops[0].bytes
    assert moved["scratchpad"].written >= moved["dram"].read  # what arrived, and what the arrays wrote


def test_static_energy_is_power_times_time(chip):
    result = simulate(step(), chip)
    static_w = chip.power.static_w
    assert result.energy["static"].nominal == pytest.approx(static_w * result.time_us * 1e6)


def test_launch_overhead_is_outside_the_cycles(chip):
    from hwsim.hardware.accelerator import Launch

    per_op = chip.model_copy(update={"launch": Launch(overhead_us=5.0, per="op", source="made up for the test")})
    per_step = chip.model_copy(update={"launch": Launch(overhead_us=5.0, per="step", source="made up for the test")})
    plain, by_op, by_step = (simulate(step(), machine) for machine in (chip, per_op, per_step))
    assert plain.cycles == by_op.cycles == by_step.cycles
    assert by_step.launch_us == 5.0
    assert by_op.launch_us > 5.0
    assert by_op.time_us == pytest.approx(plain.time_us + by_op.launch_us)


def test_prefetch_and_residency_only_ever_help(chip, change):
    small = change(chip, scratchpad={"resident_kib": 0})
    assert simulate(step(), chip).bytes["dram"] < simulate(step(), small).bytes["dram"]
    alone = sum(simulate_gemms([shape], chip).cycles for shape in [(64, 64, 64, "float32")] * 3)
    together = simulate_gemms([(64, 64, 64, "float32")] * 3, chip).cycles
    assert together < alone
