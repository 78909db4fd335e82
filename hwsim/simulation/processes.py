"""The event engine: the machine as SimPy processes. It defines what happens; `recurrence.py` must agree.

Two processes share a few events for every pass: the *port* (the DMA engine and the memory path behind it), which
loads and stores in the order of the program, and the *sequencer*, which hands passes to the unit that computes. The
rules they follow are those of `program.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

import simpy

from hwsim.simulation.program import ZERO_COUNTS, Counts, Job, Pass, walk
from hwsim.simulation.recurrence import JobTimes

# Called with (resource, job index, pass index, what, start tick, end tick) for everything that holds a resource.
Observer = Callable[[str, int, int, str, int, int], None]


@dataclass
class _Flight:
    """A pass on its way: the events that its life consists of."""

    loaded: simpy.Event
    computed: simpy.Event
    stored: simpy.Event
    work: Pass
    job: int
    index: int

    def arrive(self, _: simpy.Event) -> None:
        """The data of its load are there."""
        self.loaded.succeed()


@dataclass
class _JobLog:
    """What the observers saw of a job."""

    ready: int = 0
    end: int = 0
    done: int = 0
    counts: list[int] = field(default_factory=lambda: [0] * len(ZERO_COUNTS))


class Machine:
    """The processes of one simulation; `run` below is the way in."""

    def __init__(self, jobs: Sequence[Job], buffers: int, latency: int, observe: Observer | None) -> None:
        self.env = simpy.Environment()
        self.jobs = jobs
        self.buffers = buffers
        self.latency = latency
        self.observe = observe
        self.logs = [_JobLog() for _ in jobs]
        self.complete = [self.env.event() for _ in jobs]
        self.to_compute = simpy.Store(self.env)
        idle = Pass(0, 0, 0)
        self.flights = [self._flight(idle, -1, -1, over=True) for _ in range(buffers)]  # the last B passes

    def _flight(self, work: Pass, job: int, index: int, over: bool = False) -> _Flight:
        flight = _Flight(self.env.event(), self.env.event(), self.env.event(), work, job, index)
        if over:
            for event in (flight.loaded, flight.computed, flight.stored):
                event.succeed()
        return flight

    def port(self) -> Generator[simpy.Event, Any, None]:
        """Load and store, one command after the other."""
        for number, job in enumerate(self.jobs):
            ready = self.env.all_of([self.complete[need] for need in job.needs])
            for index, work in enumerate(walk(job.nodes)):
                oldest = self.flights[0]
                flight = self._flight(work, number, index)
                self.to_compute.put((flight, ready if index == 0 else None, oldest.stored))
                if index == 0:
                    if job.early:
                        yield oldest.computed  # a free buffer
                        yield from self._hold("load", flight, job.early)
                    if work.load == job.early:
                        self._arrive(flight)
                    yield from self._drain(number)
                    if work.load > job.early:
                        yield ready
                        yield oldest.computed
                        yield from self._hold("load", flight, work.load - job.early)
                elif work.load:
                    yield oldest.computed
                    yield from self._hold("load", flight, work.load)
                if index or work.load > job.early:
                    self._arrive(flight)
                yield from self._store(oldest)
                self.flights = [*self.flights[1:], flight]
        yield from self._drain(len(self.jobs))

    def _hold(self, what: str, flight: _Flight, ticks: int) -> Generator[simpy.Event, Any, None]:
        start = int(self.env.now)
        yield self.env.timeout(ticks)
        if self.observe:
            self.observe("port", flight.job, flight.index, what, start, int(self.env.now))

    def _arrive(self, flight: _Flight) -> None:
        """Data of a load are there `latency` after the port let go of it."""
        if flight.work.load and self.latency:
            arrival = self.env.timeout(self.latency)
            arrival.callbacks.append(flight.arrive)
        else:
            flight.loaded.succeed()

    def _store(self, flight: _Flight) -> Generator[simpy.Event, Any, None]:
        if flight.stored.triggered:
            return
        if flight.work.store:
            yield flight.computed
            yield from self._hold("store", flight, flight.work.store)
        flight.stored.succeed()

    def _drain(self, number: int) -> Generator[simpy.Event, Any, None]:
        """Between jobs: store what is pending; the job before `number` is complete once it is computed as well."""
        for flight in self.flights:
            yield from self._store(flight)
        if number:
            last = self.flights[-1]
            stored_at = int(self.env.now)
            stores = any(flight.work.store and flight.job == number - 1 for flight in self.flights)
            self.env.process(self._finish(number - 1, last, stored_at if stores else 0))

    def _finish(self, number: int, last: _Flight, stored_at: int) -> Generator[simpy.Event, Any, None]:
        yield last.computed
        self.logs[number].done = max(stored_at, self.logs[number].end)
        self.complete[number].succeed()

    def sequencer(self) -> Generator[simpy.Event, Any, None]:
        """Compute, one pass after the other."""
        for number, job in enumerate(self.jobs):
            log = self.logs[number]
            for index, _ in enumerate(walk(job.nodes)):
                flight, ready, output_free = yield self.to_compute.get()
                if index == 0:
                    yield ready
                    log.ready = max((self.logs[need].done for need in job.needs), default=0)
                yield flight.loaded
                yield output_free
                start = int(self.env.now)
                if flight.work.compute:
                    yield self.env.timeout(flight.work.compute)
                if self.observe:
                    self.observe(job.unit, number, index, "compute", start, int(self.env.now))
                log.counts = [total + count for total, count in zip(log.counts, flight.work.counts, strict=True)]
                log.end = int(self.env.now)
                flight.computed.succeed()


def run(
    jobs: Sequence[Job], buffers: int, latency: int, observe: Observer | None = None
) -> tuple[list[JobTimes], list[Counts]]:
    """Times (in ticks) and counts of every job, executed in order on an idle machine."""
    machine = Machine(jobs, buffers, latency, observe)
    machine.env.process(machine.port())
    machine.env.process(machine.sequencer())
    machine.env.run()
    return (
        [JobTimes(int(log.ready), int(log.end), int(log.done)) for log in machine.logs],
        [Counts(*log.counts) for log in machine.logs],
    )
