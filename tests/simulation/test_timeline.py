"""The trace: its structure as Chrome's format asks, and that it shows what the engines did."""

from __future__ import annotations

import json
from collections import defaultdict
from itertools import pairwise

import pytest

from hwsim.simulation import processes, recurrence
from hwsim.simulation.engine import plan_steps, simulate
from hwsim.simulation.program import TICKS_PER_CYCLE, count_passes
from hwsim.simulation.timeline import FIRST_ROW, ROWS, trace, write_trace
from hwsim.simulation.topology import LinearShape, RandomTopK, workload_of


@pytest.fixture(scope="module")
def workload():
    layers = [LinearShape("fc1", 300, 200), LinearShape("fc2", 200, 40)]
    return workload_of(layers, batch=64, training=True, topk=RandomTopK(9, "batch"))


def test_the_file_is_a_chrome_trace(chip, workload, tmp_path):
    write_trace(tmp_path / "trace.json", workload, chip)
    data = json.loads((tmp_path / "trace.json").read_text())
    events = data["traceEvents"]
    assert {event["ph"] for event in events} == {"M", "X", "C"}
    names = {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}
    assert tuple(names[tid] for tid in sorted(names)) == ROWS
    for event in events:
        if event["ph"] == "X":
            assert event["dur"] > 0
            assert event["ts"] >= 0
            assert event["pid"] == 1
            assert event["tid"] in names


def test_no_resource_does_two_things_at_once_and_ops_fill_the_step(chip, workload):
    data = trace(workload, chip)
    rows = defaultdict(list)
    for event in data["traceEvents"]:
        if event["ph"] == "X":
            rows[ROWS[event["tid"] - FIRST_ROW]].append((event["ts"], event["ts"] + event["dur"]))
    for slices in rows.values():
        slices.sort()
        assert all(end <= start + 1e-9 for (_, end), (start, _) in pairwise(slices))
    makespan_us = simulate(workload, chip).cycles / chip.clock.running_ghz / 1e3
    assert rows["ops"][0][0] == 0
    assert rows["ops"][-1][1] == pytest.approx(makespan_us, abs=1e-3)
    assert sum(end - start for start, end in rows["ops"]) == pytest.approx(makespan_us, abs=1e-3)


def test_viewers_keep_every_row_and_slice(chip, workload):
    """Perfetto merges thread 0 into another row, and drops what overlaps once rounded to its nanoseconds."""
    events = [event for event in trace(workload, chip)["traceEvents"] if event["ph"] == "X"]
    assert all(event["tid"] not in (0, event["pid"]) for event in events)
    for event in events:
        for time in (event["ts"], event["dur"]):
            assert time == round(time, 3)


def test_the_trace_shows_what_the_event_engine_does(chip, workload):
    """With nothing compressed, the recurrence's log and the observations of the event engine are the same slices."""
    step = next(plan_steps(workload, chip))
    jobs = [job for task in step.tasks for job in task.jobs]
    latency = round(chip.dram_latency_cycles * TICKS_PER_CYCLE)
    longest = max(count_passes(job.nodes) for job in jobs)
    logged, seen = [], []
    recurrence.run(jobs, 2, latency, lambda *slice: logged.append(slice), edge=longest)
    processes.run(jobs, 2, latency, lambda unit, job, index, what, start, end: seen.append((job, what, start, end)))
    assert sorted(s for s in logged if s[3] > s[2]) == sorted(s for s in seen if s[3] > s[2])


def test_the_middle_of_a_long_job_is_one_slice(chip):
    workload = workload_of([LinearShape("fc", 4000, 3000)], batch=512)
    few, many = (len(trace(workload, chip, edge=edge)["traceEvents"]) for edge in (2, 8))
    step = next(plan_steps(workload, chip))
    passes = count_passes(step.tasks[0].jobs[0].nodes)
    assert passes > 100
    assert few < many < 4 * passes
    names = [event["name"] for event in trace(workload, chip, edge=2)["traceEvents"]]
    assert any("steady" in name for name in names)
