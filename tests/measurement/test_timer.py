"""The stopwatch: medians and spread, cold caches, energy from a counter; a fake device stands in for a GPU."""

import time
from types import SimpleNamespace

import numpy as np
import pytest

from hwsim.measurement import timer
from hwsim.measurement.device import NoSensors, NvmlSensors, SmiSensors, open_sensors
from hwsim.measurement.record import DeviceState
from hwsim.measurement.timer import CpuClock, CudaClock, Effort, idle_power, measure, measure_energy, measure_wall


class FakeDevice:
    """A CUDA device whose calls take the times of a list; it logs what it is asked to do."""

    def __init__(self, times_us):
        self.times, self.now, self.log = list(times_us), 0.0, []

    def call(self):
        self.log.append("call")
        self.now += self.times.pop(0) if self.times else 10.0

    def torch(self):
        device = self

        class Event:
            def __init__(self, enable_timing):
                assert enable_timing

            def record(self):
                device.log.append("event")
                self.at = device.now

            def elapsed_time(self, other):
                return (other.at - self.at) / 1000

        cuda = SimpleNamespace(
            Event=Event,
            synchronize=lambda: device.log.append("wait"),
            _sleep=lambda cycles: device.log.append("sleep"),
        )
        return SimpleNamespace(cuda=cuda)

    def clock(self):
        clock = CudaClock.__new__(CudaClock)
        clock._torch = self.torch()
        clock._flush = SimpleNamespace(fill_=lambda value: self.log.append("flush"))
        clock._flip = 0
        return clock


def test_a_cold_call_is_flushed_queued_and_timed_alone():
    device = FakeDevice([10, 10, 10, 5, 6, 7])  # three calls find out what queueing costs
    times, includes = device.clock().cold(device.call, 3)
    assert times == pytest.approx([5, 6, 7])
    log = device.log[device.log.index("flush") :]
    assert log == ["flush", "sleep", "event", "call", "event"] * 3 + ["wait"]  # no wait before all are queued
    assert "cache" in includes


def test_median_and_spread_of_cold_calls():
    warm_up = [10.0] * 3
    two_wall = [10.0] * 2
    find_out = [10.0] * 3
    device = FakeDevice([*warm_up, *two_wall, *find_out, *[float(t) for t in range(1, 12)]])
    timing = measure(device.clock(), device.call, Effort(seconds=0.0, least=11), graph=False)
    assert (timing.time_us, timing.low_us, timing.high_us, timing.samples) == (6.0, 2.0, 10.0, 11)
    assert timing.warm_us is None and timing.host_us is not None


def test_a_call_that_cannot_be_captured_has_no_warm_time(monkeypatch):
    def refuse(call, calls=1):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(timer, "capture", refuse)
    device = FakeDevice([])
    timing = measure(device.clock(), device.call, Effort(least=7, most=7))
    assert timing.warm_us is None and timing.time_us == 10.0


def test_the_processor_s_clock_times_real_work():
    x = np.ones(100_000)
    timing = measure(CpuClock(), x.sum, Effort(seconds=0.01, least=7))
    assert 0 < timing.low_us <= timing.time_us <= timing.high_us
    assert timing.samples >= 7 and timing.warm_us is None and timing.host_us is None
    loop = measure_wall(CpuClock(), x.sum, Effort(seconds=0.01, least=3))
    assert loop.time_us > 0 and "one wait" in loop.includes


class Meter:
    """A power meter of a device that draws `watts`."""

    source = "fake"

    def __init__(self, watts):
        self.watts, self.start = watts, time.perf_counter()

    def energy_mj(self):
        return (time.perf_counter() - self.start) * self.watts * 1000

    def state(self):
        return DeviceState(1980, 3201, self.watts, 50)


def test_energy_is_the_counter_over_the_calls():
    energy, state = measure_energy(CpuClock(), Meter(200.0), lambda: time.sleep(0.001), idle_w=75.0, seconds=0.15)
    assert energy.power_w == pytest.approx(200, rel=0.05) and energy.idle_w == 75.0
    assert energy.seconds >= 0.15 and energy.energy_uj == pytest.approx(
        200 * energy.seconds * 1e6 / energy.calls, rel=0.05
    )
    assert state.power_w == 200.0


def test_without_a_counter_there_is_no_energy():
    assert measure_energy(CpuClock(), NoSensors(), lambda: None, idle_w=None)[0] is None
    assert idle_power(NoSensors()) is None
    assert idle_power(Meter(80.0), seconds=0.05) == pytest.approx(80, rel=0.05)


def test_a_machine_without_nvml_still_opens(monkeypatch):
    """No package, no library and no nvidia-smi: each step down is silent and the last one reads nothing."""
    assert isinstance(open_sensors("cpu"), NoSensors)
    monkeypatch.setattr(NvmlSensors, "__init__", lambda self, index=0: (_ for _ in ()).throw(OSError("no driver")))
    monkeypatch.setenv("PATH", "")
    assert isinstance(open_sensors("cuda"), NoSensors)
    empty = SmiSensors()
    assert empty.state() == DeviceState() and empty.energy_mj() is None and empty.driver() == ""


def test_nvidia_smi_is_read_where_nvml_is_missing(tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho '1980, 3201, 412.50, [N/A]'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert SmiSensors().state() == DeviceState(1980, 3201, 412.5, None)
