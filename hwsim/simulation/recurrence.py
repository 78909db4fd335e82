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

from collections.abc import Sequence
from typing import NamedTuple

from hwsim.simulation.program import Job, Nodes, Pass, Repeat, count_passes, split_first

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


def run(jobs: Sequence[Job], buffers: int, latency: int) -> list[JobTimes]:
    """Times of every job, executed in order on an idle machine. Times in ticks; see the module's rules."""
    port = 0
    ends: Vector = (0,) * buffers  # newest first
    pending: Vector = (0,) * buffers  # stores of the last passes, oldest first
    readies: list[int] = []
    last: list[int] = []
    done: list[int] = []

    for job in jobs:
        first, rest = split_first(job.nodes)
        arrival = port  # the port comes to this job when it is done with those before
        if job.early:
            port = max(port, ends[-1]) + job.early
            arrival = port + latency
        port, stored = _flush(port, ends, pending)
        if readies:
            done.append(max(ends[0], *stored))
        ready = max((done[need] for need in job.needs), default=0)
        if first.load > job.early:
            port = max(port, ends[-1], ready) + first.load - job.early
            arrival = port + latency
        end = max(ends[0], arrival, ready, stored[0]) + first.compute
        ends = (end, *ends[:-1])
        pending = (*((0,) * (buffers - 1)), first.store)
        for _ in stored[1:]:  # the port comes to these passes once the stores of the job before are done
            if rest:
                work, rest = split_first(rest)
                port, ends = _step(work, port, ends, 0, latency, max(stored))
                pending = (*pending[1:], work.store)
        port, ends, pending = _advance(rest, port, ends, pending, latency)
        readies.append(ready)
        last.append(ends[0])
    if jobs:
        done.append(max(ends[0], *_flush(port, ends, pending)[1]))
    return [JobTimes(*times) for times in zip(readies, last, done, strict=True)]


def _flush(port: int, ends: Vector, pending: Vector) -> tuple[int, list[int]]:
    """Store what is pending, oldest first: when the port is free, and when each of the output buffers is."""
    stored = []
    for end, store in zip(reversed(ends), pending, strict=True):
        if store:
            port = max(port, end) + store
        stored.append(port if store else 0)
    return port, stored


def _step(
    work: Pass, port: int, ends: Vector, store: int, latency: int, output_free: int = NEVER
) -> tuple[int, Vector]:
    """One pass: its load, the store of the pass B before it, its computation."""
    oldest = ends[-1]
    start = max(ends[0], output_free)
    if work.load:
        port = (port if port > oldest else oldest) + work.load
        start = max(start, port + latency)
    if store:
        port = (port if port > oldest else oldest) + store
        start = max(start, port)
    return port, (start + work.compute, *ends[:-1])


def _advance(nodes: Nodes, port: int, ends: Vector, pending: Vector, latency: int) -> tuple[int, Vector, Vector]:
    memo: Memo = {}
    for node in nodes:
        if isinstance(node, Pass):
            port, ends = _step(node, port, ends, pending[0], latency)
            pending = (*pending[1:], node.store)
        elif node.turns * count_passes(node.body) <= WALK_AT_MOST:
            for _ in range(node.turns):
                port, ends, pending = _advance(node.body, port, ends, pending, latency)
        else:
            matrix, pending = _loop_matrix(node, pending, latency, memo)
            port, *latest = apply(matrix, (port, *ends))
            ends = tuple(latest)
    return port, ends, pending


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
    """`_step` as a matrix: its column j is the step's answer to a state that is 0 at j and minus infinity elsewhere."""
    columns = []
    for j in range(buffers + 1):
        state = tuple(0 if i == j else NEVER for i in range(buffers + 1))
        port, ends = _step(work, state[0], state[1:], store, latency)
        columns.append((port, *ends))
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
