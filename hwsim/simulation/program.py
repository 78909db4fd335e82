"""What the machine executes: jobs of passes, with loops kept as loops.

A *pass* is the work on one buffer of data: load it through the memory port, compute on it, store what it produced.
An op becomes a *job*: a nest of loops over passes. Millions of equal passes stay one `Repeat`, which both engines
understand: the event engine walks it pass by pass, the recurrence takes its power.

The rules of the machine, which `processes.py` states as processes and `recurrence.py` as equations:

- The memory port serves commands in the order of the program: for pass i its load, then the store of pass i - B, with
  B buffers. The load needs a free buffer, that is, the end of computation i - B; so does the store. Loads go before
  stores of the same age: this is the static priority, and since no command overtakes another, more bandwidth can
  never make a program slower.
- Computation i starts when computation i - 1 has ended, its data have arrived (`latency` after the port is free
  again) and store i - B has freed its output buffer.
- Between jobs the port first fetches the part of the next job's first load that depends on nothing under way
  (`early`: weights, mostly), then stores what is pending, then goes on. The first computation and the rest of the
  first load wait until the job's producers are complete.

Times are integer ticks; a tick is 1/1024 of a cycle, so that fractional bytes per cycle lose less than 0.1 % of a cycle
a transfer and every sum is exact.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

TICKS_PER_CYCLE = 1024


def to_ticks(cycles: Fraction | int | float) -> int:
    """Cycles as ticks, rounded up: nothing ends early."""
    fraction = Fraction(cycles)
    return -(-fraction.numerator * TICKS_PER_CYCLE // fraction.denominator)


class Counts(NamedTuple):
    """What a pass moves and does. Bytes, ticks and operations are integers, so sums are exact in any order."""

    dram_read: int = 0  # whole bursts
    dram_written: int = 0
    dram_useful: int = 0  # asked for, both directions
    outer_read: int = 0  # the outermost on-chip memory, if it is not the innermost one
    outer_written: int = 0
    inner_read: int = 0  # the memory next to the arrays
    inner_written: int = 0
    busy: int = 0  # ticks in which the arrays are fed
    fill_drain: int = 0  # ticks in which they fill and drain
    port_wait: int = 0  # ticks in which the innermost memory is too slow for them
    vector_wait: int = 0  # ticks in which the vector unit behind them is
    dram_port: int = 0  # ticks of the load path that DRAM would need alone
    outer_port: int = 0  # ticks that the outermost on-chip memory would need alone
    slots: int = 0  # MAC slots fed, padding included


ZERO_COUNTS = Counts()


class Pass(NamedTuple):
    """One buffer of work: ticks on the memory path to load, on the unit to compute, on the memory path to store."""

    load: int
    compute: int
    store: int
    counts: Counts = ZERO_COUNTS


class Repeat(NamedTuple):
    """The same body, `turns` times."""

    turns: int
    body: tuple[Pass | Repeat, ...]


Nodes = tuple[Pass | Repeat, ...]


@dataclass(frozen=True)
class Job:
    """One op as the machine executes it."""

    name: str
    unit: str  # "array", "vector", "select" or "memory" (a copy: nothing computes)
    nodes: Nodes
    early: int = 0  # ticks of the first load that wait for no producer
    needs: tuple[int, ...] = ()  # indices of the jobs that must be complete first


def walk(nodes: Nodes) -> Iterator[Pass]:
    """Every pass in execution order, one by one."""
    for node in nodes:
        if isinstance(node, Pass):
            yield node
        else:
            for _ in range(node.turns):
                yield from walk(node.body)


def count_passes(nodes: Nodes) -> int:
    """Number of passes, without walking them."""
    return sum(1 if isinstance(node, Pass) else node.turns * count_passes(node.body) for node in nodes)


def sum_counts(nodes: Nodes) -> Counts:
    """What all passes move and do, in closed form."""
    return Counts(*_totals(nodes)[3:])


def sum_ticks(nodes: Nodes) -> tuple[int, int, int]:
    """Ticks of all loads, computations and stores."""
    load, compute, store = _totals(nodes)[:3]
    return load, compute, store


def _totals(nodes: Nodes) -> list[int]:
    totals = [0] * (3 + len(ZERO_COUNTS))
    for node in nodes:
        if isinstance(node, Pass):
            values: list[int] = [node.load, node.compute, node.store, *node.counts]
            totals = [total + value for total, value in zip(totals, values, strict=True)]
        else:
            count = node.turns
            totals = [total + count * value for total, value in zip(totals, _totals(node.body), strict=True)]
    return totals


def split_first(nodes: Nodes) -> tuple[Pass, Nodes]:
    """The first pass and all the others."""
    head, *tail = nodes
    if isinstance(head, Pass):
        return head, tuple(tail)
    first, rest = split_first(head.body)
    again: Nodes = (Repeat(head.turns - 1, head.body),) if head.turns > 1 else ()
    return first, (*rest, *again, *tail)


def split_last(nodes: Nodes) -> tuple[Nodes, Pass]:
    """All passes but the last, and the last."""
    *head, tail = nodes
    if isinstance(tail, Pass):
        return tuple(head), tail
    rest, last = split_last(tail.body)
    before: Nodes = (Repeat(tail.turns - 1, tail.body),) if tail.turns > 1 else ()
    return (*head, *before, *rest), last


def repeat(turns: int, body: Nodes) -> Nodes:
    """The body, `turns` times, without needless nesting."""
    if turns <= 0 or not body:
        return ()
    if turns == 1:
        return body
    if len(body) == 1 and isinstance(body[0], Repeat):
        return (Repeat(turns * body[0].turns, body[0].body),)
    return (Repeat(turns, body),)
