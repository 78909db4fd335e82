"""Recomputing activations: the same backward pass from less memory, at the price of a second forward."""

from __future__ import annotations

import pytest

from hwsim.errors import SpecError
from hwsim.simulation.engine import simulate
from hwsim.simulation.recompute import recompute_activations
from hwsim.simulation.topology import LinearShape, RandomTopK, workload_of
from hwsim.workload import Phase

LAYERS = [LinearShape(f"fc{number}", 64, 64) for number in range(12)]


@pytest.fixture(scope="module")
def workload():
    return workload_of(LAYERS, batch=256, training=True, topk=RandomTopK(8, "batch"), optimizer_states=0)


def test_every_tensor_is_made_before_it_is_read(workload):
    again = recompute_activations(workload)
    made = {t for t in again.tensors if again.tensors[t].persistent or again.tensors[t].role == "input"}
    for op in again.ops:
        assert set(op.reads) <= made, op.id
        made |= set(op.writes)


def test_memory_falls_work_grows_and_the_backward_pass_stays(workload, chip):
    kept, recomputed = simulate(workload, chip), simulate(recompute_activations(workload), chip)
    assert recomputed.peak_memory_bytes < 0.7 * kept.peak_memory_bytes
    assert kept.macs < recomputed.macs < kept.macs + kept.by("phase")["forward"].macs
    backward = [(op.id, op.macs) for op in recomputed.ops if op.phase != Phase.FORWARD and ".again" not in op.id]
    assert backward == [(op.id, op.macs) for op in kept.ops if op.phase != Phase.FORWARD]


def test_one_segment_keeps_everything(workload):
    assert recompute_activations(workload, 1).ops == workload.ops
    with pytest.raises(SpecError, match="segments: got 0"):
        recompute_activations(workload, 0)


def test_a_choice_of_the_simulation(workload, chip):
    direct = simulate(recompute_activations(workload), chip)
    assert simulate(workload, chip, activations="recompute").steps == direct.steps
    assert simulate(workload, chip, "events", activations="recompute").steps == direct.steps
    with pytest.raises(SpecError, match="activations: got 'some'"):
        simulate(workload, chip, activations="some")
