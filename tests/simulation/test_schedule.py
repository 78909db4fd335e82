"""From ops to jobs: nothing is read before it is there, copies and fusion come where the machine needs them."""

from __future__ import annotations

import random
from itertools import accumulate

from hwsim.errors import SpecError
from hwsim.simulation import processes
from hwsim.simulation.engine import plan_steps, simulate
from hwsim.simulation.program import TICKS_PER_CYCLE, split_first
from hwsim.simulation.topology import LinearShape, RandomTopK, workload_of

LAYERS = [LinearShape("fc1", 120, 90), LinearShape("fc2", 90, 70), LinearShape("fc3", 70, 10)]


def test_no_op_starts_before_what_it_reads_is_complete(random_machine, random_step):
    """On generated machines and steps, by the event engine: loads that may not come early, and every computation."""
    rng = random.Random(21)
    steps = 0
    while steps < 25:
        machine, workload = random_machine(rng), random_step(rng)
        try:
            step = next(plan_steps(workload, machine))
        except SpecError:
            continue
        steps += 1
        jobs = [job for task in step.tasks for job in task.jobs]
        first: dict[tuple[int, str], list[int]] = {}

        def observe(unit, job, index, what, start, end, first=first):
            first.setdefault((job, what), []).append(start)

        latency = round(machine.dram_latency_cycles * TICKS_PER_CYCLE)
        times, _ = processes.run(jobs, machine.scratchpad.buffers, latency, observe)
        last_job = list(accumulate(len(task.jobs) for task in step.tasks))
        writer: dict[str, int] = {}
        for task, after in zip(step.tasks, last_job, strict=True):
            for job in range(after - len(task.jobs), after):
                done = max((times[need].done for need in jobs[job].needs), default=0)
                loads, computations = first.get((job, "load"), []), first.get((job, "compute"), [])
                assert min(computations, default=done) >= done
                early, load = jobs[job].early, split_first(jobs[job].nodes)[0].load
                if early < load:  # something that is loaded is not there yet: only the early part may come before
                    assert min(loads[1:] if early else loads, default=done) >= done
            # What the op reads and an earlier job wrote is among the needs of its last job.
            needed = {writer[tensor] for tensor in task.op.reads if tensor in writer}
            if task.mapping.startswith("fused"):  # its work is in the GEMM's passes
                writer |= dict.fromkeys(task.op.writes, writer[task.op.reads[0]])
            elif task.jobs:
                assert needed <= set(jobs[after - 1].needs)
                writer |= dict.fromkeys(task.op.writes, after - 1)


def test_a_machine_without_transposing_ports_copies_first(chip):
    workload = workload_of(LAYERS, batch=16, training=True)
    copying = chip.model_copy(update={"transpose": "copy"})
    plain, copied = next(plan_steps(workload, chip)), next(plan_steps(workload, copying))
    for one, two in zip(plain.tasks, copied.tasks, strict=True):
        crossed = sum(one.op.transposed) if one.op.gemm else 0
        assert len(two.jobs) == len(one.jobs) + crossed
        if crossed:
            gemm = two.jobs[-1]
            assert len(gemm.needs) >= crossed
            assert gemm.early < sum(p.load for p in gemm.nodes[:1] if hasattr(p, "load")) or gemm.early == 0
    assert simulate(workload, copying).bytes["dram"] > simulate(workload, chip).bytes["dram"]


def test_element_wise_ops_hide_behind_the_gemm_if_the_vector_unit_can(chip, change):
    workload = workload_of(LAYERS, batch=64, training=True)
    fused, apart = chip, change(chip, vector={"fused": False})
    with_fusion, without = simulate(workload, fused), simulate(workload, apart)
    relu = next(op for op in with_fusion.ops if op.id == "fc1.relu")
    assert relu.mapping == "fused behind fc1.output"
    assert relu.cycles == 0
    assert relu.energy["vector"].nominal > 0
    assert with_fusion.cycles < without.cycles
    assert with_fusion.energy["vector"] == without.energy["vector"]  # the same operations, sooner
    slow = change(chip, vector={"lanes": 1})
    waiting = next(op for op in simulate(workload, slow).ops if op.id == "fc1.output")
    assert waiting.stalls["vector"] > 0


def test_a_selection_is_a_barrier(chip):
    """Batch scope sums, ranks, and only then do the GEMMs read the gradient again."""
    workload = workload_of(LAYERS, batch=16, training=True, topk=RandomTopK(9, "batch"))
    result = simulate(workload, chip)
    ids = [op.id for op in result.ops]
    step = next(plan_steps(workload, chip))
    jobs = [job for task in step.tasks for job in task.jobs]
    selected = next(index for index, job in enumerate(jobs) if job.name == "fc2.select")
    for name in ("fc2.grad_input", "fc2.grad_weight"):
        job = next(job for job in jobs if job.name == name)
        assert selected in job.needs
        assert job.early == 0
    select, gemm = (result.ops[ids.index(name)] for name in ("fc2.select", "fc2.grad_weight"))
    assert gemm.start_cycle >= select.end_cycle
    assert select.stalls["selection"] > 0
    assert select.energy["select"].nominal > 0


def test_a_heap_needs_more_passes_than_entries_allow(chip):
    from hwsim.hardware.accelerator import Select

    workload = workload_of(LAYERS, batch=16, training=True, topk=RandomTopK(16, "batch"))

    def selection_cycles(limit: int) -> float:
        unit = Select(method="heap", elements_per_cycle=1, kept_limit=limit, source="made up for the test")
        return simulate(workload, chip.model_copy(update={"select": unit})).stalls["selection"]

    assert selection_cycles(4) > selection_cycles(16) == selection_cycles(64)
