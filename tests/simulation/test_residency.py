"""Which tensors stay on chip, against a brute-force search over all choices, and how much memory a step needs."""

from __future__ import annotations

import random
from itertools import combinations

from hwsim.simulation.residency import Access, peak_bytes, place


def misses(accesses, capacity_in_tensors) -> int:
    sizes = {t: 1 for access in accesses for t in (*access.reads, *access.writes)}
    placements = place(accesses, sizes, frozenset(), capacity_in_tensors)
    reads = sum(len(set(a.reads)) - len(p.on_chip_reads) for a, p in zip(accesses, placements, strict=True))
    return reads + sum(len(p.spills) for p in placements)


def fewest_read_misses(accesses, capacity) -> int:
    """Try every set of tensors that could stay after every op."""
    best = {frozenset(): 0}
    for access in accesses:
        after: dict[frozenset[str], int] = {}
        for held, cost in best.items():
            total = cost + len(set(access.reads) - held)
            present = held | set(access.reads) | set(access.writes)
            for count in range(min(capacity, len(present)) + 1):
                for kept in combinations(sorted(present), count):
                    key = frozenset(kept)
                    after[key] = min(after.get(key, total), total)
        best = after
    return min(best.values())


def test_reads_miss_as_rarely_as_possible_where_tensors_are_equally_large():
    rng = random.Random(3)
    for _ in range(60):
        names = "abcde"[: rng.randint(2, 5)]
        accesses = [Access((rng.choice(names),), ()) for _ in range(rng.randint(2, 9))]
        capacity = rng.randint(1, 3)
        assert misses(accesses, capacity) == fewest_read_misses(accesses, capacity)


def test_a_result_that_stays_needs_no_store_and_one_that_leaves_early_is_spilled():
    accesses = [
        Access(("x",), ("y",)),
        Access(("w",), ("z",)),
        Access(("z",), ("v",)),
        Access(("y", "v"), ("out",)),
    ]
    sizes = dict.fromkeys("xyzwv", 10) | {"out": 10}
    roomy = place(accesses, sizes, frozenset(), 100)
    assert roomy[2].on_chip_reads == {"z"}
    assert roomy[3].on_chip_reads == {"y", "v"}
    assert not any(p.spills for p in roomy)
    tight = place(accesses, sizes, frozenset(), 10)
    assert tight[1].spills == ("y",)  # z is used sooner: y leaves before op 1 begins, and op 3 fetches it again
    assert tight[2].on_chip_reads == {"z"}
    assert "y" not in tight[3].on_chip_reads
    # While z is read it takes its place, so v cannot stay beside it.
    assert tight[2].on_chip_writes == frozenset()


def test_persistent_results_are_stored_in_any_case():
    placements = place([Access(("w",), ("w",)), Access(("w",), ())], {"w": 4}, frozenset({"w"}), 100)
    assert "w" not in placements[0].on_chip_writes
    assert "w" in placements[1].on_chip_reads


def test_nothing_held_exceeds_the_capacity():
    rng = random.Random(5)
    names = [f"t{i}" for i in range(12)]
    for _ in range(100):
        sizes = {name: rng.randint(1, 9) for name in names}
        accesses = [
            Access(tuple(rng.sample(names, rng.randint(0, 3))), tuple(rng.sample(names, rng.randint(0, 2))))
            for _ in range(15)
        ]
        capacity = rng.randint(0, 30)
        assert all(p.resident_bytes <= capacity for p in place(accesses, sizes, frozenset({"t0"}), capacity))


def test_peak_memory_counts_what_is_alive():
    accesses = [Access(("x", "w"), ("a",)), Access(("a",), ("b",)), Access(("b", "a"), ("c",)), Access(("c",), ())]
    sizes = {"x": 100, "w": 7, "a": 10, "b": 20, "c": 40}
    # x and a during op 0; then a, b; then a, b, c; w always.
    assert peak_bytes(accesses, sizes, frozenset({"w"})) == 7 + 110
    assert peak_bytes(accesses, sizes | {"x": 1}, frozenset({"w"})) == 7 + 10 + 20 + 40
