"""The search for a mapping: every candidate of a bounded space estimated at once, in closed form."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from hwsim.errors import SpecError
from hwsim.hardware.accelerator import Accelerator, Arrays
from hwsim.hardware.mapping import (
    AXES_OF,
    DATAFLOWS,
    FREE_AXIS,
    ORDERS,
    TICKS,
    Dataflow,
    GemmWork,
    Integers,
    Mapping,
    ceil_div,
)
from hwsim.hardware.mapping_cost import Tile, array_ticks, feed_bits, fold_axes, tile_bytes, tile_rooms, unit_depth

MOST_SIZES = 6  # tile sizes that the search tries along one axis


@dataclass(frozen=True)
class Ranked:
    """A candidate of the search and its estimate."""

    mapping: Mapping
    ticks: int
    score: float


@dataclass(frozen=True)
class SearchPrices:
    """What the search trades: pJ of a byte from DRAM and of a byte at the innermost memory (objective energy, edp)."""

    objective: Literal["cycles", "energy", "edp"] = "cycles"
    dram_pj_per_byte: float = 31.2
    inner_pj_per_byte: float = 2.5


def search(
    work: GemmWork, machine: Accelerator, room: int, prices: SearchPrices | None = None, best: int = 2
) -> list[Ranked]:
    """The `best` tiles with their best order and keeping, by a closed-form estimate; ties go to the first candidate.

    The space is bounded: per axis at most MOST_SIZES tile sizes (multiples of the array's own width, and the whole
    extent), six loop orders, every choice of what to keep, and the dataflows that the machine offers. The estimate
    sums over the kinds of passes the longer of computing and moving, plus the first load and the last store.

    Raises:
        SpecError: not even the smallest tiles fit.
    """
    prices = prices or SearchPrices()
    flows = DATAFLOWS if machine.arrays.dataflow == "any" else (machine.arrays.dataflow,)
    found: list[Ranked] = []
    for finer in (1, 4, 16, 256):  # tiles smaller than the arrays only where no larger one fits
        for flow in flows:
            found += _search_flow(work, machine, room, prices, flow, best, finer)
        if found:
            break
    else:
        raise SpecError(
            f"{machine.name}: memories[0].capacity_kib: the smallest tile of a {work.m} x {work.n} x {work.k} GEMM "
            f"does not fit in {room} bytes"
        )
    return sorted(found, key=lambda item: item.score)[:best]


# Every choice of what to keep, as rows of (a, b, c), the most first; for each loop order, which axes lie inside which.
KEEP = np.array([[bits & 4, bits & 2, bits & 1] for bits in range(7, -1, -1)], bool)
INSIDE = {
    (inner, outer): np.array([order.index(inner) > order.index(outer) for order in ORDERS])[:, None]
    for inner in "mnk"
    for outer in "mnk"
}


def _search_flow(
    work: GemmWork, machine: Accelerator, room: int, prices: SearchPrices, flow: Dataflow, best: int, finer: int
) -> list[Ranked]:
    memory = machine.scratchpad
    tile = _candidate_tiles(work, machine.arrays, flow, finer)
    trips = {axis: ceil_div(work.extent(axis), size) for axis, size in zip("mnk", tile, strict=True)}
    tiles = trips["m"] * trips["n"] * trips["k"]
    read, written, again = feed_bits(machine.arrays, work, flow, *tile)
    feed = (read + written + again * (trips["k"] - 1) / trips["k"]) / 2048  # bytes at the innermost memory, a tile
    compute = np.maximum(array_ticks(machine.arrays, work, flow, *tile)[1], feed * (TICKS / memory.bytes_per_cycle))

    moved = _moved_bytes(work, tile, trips, machine.dram.burst_bytes)
    per_byte = TICKS / float(machine.dram_bytes_per_cycle)
    ticks = tiles * _mean_pass(compute, moved, trips, per_byte, memory.buffers > 1)
    ticks += (moved["a"] + moved["b"] + moved["c"]) * per_byte if memory.buffers > 1 else 0
    total = _total_bytes(moved, trips, tiles)
    energy = total * prices.dram_pj_per_byte + feed * tiles * prices.inner_pj_per_byte
    score = {"cycles": ticks, "energy": energy, "edp": energy * ticks}[prices.objective]

    fits = _footprints(work, tile, trips, memory.buffers) <= room
    table = np.where(fits, score[:, None, :], np.inf)  # what to keep x loop order x tile
    flat = table.reshape(-1, table.shape[-1])
    choice = flat.argmin(axis=0)  # of each tile the best order and keeping; the first of equal ones
    scores = flat[choice, np.arange(len(choice))]
    ranked = []
    for column in np.argsort(scores, kind="stable")[:best]:
        if not np.isfinite(scores[column]):
            break
        keep, order = divmod(int(choice[column]), len(ORDERS))
        m, n, k = (int(size[column]) for size in tile)
        kept = "".join(name for name, chosen in zip("abc", KEEP[keep], strict=True) if chosen)
        mapping = Mapping(flow, (m, n, k), ORDERS[order], kept)
        ranked.append(Ranked(mapping, int(ticks[keep, column]) * work.groups, float(scores[column])))
    return ranked


def _moved_bytes(work: GemmWork, tile: Tile, trips: dict[str, Integers], burst: int) -> dict[str, Integers]:
    """DRAM bytes of a mean tile of each operand, and of a tile of partial sums ("sums")."""
    moved = {}
    for name in "abc":
        first, second = tuple(AXES_OF[name])
        size = dict(zip("mnk", tile, strict=True))
        covered = size[first] * trips[first] * size[second] * trips[second]
        share = work.extent(first) * work.extent(second) / covered  # edge tiles are smaller
        stays = work.operand(name).on_chip
        moved[name] = np.zeros(len(tile[0])) if stays else tile_bytes(work, name, tile, burst) * share
    moved["sums"] = tile[0] * tile[1] * (work.sum_bits / 8)
    return moved


def _mean_pass(
    compute: Integers, moved: dict[str, Integers], trips: dict[str, Integers], per_byte: float, overlap: bool
) -> Integers:
    """Ticks of a mean pass, for every choice of what to keep (rows) and tile (columns).

    A kept operand is fetched in the first turn of its free axis alone, so passes are of eight kinds: with or without a
    tile of a, of b, and a result to store. Each takes the longer of computing and moving, or both without overlap.
    """
    share_a = np.where(KEEP[:, :1], 1 / trips["n"], 1.0)
    share_b = np.where(KEEP[:, 1:2], 1 / trips["m"], 1.0)
    share_c = 1 / trips["k"]
    mean = np.zeros_like(share_a)
    several = trips["k"] > 1
    sums = {
        True: moved["sums"] * per_byte * several,
        False: 2 * (moved["sums"] * per_byte) * several,
    }  # by whether k ends
    kept = KEEP[:, 2:]
    for has_a in (True, False):
        for has_b in (True, False):
            both = (share_a if has_a else 1 - share_a) * (share_b if has_b else 1 - share_b)
            for ends in (True, False):
                transfer = (moved["a"] if has_a else 0) + (moved["b"] if has_b else 0) + (moved["c"] if ends else 0)
                base = transfer * per_byte
                spilling = base + sums[ends]
                if overlap:
                    whole, part = np.maximum(compute, base), np.maximum(compute, spilling)
                else:
                    whole, part = compute + base, compute + spilling
                mean += both * (share_c if ends else 1 - share_c) * np.where(kept, whole, part)
    return mean


def _total_bytes(moved: dict[str, Integers], trips: dict[str, Integers], tiles: Integers) -> Integers:
    """DRAM bytes of the whole GEMM, for every choice of what to keep and tile."""
    a = moved["a"] * np.where(KEEP[:, :1], tiles / trips["n"], tiles)
    b = moved["b"] * np.where(KEEP[:, 1:2], tiles / trips["m"], tiles)
    spilled = np.where(KEEP[:, 2:], 0.0, 2 * moved["sums"] * (tiles - tiles / trips["k"]))
    return a + b + moved["c"] * (tiles / trips["k"]) + spilled


def _footprints(work: GemmWork, tile: Tile, trips: dict[str, Integers], buffers: int) -> Integers:
    """Room in bytes for every choice of what to keep x loop order x tile; `kept_tiles` for all of them at once."""
    room: Integers = 0
    sizes = tile_rooms(work, tile)
    for column, name in enumerate("abc"):
        first, second = tuple(AXES_OF[name])
        free = FREE_AXIS[name]
        total = trips[first] * trips[second]
        inner = np.where(INSIDE[first, free], trips[first], 1) * np.where(INSIDE[second, free], trips[second], 1)
        kept = np.minimum(total, inner + buffers - 1) * sizes[name]
        streamed = np.minimum(total, buffers) * sizes[name]
        room = room + np.where(KEEP[:, column, None, None], kept[None], streamed[None, None])
    return room


def _candidate_tiles(
    work: GemmWork, arrays: Arrays, flow: str, finer: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    depth, _ = unit_depth(arrays, work.rate)
    row_axis, col_axis, _ = fold_axes(flow)
    unit = {"m": 16, "n": 16, "k": 16 * depth}
    unit[row_axis] = arrays.rows * (depth if row_axis == "k" else 1)
    unit[col_axis] = arrays.cols
    return _grid(*(_sizes(work.extent(axis), max(1, unit[axis] // finer)) for axis in "mnk"))


@lru_cache(maxsize=4096)
def _grid(m: tuple[int, ...], n: tuple[int, ...], k: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    grid = np.meshgrid(np.array(m, np.int64), np.array(n, np.int64), np.array(k, np.int64), indexing="ij")
    return grid[0].ravel(), grid[1].ravel(), grid[2].ravel()


@lru_cache(maxsize=4096)
def _sizes(extent: int, unit: int) -> tuple[int, ...]:
    """Tile sizes along one axis, largest first: the whole, then a geometric series of units, MOST_SIZES in all."""
    sizes = [extent]
    units = -(-extent // unit)
    ratio = max(2.0, units ** (1 / (MOST_SIZES - 1)))
    while units > 1 and len(sizes) < MOST_SIZES:
        units = max(1, round(units / ratio))
        if units * unit < sizes[-1]:
            sizes.append(units * unit)
    return tuple(sizes)
