"""Shipped machines: numbers of the data sheets follow from their factors, and a test can tell a wrong one."""

from __future__ import annotations

import pytest

from hwsim.arithmetic.named import parse_format
from hwsim.catalog import accelerators, load_accelerator
from hwsim.hardware.accelerator import sources_of, unsourced_numbers
from hwsim.simulation.engine import simulate_gemms

# Dense TFLOP/s of the vendors' data sheets.
PEAK_TFLOPS = {
    ("nvidia_v100", "float16"): 125,
    ("nvidia_v100", "float32"): 15.7,
    ("nvidia_a100_40g", "bfloat16"): 312,
    ("nvidia_a100_80g", "float32"): 19.5,
    ("nvidia_h100", "bfloat16"): 989,
    ("nvidia_h200", "float8_e4m3fn"): 1979,
    ("nvidia_gtx_1080", "float32"): 8.87,
    ("tpu_v4", "bfloat16"): 275,
}


@pytest.mark.parametrize(("name", "number"), PEAK_TFLOPS)
def test_peaks_follow_from_clock_and_macs(name, number):
    machine = load_accelerator(name)
    peak = 2e-3 * float(machine.peak_macs_per_cycle(parse_format(number))) * machine.clock.clock_ghz
    assert peak == pytest.approx(PEAK_TFLOPS[name, number], rel=0.01)
    assert machine.clock.running_ghz <= machine.clock.clock_ghz


@pytest.mark.parametrize("name", accelerators())
def test_every_number_of_a_machine_has_a_source(name):
    machine = load_accelerator(name)
    assert not list(unsourced_numbers(machine))
    for path, source in sources_of(machine):
        assert len(source) > 10, path


def test_the_on_device_trainer_draws_about_a_watt():
    machine = load_accelerator("on_device_trainer")
    result = simulate_gemms([(1024, 1024, 1024, "bfloat16")], machine)
    assert 0.5 < result.energy_pj / result.time_us / 1e6 < 1.5
    assert machine.power is not None and machine.power.limit_w == 1.0
