"""The fast twin of the event engine: the rules of `program.py` as a max-plus recurrence.

Every time in the machine is the maximum of earlier times plus a constant. So a pass maps the state

    (time at which the port is free, end of the last computation, ..., end of the last but B - 1)

to the next state by a matrix over (max, +), a loop body is the product of its passes, and a loop of n turns is
a power, found in log2(n) products. Nothing is sampled or assumed to be steady: the result equals walking every
pass, exactly, in integers. (Baccelli, Cohen, Olsder, Quadrat: Synchronization and Linearity, 1992, chapter 3.)

A store is issued B passes after its pass was computed, so a body also depends on the stores still pending when it
begins. Those repeat from one turn to the next after the first few, and from then on the turns are equal matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from hwsim.simulation.program import Job, Nodes, Pass, Repeat, count_passes, split_first, split_last

Vector = tuple[int, ...]
Matrix = tuple[Vector, ...]
Memo = dict[tuple[int, Vector], tuple[Matrix, Vector]]

NEVER = -(1 << 100)  # minus infinity of (max, +): far below any sum that can occur
WALK_AT_MOST = 24  # passes that are walked rather than turned into a matrix


class JobTimes(NamedTuple):
    """When a job was ready, ended its computation and was complete (stores included), in ticks."""

    ready: int
    end: int
    done: int


# Called with (job index, what, start tick, end tick); what is "load", "store", "compute", or "steady N" (on the unit)
# and "port steady N" for N passes that were not walked one by one.
Log = Callable[[int, str, int, int], None]


def run(jobs: Sequence[Job], buffers: int, latency: int, log: Log | None = None, edge: int = 4) -> list[JobTimes]:
    """Times of every job, executed in order on an idle machine. Times in ticks; see the module's rules.

    With a `log`, the first and last `edge` passes of each job are logged one by one, those between as one stretch.
    """
    machine = _Machine(buffers, latency, log)
    readies: list[int] = []
    ends: list[int] = []
    done: list[int] = []
    for index, job in enumerate(jobs):
        arrival = machine.port  # the port comes to this job when it is done with those before
        first, rest = split_first(job.nodes)
        machine.job = index
        if job.early:
            arrival = machine.load(job.early) + latency
        stored = machine.flush()
        if index:
            done.append(max(machine.ends[0], *stored))
        ready = max((done[need] for need in job.needs), default=0)
        if first.load > job.early:
            arrival = machine.load(first.load - job.early, ready) + latency
        machine.compute(first, max(arrival, ready, stored[0]))
        for _ in stored[1:]:  # the port comes to these passes once the stores of the job before are done
            if rest:
                work, rest = split_first(rest)
                machine.step(work, max(stored))
        machine.advance(rest, edge)
        readies.append(ready)
        ends.append(machine.ends[0])
    if jobs:
        done.append(max(machine.ends[0], *machine.flush()))
    return [JobTimes(*times) for times in zip(readies, ends, done, strict=True)]


class _Machine:
    """The state of the recurrence, and what a pass does to it."""

    def __init__(self, buffers: int, latency: int, log: Log | None) -> None:
        self.port = 0
        self.ends: Vector = (0,) * buffers  # of the last computations, newest first
        self.pending: Vector = (0,) * buffers  # ticks of the stores of the last passes, oldest first
        self.pending_job = [0] * buffers  # the jobs they belong to, for the log
        self.latency = latency
        self.log = log
        self.job = 0

    def load(self, ticks: int, ready: int = NEVER) -> int:
        """Hold the port for a load, once a buffer is free and the data exist; when it ends."""
        start = max(self.port, self.ends[-1], ready)
        self.port = start + ticks
        if self.log:
            self.log(self.job, "load", start, self.port)
        return self.port

    def compute(self, work: Pass, start: int) -> None:
        """Compute from `start` or when the last computation has ended; the pass's store is then pending."""
        start = max(start, self.ends[0])
        self.ends = (start + work.compute, *self.ends[:-1])
        self.pending = (*self.pending[1:], work.store)
        if self.log:
            self.log(self.job, "compute", start, self.ends[0])
            self.pending_job = [*self.pending_job[1:], self.job]

    def step(self, work: Pass, output_free: int = NEVER) -> None:
        """One pass: its load, the store of the pass B before it, its computation."""
        start = output_free
        if work.load:
            start = max(start, self.load(work.load) + self.latency)
        store = self.pending[0]
        if store:
            start = max(start, self.store(self.ends[-1], store, 0))
        self.compute(work, start)

    def store(self, computed: int, ticks: int, position: int) -> int:
        """Hold the port for a store of what was computed; when it ends."""
        begin = max(self.port, computed)
        self.port = begin + ticks
        if self.log:
            self.log(self.pending_job[position], "store", begin, self.port)
        return self.port

    def flush(self) -> list[int]:
        """Store what is pending, oldest first: when each output buffer is free."""
        computed = reversed(self.ends)
        stored = [
            self.store(end, ticks, position) if ticks else 0
            for position, (end, ticks) in enumerate(zip(computed, self.pending, strict=True))
        ]
        self.pending = (0,) * len(self.pending)
        return stored

    def advance(self, nodes: Nodes, edge: int) -> None:
        """All passes of these nodes."""
        if not self.log:
            self._advance(nodes, {})
            return
        for _ in range(edge):
            if nodes:
                work, nodes = split_first(nodes)
                self.step(work)
        last: list[Pass] = []
        while nodes and len(last) < edge:
            nodes, work = split_last(nodes)
            last.append(work)
        if nodes:
            began, port, count = self.ends[0], self.port, count_passes(nodes)
            log, self.log = self.log, None
            self._advance(nodes, {})
            self.log = log
            self.pending_job = [self.job] * len(self.pending)
            self.log(self.job, f"steady {count}", began, self.ends[0])
            self.log(self.job, f"port steady {count}", port, self.port)
        for work in reversed(last):
            self.step(work)

    def _advance(self, nodes: Nodes, memo: Memo) -> None:
        for node in nodes:
            if isinstance(node, Pass):
                self.step(node)
            elif node.turns * count_passes(node.body) <= WALK_AT_MOST:
                for _ in range(node.turns):
                    self._advance(node.body, memo)
            else:
                matrix, self.pending = _loop_matrix(node, self.pending, self.latency, memo)
                self.port, *ends = apply(matrix, (self.port, *self.ends))
                self.ends = tuple(ends)


def _loop_matrix(node: Repeat, pending: Vector, latency: int, memo: Memo) -> tuple[Matrix, Vector]:
    """The matrix of all turns if `pending` are the stores open before them, and the stores open after them."""
    matrix = identity(len(pending) + 1)
    left = node.turns
    while left:
        turn, after = _body_matrix(node.body, pending, latency, memo)
        if after == pending:  # all further turns are the same matrix
            return multiply(power(turn, left), matrix), pending
        matrix = multiply(turn, matrix)
        pending = after
        left -= 1
    return matrix, pending


def _body_matrix(body: Nodes, pending: Vector, latency: int, memo: Memo) -> tuple[Matrix, Vector]:
    key = (id(body), pending)  # the program keeps its bodies alive, so an id names one body
    if key not in memo:
        matrix = identity(len(pending) + 1)
        for node in body:
            if isinstance(node, Pass):
                turn = _pass_matrix(node, pending[0], len(pending), latency)
                pending = (*pending[1:], node.store)
            else:
                turn, pending = _loop_matrix(node, pending, latency, memo)
            matrix = multiply(turn, matrix)
        memo[key] = (matrix, pending)
    return memo[key]


def _pass_matrix(work: Pass, store: int, buffers: int, latency: int) -> Matrix:
    """A step as a matrix: its column j is the step's answer to a state that is 0 at j and minus infinity elsewhere."""
    columns = []
    for j in range(buffers + 1):
        machine = _Machine(buffers, latency, None)
        state = tuple(0 if i == j else NEVER for i in range(buffers + 1))
        machine.port, machine.ends = state[0], state[1:]
        machine.pending = (store, *machine.pending[1:])
        machine.step(work)
        columns.append((machine.port, *machine.ends))
    return tuple(zip(*columns, strict=True))


def identity(size: int) -> Matrix:
    """The matrix that changes nothing."""
    return tuple(tuple(0 if i == j else NEVER for j in range(size)) for i in range(size))


def multiply(a: Matrix, b: Matrix) -> Matrix:
    """The (max, +) product: first b, then a."""
    columns = tuple(zip(*b, strict=True))
    return tuple(
        tuple(max(NEVER, *(x + y for x, y in zip(row, column, strict=True))) for column in columns) for row in a
    )


def power(matrix: Matrix, exponent: int) -> Matrix:
    """The matrix applied `exponent` times."""
    result = identity(len(matrix))
    while exponent:
        if exponent & 1:
            result = multiply(matrix, result)
        exponent >>= 1
        if exponent:
            matrix = multiply(matrix, matrix)
    return result


def apply(matrix: Matrix, state: Vector) -> Vector:
    """The state after the passes that the matrix stands for."""
    return tuple(max(x + y for x, y in zip(row, state, strict=True)) for row in matrix)
