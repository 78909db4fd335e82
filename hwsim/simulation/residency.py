"""Which tensors stay on chip between ops, and how much memory a step needs at its peak.

The rule is part of the machine's definition. Ops run in the workload's order. The outermost on-chip memory sets
`resident_kib` aside for tensors: after an op, the tensors that it wrote or read and that a later op of the step reads
again are candidates. If they do not all fit, the ones whose next use is farthest away leave (Belady, IBM Systems
Journal 5(2), 1966: no rule misses less, for equal sizes). A tensor that leaves before its last use and was never stored
is stored then. Persistent tensors (weights, optimizer state) are stored by the op that writes them in any case.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Access:
    """What one op reads and writes, by tensor id."""

    reads: tuple[str, ...]
    writes: tuple[str, ...]


@dataclass(frozen=True)
class Placement:
    """Where an op finds and leaves its tensors."""

    on_chip_reads: frozenset[str] = frozenset()
    on_chip_writes: frozenset[str] = frozenset()  # not stored: they stay, or nobody reads them again
    spills: tuple[str, ...] = ()  # stored before the op begins
    resident_bytes: int = 0  # held while the op runs


def place(
    accesses: Sequence[Access], sizes: Mapping[str, int], persistent: frozenset[str], capacity: int
) -> list[Placement]:
    """The placement of every op; `sizes` in bytes, `capacity` in bytes."""
    uses: dict[str, list[int]] = {}
    for index, access in enumerate(accesses):
        for tensor in access.reads:
            uses.setdefault(tensor, []).append(index)
    resident: dict[str, bool] = {}  # tensor -> stored in DRAM as well
    placements: list[Placement] = []

    def next_use(tensor: str, after: int) -> int:
        return next((use for use in uses.get(tensor, ()) if use > after), -1)

    for index, access in enumerate(accesses):
        hits = frozenset(tensor for tensor in access.reads if tensor in resident)
        candidates = {tensor: stored for tensor, stored in resident.items() if tensor not in access.writes}
        for tensor in access.reads:
            candidates.setdefault(tensor, True)
        for tensor in access.writes:
            candidates[tensor] = tensor in persistent
        kept = _keep(candidates, hits, sizes, capacity, {t: next_use(t, index) for t in candidates})
        spills = tuple(
            tensor
            for tensor, stored in resident.items()
            if tensor not in kept and tensor not in access.writes and not stored and next_use(tensor, index) >= 0
        )
        writes = frozenset(tensor for tensor in access.writes if tensor not in persistent and tensor in kept)
        held = sum(sizes[tensor] for tensor in hits | kept)
        resident = {tensor: candidates[tensor] for tensor in candidates if tensor in kept}
        placements.append(Placement(hits, writes, spills, held))
    return placements


def _keep(
    candidates: Mapping[str, bool],
    hits: frozenset[str],
    sizes: Mapping[str, int],
    capacity: int,
    uses: Mapping[str, int],
) -> frozenset[str]:
    """The tensors that stay: nearest next use first, as long as they fit beside those that the op reads (`hits`)."""
    kept = set()
    held = sum(sizes[tensor] for tensor in hits)
    for tensor in sorted((t for t in candidates if uses[t] >= 0), key=lambda t: (uses[t], t)):
        size = 0 if tensor in hits else sizes[tensor]
        if held + size <= capacity:
            kept.add(tensor)
            held += size
    return frozenset(kept)


def peak_bytes(accesses: Sequence[Access], sizes: Mapping[str, int], persistent: frozenset[str]) -> int:
    """The largest sum of tensors alive at once: from first write (or the start) to last use; persistent ones always."""
    born: dict[str, int] = {}
    dies: dict[str, int] = {}
    for index, access in enumerate(accesses):
        for tensor in access.reads:
            born.setdefault(tensor, 0)
            dies[tensor] = index
        for tensor in access.writes:
            born.setdefault(tensor, index)
            dies[tensor] = index
    always = sum(sizes[tensor] for tensor in born if tensor in persistent)
    changes = [0] * (len(accesses) + 1)
    for tensor, start in born.items():
        if tensor not in persistent:
            changes[start] += sizes[tensor]
            changes[dies[tensor] + 1] -= sizes[tensor]
    peak = alive = 0
    for change in changes:
        alive += change
        peak = max(peak, alive)
    return always + peak
