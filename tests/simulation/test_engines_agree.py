"""The recurrence equals the event engine: in ticks, bytes and energy, on generated machines, ops and whole steps."""

from __future__ import annotations

import random

import pytest

from hwsim.arithmetic.named import parse_format
from hwsim.errors import SpecError
from hwsim.hardware.mapping import DATAFLOWS, ORDERS, GemmWork, Mapping, Operand
from hwsim.simulation import processes, recurrence
from hwsim.simulation.engine import simulate, simulate_gemms
from hwsim.simulation.lowering import Lowering
from hwsim.simulation.program import TICKS_PER_CYCLE, Counts, Job, Pass, Repeat, split_first, sum_counts
from hwsim.simulation.topology import LinearShape, workload_of

FLOAT32 = parse_format("float32")


def random_nodes(rng: random.Random, depth: int):
    nodes = []
    for _ in range(rng.randint(1, 3)):
        if depth and rng.random() < 0.6:
            nodes.append(Repeat(rng.randint(1, 6), random_nodes(rng, depth - 1)))
        else:
            ticks = [rng.choice([0, rng.randint(1, 50)]) for _ in range(3)]
            nodes.append(Pass(*ticks, Counts(*(rng.randint(0, 9) for _ in Counts()))))
    return tuple(nodes)


def random_jobs(rng: random.Random) -> list[Job]:
    jobs = []
    for number in range(rng.randint(1, 4)):
        nodes = random_nodes(rng, rng.randint(0, 3))
        load = split_first(nodes)[0].load
        needs = tuple(sorted(rng.sample(range(number), rng.randint(0, number))))
        jobs.append(Job(str(number), "array", nodes, rng.choice([0, load, rng.randint(0, load)]), needs))
    return jobs


def difference(jobs, buffers, latency) -> str:
    """ "" if both engines agree on every time and count."""
    fast = recurrence.run(jobs, buffers, latency)
    times, counts = processes.run(jobs, buffers, latency)
    if fast != times:
        return f"times {fast} against {times}"
    closed = [sum_counts(job.nodes) for job in jobs]
    return "" if closed == counts else f"counts {closed} against {counts}"


@pytest.mark.parametrize("walked", [0, 24])  # everything as matrices; short loops walked
def test_random_programs_take_equal_times(walked, monkeypatch):
    monkeypatch.setattr(recurrence, "WALK_AT_MOST", walked)
    rng = random.Random(walked)
    for _ in range(250):
        jobs, buffers, latency = random_jobs(rng), rng.randint(1, 4), rng.choice([0, 0, 7, 30])
        assert not difference(jobs, buffers, latency), (jobs, buffers, latency)


def random_gemm(rng: random.Random, rate) -> GemmWork:
    def side(axes: str) -> Operand:
        return Operand(rng.choice([8, 16, 32]) * 256, rng.choice(axes), rng.random() < 0.2)

    m, n, k = (rng.randint(1, 70) for _ in range(3))
    return GemmWork(m, n, k, rng.choice([1, 1, 3]), side("mk"), side("kn"), side("mn"), 32, rate)


def test_two_thousand_random_mappings_on_random_machines_agree(random_machine):
    rng = random.Random(5)
    for _ in range(2000):
        machine = random_machine(rng)
        work = random_gemm(rng, machine.arrays.rate_of(FLOAT32))
        tile = tuple(rng.randint(1 + extent // 4, extent) for extent in (work.m, work.n, work.k))
        keep = "".join(name for name in "abc" if rng.random() < 0.5)
        mapping = Mapping(rng.choice(DATAFLOWS), tile, rng.choice(ORDERS), keep)
        job = Job("gemm", "array", Lowering(machine).gemm(work, mapping))
        latency = round(machine.dram_latency_cycles * TICKS_PER_CYCLE)
        assert not difference([job], machine.scratchpad.buffers, latency), (machine, work, mapping)


def test_eighty_whole_steps_agree_in_everything(random_machine, random_step):
    rng = random.Random(11)
    agreed = pruned = 0
    while agreed < 80:
        machine, workload = random_machine(rng), random_step(rng)
        sparsity = rng.choice(["real", "real", "ideal", "zeros", "dense"])
        try:
            fast = simulate(workload, machine, sparsity=sparsity)
        except SpecError:  # a tile that does not fit this small machine
            continue
        events = simulate(workload, machine, "events", sparsity=sparsity)
        assert fast.steps == events.steps, (machine, workload)
        agreed += 1
        pruned += bool(workload.selections) and sparsity == "real"
    assert pruned >= 10


def test_a_wrong_recurrence_is_found(chip, monkeypatch):
    """The comparison can fail: a recurrence that forgets the latency is told from the event engine."""
    rng = random.Random(3)
    whole = recurrence.run
    monkeypatch.setattr(recurrence, "run", lambda jobs, buffers, latency: whole(jobs, buffers, 0))
    assert any(difference(random_jobs(rng), 2, 30) for _ in range(20))


def test_a_wrong_count_is_found(monkeypatch):
    monkeypatch.setattr(processes, "walk", lambda nodes: iter([Pass(1, 1, 1, Counts(dram_read=5))]))
    assert "counts" in difference([Job("x", "array", (Pass(1, 1, 1, Counts(dram_read=4)),))], 2, 0)


def test_ten_million_tiles_are_counted_and_timed_without_walking_them():
    inner = Repeat(1000, (Pass(10, 11, 0, Counts(dram_read=3)), Pass(9, 8, 1)))
    nodes = (Repeat(100, (Pass(5000, 777, 3), Repeat(50, (inner, Pass(1, 2, 3))))),)
    job = Job("big", "array", nodes)
    times = recurrence.run([job], 2, 100)
    walked = Repeat(3, nodes[0].body)  # three turns are enough to know what each further one adds
    three, four = (
        processes.run([Job("part", "array", (Repeat(turns, tuple(small(walked.body))),))], 2, 100)[0][0].end
        for turns in (3, 4)
    )
    small_job = Job("part", "array", (Repeat(100, tuple(small(walked.body))),))
    assert recurrence.run([small_job], 2, 100)[0].end == three + 97 * (four - three)
    assert times[0].end > 0
    assert sum_counts(nodes).dram_read == 100 * 50 * 1000 * 3


def small(body):
    """The same nest with short loops."""
    return [Repeat(3, tuple(small(node.body))) if isinstance(node, Repeat) else node for node in body]


def test_gemms_and_steps_give_the_same_json_on_both_engines(chip):
    for fast, events in (
        (simulate_gemms([(64, 500, 784, "int8")], chip), simulate_gemms([(64, 500, 784, "int8")], chip, "events")),
        (simulate(mlp(), chip), simulate(mlp(), chip, "events")),
    ):
        assert fast.to_json().replace('"engine": "fast"', '"engine": "events"') == events.to_json()


def mlp():
    layers = [LinearShape("fc1", 60, 50), LinearShape("fc2", 50, 10)]
    return workload_of(layers, batch=16, training=True)
