"""SCALE-Sim's cycles without a bandwidth limit, from the closed form and from a simulated machine: exactly."""

from __future__ import annotations

import random

import pytest

from hwsim.errors import SpecError
from hwsim.hardware.mapping import DATAFLOWS, Mapping
from hwsim.simulation.bounds import gemm_of, scale_sim_cycles, scale_sim_layer_cycles
from hwsim.simulation.engine import simulate_gemms
from hwsim.simulation.topology import ConvShape


@pytest.mark.parametrize("dataflow", DATAFLOWS)
def test_a_machine_that_fills_for_every_fold_counts_as_scale_sim_does(unlimited, change, dataflow):
    rng = random.Random(dataflow)
    for _ in range(30):
        rows, cols = rng.choice([8, 16, 32]), rng.choice([8, 16, 32])
        arrays = {"rows": rows, "cols": cols, "folds": "separate", "macs_per_cycle": {"float32": rows * cols}}
        machine = change(unlimited, arrays=arrays)
        m, n, k = (rng.randint(1, 200) for _ in range(3))
        whole = Mapping(dataflow, (m, n, k), "mnk", "abc")
        cycles = simulate_gemms([(m, n, k, "float32")], machine, mapping=whole).cycles
        # SCALE-Sim names the last cycle, counting from 0; ours are a length, plus a few ticks of transfers.
        assert int(cycles) == scale_sim_cycles(m, n, k, rows, cols, dataflow) + 1


def test_back_to_back_folds_are_told_apart(unlimited, change):
    """The agreement above can fail: a machine that overlaps its folds is faster."""
    whole = Mapping("output_stationary", (100, 100, 50), "mnk", "abc")
    overlapping = simulate_gemms([(100, 100, 50, "float32")], unlimited, mapping=whole).cycles
    assert int(overlapping) < scale_sim_cycles(100, 100, 50, 32, 32, "output_stationary")


def test_known_values():
    # Worked by hand from the formula of each dataflow: 2 x 2 folds on an 8 x 8 array.
    assert scale_sim_cycles(16, 16, 10, 8, 8, "output_stationary") == 4 * (10 + 14) - 1
    assert scale_sim_cycles(10, 16, 16, 8, 8, "weight_stationary") == 4 * (10 + 22) - 1
    assert scale_sim_cycles(16, 10, 16, 8, 8, "input_stationary") == 4 * (10 + 22) - 1
    with pytest.raises(SpecError, match="expected weight_stationary"):
        scale_sim_cycles(1, 1, 1, 1, 1, "row_stationary")


def test_convolutions_round_sizes_up_only_on_request():
    """A stride that leaves a rest: 224 with a 7 x 7 filter at stride 2 has 109 positions, or 110 rounded up."""
    exact = ConvShape("conv1", 3, (224, 224), 64, (7, 7), (2, 2))
    rounded = ConvShape("conv1", 3, (224, 224), 64, (7, 7), (2, 2), round_up=True)
    assert gemm_of(exact) == (109 * 109, 64, 147)
    assert gemm_of(rounded) == (110 * 110, 64, 147)
    cycles = [scale_sim_layer_cycles(layer, 32, 32, "weight_stationary") for layer in (exact, rounded)]
    assert cycles[0] < cycles[1]
