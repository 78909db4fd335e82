"""How long one call takes, with cold caches and with the launch cost kept apart.

Cold (`time_us`): before every call the last-level cache is overwritten, then the device is kept busy until the host has
queued the call, so the two events around it see the device's work alone: kernels, the gaps between them on the device
and about one event's cost, but not the host. Warm (`warm_us`): calls in one CUDA graph, caches as they fall. Host
(`host_us`): what queueing one call costs the host. Nothing on the device is set or locked.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from hwsim.measurement.device import Sensors
from hwsim.measurement.record import DeviceState, Energy, Timing, quantile

Call = Callable[[], object]

COLD = "device events around one call; last-level cache overwritten before it; host launch time hidden"
WALL = "host clock around calls queued one after another and one wait at the end, divided by the calls"
CPU = "host clock around one call, caches overwritten before it, one process"


class Clock(Protocol):
    """What a timer needs of a device; `fake` ones stand in for it in tests."""

    kind: str

    def cold(self, call: Call, samples: int) -> tuple[list[float], str]:
        """Return `samples` times of `call` in microseconds with cold caches, and what they include."""
        ...

    def wall(self, call: Call, calls: int) -> float:
        """Return microseconds per call for `calls` calls in a row, one wait at the end."""
        ...

    def host(self, call: Call, calls: int) -> float:
        """Return host microseconds to queue one call."""
        ...

    def graph(self, call: Call, calls: int) -> float | None:
        """Return microseconds per call inside one graph of `calls` calls, or None where there are no graphs."""
        ...

    def wait(self) -> None:
        """Wait until the device is idle."""
        ...


class CudaClock:
    """Events and graphs of a CUDA device."""

    kind = "cuda"

    def __init__(self) -> None:
        import torch

        self._torch = torch
        l2_bytes = int(getattr(torch.cuda.get_device_properties(0), "L2_cache_size", 0)) or 64 << 20
        self._flush = torch.empty(2 * l2_bytes, dtype=torch.uint8, device="cuda")
        self._flip = 0

    def wait(self) -> None:
        """Wait until the device is idle; raises what the device reports."""
        self._torch.cuda.synchronize()

    def cold(self, call: Call, samples: int) -> tuple[list[float], str]:
        """Time single calls between events, all queued before the first wait."""
        torch = self._torch
        host_us = self.host(call, 3)
        # The clock is at most about 2 GHz: 2000 cycles a microsecond and twice the host's time keep the queue full.
        busy_cycles = min(int(2 * host_us * 2000) + 20_000, 20_000_000)
        pairs = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(samples)]
        for start, end in pairs:
            self._flip ^= 1
            self._flush.fill_(self._flip)
            torch.cuda._sleep(busy_cycles)
            start.record()
            call()
            end.record()
        self.wait()
        return [start.elapsed_time(end) * 1000 for start, end in pairs], COLD

    def wall(self, call: Call, calls: int) -> float:
        """Time a run of calls with the host clock, launches included."""
        self.wait()
        start = time.perf_counter()
        for _ in range(calls):
            call()
        self.wait()
        return (time.perf_counter() - start) * 1e6 / calls

    def host(self, call: Call, calls: int) -> float:
        """Time only the queueing of calls."""
        self.wait()
        start = time.perf_counter()
        for _ in range(calls):
            call()
        queued = (time.perf_counter() - start) * 1e6 / calls
        self.wait()
        return queued

    def graph(self, call: Call, calls: int) -> float | None:
        """Capture `calls` calls into a graph and time its replays with events."""
        torch = self._torch
        self.wait()
        graph = capture(call, calls)
        for _ in range(2):
            graph.replay()
        times = []
        for _ in range(5):
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            graph.replay()
            end.record()
            self.wait()
            times.append(start.elapsed_time(end) * 1000 / calls)
        return quantile(times, 0.5)


class CpuClock:
    """The host's own clock, for a user without a GPU."""

    kind = "cpu"

    def __init__(self) -> None:
        import numpy as np

        self._flush = np.zeros(8 << 20, dtype=np.float64)  # 64 MiB, more than most last-level caches

    def wait(self) -> None:
        """Nothing to wait for."""

    def cold(self, call: Call, samples: int) -> tuple[list[float], str]:
        """Time single calls, caches overwritten before each."""
        times = []
        for _ in range(samples):
            self._flush += 1.0
            start = time.perf_counter()
            call()
            times.append((time.perf_counter() - start) * 1e6)
        return times, CPU

    def wall(self, call: Call, calls: int) -> float:
        """Time a run of calls."""
        start = time.perf_counter()
        for _ in range(calls):
            call()
        return (time.perf_counter() - start) * 1e6 / calls

    def host(self, call: Call, calls: int) -> float:
        """Return 0: queueing and computing are the same thing here."""
        return 0.0

    def graph(self, call: Call, calls: int) -> float | None:
        """Return None: there are no graphs."""
        return None


def capture(call: Call, calls: int = 1) -> Any:
    """Return a CUDA graph of `calls` calls; raises RuntimeError for a call that cannot be captured."""
    import torch

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # one call outside the capture, so that lazy set-up stays out of the graph
        call()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            call()
    return graph


@dataclass(frozen=True)
class Effort:
    """How much to spend on one case."""

    seconds: float = 0.1  # of timed calls, about
    least: int = 7
    most: int = 50
    graph_calls: int = 20


def measure(clock: Clock, call: Call, effort: Effort, graph: bool = True) -> Timing:
    """Time `call` after warming it up: median and 10 % / 90 % quantiles of cold calls, and the warm time in a graph.

    A call that cannot be captured has no warm time; that is no failure.
    """
    for _ in range(3):
        call()
    clock.wait()
    one_us = clock.wall(call, 2)
    samples = max(effort.least, min(effort.most, int(effort.seconds * 1e6 / max(one_us, 1.0))))
    times, includes = clock.cold(call, samples)
    host_us = clock.host(call, min(samples, 10)) if clock.kind == "cuda" else None
    warm_us = None
    if graph and one_us * effort.graph_calls < effort.seconds * 1e6:
        try:
            warm_us = clock.graph(call, effort.graph_calls)
        except RuntimeError:  # not every library call may be captured
            clock.wait()
    return Timing(
        time_us=quantile(times, 0.5),
        low_us=quantile(times, 0.1),
        high_us=quantile(times, 0.9),
        samples=samples,
        includes=includes,
        warm_us=warm_us,
        host_us=host_us,
    )


def measure_wall(clock: Clock, call: Call, effort: Effort) -> Timing:
    """Time runs of calls as a training loop would issue them, launches included."""
    for _ in range(3):
        call()
    clock.wait()
    one_us = clock.wall(call, 2)
    calls = max(3, min(50, int(effort.seconds * 1e6 / effort.least / max(one_us, 1.0))))
    times = [clock.wall(call, calls) for _ in range(effort.least)]
    return Timing(quantile(times, 0.5), quantile(times, 0.1), quantile(times, 0.9), effort.least * calls, WALL)


def measure_energy(
    clock: Clock, sensors: Sensors, call: Call, idle_w: float | None, seconds: float = 2.0
) -> tuple[Energy | None, DeviceState]:
    """Repeat `call` for at least `seconds` and read the energy counter before and after; None without a counter.

    Also returns the device's state in the middle of the loop. The counter moves in steps of about 20-100 ms, so a loop
    shorter than about 2 s would not resolve it.
    """
    if idle_w is None or sensors.energy_mj() is None:
        return None, sensors.state()
    one_us = clock.wall(call, 5)
    chunk = max(1, min(1000, int(50_000 / max(one_us, 1.0))))
    for _ in range(chunk):
        call()
    clock.wait()
    first = sensors.energy_mj()
    start = time.perf_counter()
    calls = 0
    state = DeviceState()
    while (elapsed := time.perf_counter() - start) < seconds:
        for _ in range(chunk):
            call()
        if state.power_w is None and elapsed > seconds / 2:
            state = sensors.state()
        clock.wait()
        calls += chunk
    last = sensors.energy_mj()
    elapsed = time.perf_counter() - start
    if first is None or last is None or last <= first:
        return None, state
    joules = (last - first) / 1000
    return Energy(joules * 1e6 / calls, joules / elapsed, idle_w, calls, elapsed), state


def idle_power(sensors: Sensors, seconds: float = 1.0) -> float | None:
    """Return the mean power at rest in watts from the energy counter, or None without a counter."""
    first = sensors.energy_mj()
    if first is None:
        return None
    start = time.perf_counter()
    time.sleep(seconds)
    last = sensors.energy_mj()
    if last is None or last <= first:
        return None
    return (last - first) / 1000 / (time.perf_counter() - start)
