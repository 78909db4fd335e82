"""How a GEMM is laid on the arrays: tiles, loop order, what stays on chip, the dataflow; and the search for it.

A GEMM of m x k times k x n is cut into tiles; three loops visit them, in some order. Each operand misses one of the
three axes (a: n, b: m, the result: k), so walking along that axis meets the same tile again. A mapping says for each
operand whether its tiles are *kept* on chip until then, which takes room, or fetched again. That is the whole space:

    weight_stationary tile=64x500x784 order=mnk keep=ab

Costs are integers in closed form. The formulas take Python integers and numpy arrays alike: the search evaluates all
candidates at once, the lowering asks for one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import permutations
from typing import Any, Literal

import numpy as np

from hwsim.errors import SpecError
from hwsim.hardware.accelerator import Accelerator, Arrays
from hwsim.workload import ConvGeometry

Dataflow = Literal["weight_stationary", "output_stationary", "input_stationary"]
DATAFLOWS: tuple[Dataflow, ...] = ("weight_stationary", "output_stationary", "input_stationary")
ORDERS = tuple("".join(order) for order in permutations("mnk"))
AXES_OF = {"a": "mk", "b": "kn", "c": "mn"}
FREE_AXIS = {"a": "n", "b": "m", "c": "k"}  # the axis along which the operand is met again

TICKS = 1024  # per cycle; see simulation/program.py

ALL = Fraction(1)

MOST_SIZES = 6  # tile sizes that the search tries along one axis

Integers = Any  # an int, or a numpy array of ints: the cost formulas take both


@dataclass(frozen=True)
class Operand:
    """One side of a GEMM as it lies in memory. `bits` are of one element, block scales included, times 256."""

    bits: int
    contiguous: str  # the axis along which neighbors lie next to each other
    on_chip: bool = False  # held by the outermost on-chip memory: no DRAM traffic
    picked: bool = False  # its lines are picked by index, so each of them starts at a burst of its own
    spread: Fraction = ALL  # moved over useful bytes if kept positions lie scattered along the lines
    conv: ConvGeometry | None = None  # an image that is unfolded into the GEMM operand on its way to the arrays

    def bytes_of(self, elements: Integers) -> Integers:
        """Stored bytes, rounded up."""
        return -(-elements * self.bits // 2048)


@dataclass(frozen=True)
class GemmWork:
    """A GEMM as the machine meets it: extents after any selection, and where its operands are.

    a is m x k, b is k x n, c is m x n; `groups` such GEMMs follow each other; `sum_bits` is the width of a partial sum.
    """

    m: int
    n: int
    k: int
    groups: int
    a: Operand
    b: Operand
    c: Operand
    sum_bits: int
    rate: Fraction  # MACs per cycle of one array for these operands
    fed: Fraction = ALL  # share of the streamed positions that take array time (the others are skipped zeros)
    epilogue: Fraction = Fraction(0)  # ticks of the vector unit for each result as it leaves the arrays

    def extent(self, axis: str) -> int:
        """Size along "m", "n" or "k"."""
        return int(getattr(self, axis))

    def operand(self, name: str) -> Operand:
        """The operand named "a", "b" or "c"."""
        found: Operand = getattr(self, name)
        return found


@dataclass(frozen=True)
class Mapping:
    """A point of the mapping space. ``str()`` and `parse` round-trip, so that a mapping can be printed and pinned."""

    dataflow: Dataflow
    tile: tuple[int, int, int]  # m, n, k
    order: str  # outer to inner
    keep: str  # operands kept on chip along their free axis

    def __str__(self) -> str:
        tile = "x".join(map(str, self.tile))
        return f"{self.dataflow} tile={tile} order={self.order} keep={self.keep or '-'}"

    @classmethod
    def parse(cls, text: str) -> Mapping:
        """Read what ``str()`` prints.

        Raises:
            SpecError: says what was expected.
        """
        pattern = r"(\w+) tile=(\d+)x(\d+)x(\d+) order=([mnk]{3}) keep=(-|[abc]{1,3})"
        match = re.fullmatch(pattern, text.strip())
        if match is None or match[1] not in DATAFLOWS or match[5] not in ORDERS:
            example = "weight_stationary tile=64x500x784 order=mnk keep=ab"
            raise SpecError(f"mapping: got {text!r}, expected for example {example!r}")
        keep = "" if match[6] == "-" else match[6]
        return cls(match[1], (int(match[2]), int(match[3]), int(match[4])), match[5], keep)

    def clipped(self, work: GemmWork) -> Mapping:
        """The same mapping with no tile larger than the GEMM."""
        m, n, k = self.tile
        return Mapping(self.dataflow, (min(m, work.m), min(n, work.n), min(k, work.k)), self.order, self.keep)


def ceil_div(a: Integers, b: Integers) -> Integers:
    """a / b rounded up, for integers."""
    return -(-a // b)


# ---- the arrays


def unit_depth(arrays: Arrays, rate: Fraction) -> tuple[int, int]:
    """Products that one unit takes in one step, and ticks of a step, if the array does `rate` MACs a cycle."""
    return _unit_depth(arrays.rows * arrays.cols, arrays.depth, rate.numerator, rate.denominator)


@lru_cache(maxsize=256)
def _unit_depth(units: int, least_depth: int, macs: int, cycles: int) -> tuple[int, int]:
    speed = Fraction(macs, cycles * units)
    depth = max(least_depth, int(speed))
    step = depth / speed * TICKS
    return depth, ceil_div(step.numerator, step.denominator)


def fold_axes(dataflow: str) -> tuple[str, str, str]:
    """Axes along the rows and the columns of the array, and the one that streams."""
    return {"weight_stationary": ("k", "n", "m"), "output_stationary": ("m", "n", "k")}.get(dataflow, ("k", "m", "n"))


def array_ticks(
    arrays: Arrays, work: GemmWork, dataflow: str, m: Integers, n: Integers, k: Integers
) -> tuple[Integers, Integers]:
    """Ticks in which the arrays are fed, and ticks until the last result has left, for a tile of m x n x k."""
    depth, step = unit_depth(arrays, work.rate)
    rows, cols = arrays.rows, arrays.cols
    if dataflow == "output_stationary":
        folds, stream, load = ceil_div(m, rows) * ceil_div(n, cols), ceil_div(k, depth) * step, 0
    elif dataflow == "weight_stationary":
        folds, stream, load = ceil_div(k, rows * depth) * ceil_div(n, cols), m * step, rows * TICKS
    else:
        folds, stream, load = ceil_div(k, rows * depth) * ceil_div(m, cols), n * step, rows * TICKS
    if work.fed is not ALL:
        stream = ceil_div(stream * work.fed.numerator, work.fed.denominator)
    rounds = ceil_div(folds, arrays.count)
    edge = (rows + cols - 2 if arrays.skewed else 0) * TICKS + arrays.pipeline_cycles * TICKS
    busy = rounds * stream
    if arrays.folds == "separate":
        return busy, rounds * (load + stream + edge)
    swap = rows * TICKS  # the next stationary operand (or the last results) moves while this fold streams
    return busy, rounds * _larger(stream, swap) + load + edge


def list_ticks(arrays: Arrays, work: GemmWork, lengths: Sequence[int], columns: int) -> tuple[int, int]:
    """`array_ticks`, output stationary, where groups of array rows walk lists of their own past `columns` columns."""
    depth, step = unit_depth(arrays, work.rate)
    streams = [ceil_div(max(1, length), depth) * step for length in lengths]
    folds = ceil_div(columns, arrays.cols)
    edge = ((arrays.rows + arrays.cols - 2 if arrays.skewed else 0) + arrays.pipeline_cycles) * TICKS
    busy = ceil_div(folds * sum(streams), arrays.count)
    if arrays.folds == "separate":
        return busy, ceil_div(folds * sum(stream + edge for stream in streams), arrays.count)
    swap = arrays.rows * TICKS
    return busy, ceil_div(folds * sum(max(stream, swap) for stream in streams), arrays.count) + edge


def feed_bits(arrays: Arrays, work: GemmWork, dataflow: str, m: Integers, n: Integers, k: Integers) -> Integers:
    """Bits x 256 that the arrays read from and write to the innermost memory for a tile, first sums only written.

    Returns (read, written by the first k-tile's folds, read again for each further k-tile).
    """
    depth, _ = unit_depth(arrays, work.rate)
    results = m * n * (work.sum_bits * 256)
    if dataflow == "output_stationary":
        read = m * k * ceil_div(n, arrays.cols) * work.a.bits + k * n * ceil_div(m, arrays.rows) * work.b.bits
        return read, results, results
    k_folds = ceil_div(k, arrays.rows * depth)
    if dataflow == "weight_stationary":
        read = m * k * ceil_div(n, arrays.cols) * work.a.bits + k * n * work.b.bits
    else:
        read = m * k * work.a.bits + k * n * ceil_div(m, arrays.cols) * work.b.bits
    return read + (k_folds - 1) * results, k_folds * results, results


# ---- memory traffic


def tile_bytes(work: GemmWork, name: str, tile: tuple[Integers, Integers, Integers], burst: int) -> Integers:
    """Bytes of one tile of an operand in DRAM, in whole bursts; tiles start at a burst.

    A tile as wide as the operand is one run; otherwise each of its lines rounds up. Gathered lines round up alone.
    An image to be unfolded is fetched once: the rows under the tile, halo included.
    """
    operand = work.operand(name)
    size = dict(zip("mnk", tile, strict=True))
    if operand.conv is not None:
        return _round_up(operand.bytes_of(image_elements(operand.conv, name, size)), burst)
    along = operand.contiguous
    across = AXES_OF[name].replace(along, "")
    width, lines, whole = size[along], size[across], work.extent(along)
    run = _round_up(operand.bytes_of(width * lines), burst)
    split = lines * _round_up(operand.bytes_of(width), burst)
    if operand.picked:
        return split
    if operand.spread is not ALL and burst > 1:
        return _round_up(
            ceil_div(operand.bytes_of(width * lines) * operand.spread.numerator, operand.spread.denominator), burst
        )
    return _where(width >= whole, run, split)


def image_elements(conv: ConvGeometry, name: str, size: dict[str, Integers]) -> Integers:
    """Elements of the image under a tile of its unfolded matrix (pixels x (channel, kernel)), of one group.

    Which side is unfolded depends on the GEMM: a (pixels m, columns k) for the output, c (pixels m, columns n; folded
    back by adding) for grad_input, b (pixels k, columns n) for grad_weight.
    """
    pixels = size["k"] if name == "b" else size["m"]
    columns = size["k"] if name == "a" else size["n"]
    out_height, out_width = conv.out_size
    in_height, in_width = conv.in_size
    kernel = conv.kernel[0] * conv.kernel[1]
    channels = _smaller(ceil_div(columns, kernel), conv.in_channels // conv.groups)
    images = ceil_div(pixels, out_height * out_width)
    rows = _smaller(ceil_div(pixels, out_width), out_height)
    reach = (conv.kernel[0] - 1) * conv.dilation[0] + 1
    in_rows = _smaller((rows - 1) * conv.stride[0] + reach, in_height)
    return images * channels * in_rows * in_width


def chip_elements(work: GemmWork, name: str, tile: tuple[Integers, Integers, Integers]) -> Integers:
    """Elements of a tile as it lies on chip: images stay folded until they enter the arrays."""
    size = dict(zip("mnk", tile, strict=True))
    conv = work.operand(name).conv
    if conv is not None:
        return image_elements(conv, name, size)
    first, second = tuple(AXES_OF[name])
    return size[first] * size[second]


def _tile_rooms(work: GemmWork, tile: tuple[Integers, Integers, Integers]) -> dict[str, Integers]:
    """Bytes of a tile of each operand in the innermost memory; results lie there at the width of partial sums."""
    widest = max(work.sum_bits * 256, work.c.bits)
    return {
        "a": work.a.bytes_of(chip_elements(work, "a", tile)),
        "b": work.b.bytes_of(chip_elements(work, "b", tile)),
        "c": ceil_div(chip_elements(work, "c", tile) * widest, 2048),
    }


def kept_tiles(name: str, order: str, keep: bool, trips: dict[str, int], buffers: int) -> int:
    """Tiles of an operand that are on chip at once: those met again along its free axis, plus those in flight."""
    free = order.index(FREE_AXIS[name])
    held = total = 1
    for axis in AXES_OF[name]:
        total *= trips[axis]
        if keep and order.index(axis) > free:
            held *= trips[axis]
    return min(total, held + buffers - 1)


def footprint_bytes(work: GemmWork, mapping: Mapping, buffers: int) -> int:
    """Room that a mapping takes in the innermost memory."""
    trips = {axis: ceil_div(work.extent(axis), size) for axis, size in zip("mnk", mapping.tile, strict=True)}
    rooms = _tile_rooms(work, mapping.tile)
    return sum(rooms[name] * kept_tiles(name, mapping.order, name in mapping.keep, trips, buffers) for name in "abc")


def room_bytes(machine: Accelerator, resident_bytes: int = 0) -> int:
    """Room for tiles in the innermost memory; `resident_bytes` are taken by tensors that stay between ops."""
    capacity = int(machine.scratchpad.capacity_kib * 1024)
    return capacity - resident_bytes if machine.scratchpad is machine.outermost else capacity


# ---- the search


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


def _moved_bytes(
    work: GemmWork, tile: tuple[Integers, Integers, Integers], trips: dict[str, Integers], burst: int
) -> dict[str, Integers]:
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
    spilled = np.where(KEEP[:, 2:], 0.0, moved["sums"] * per_byte)
    mean = np.zeros_like(share_a)
    for has_a in (True, False):
        for has_b in (True, False):
            for ends in (True, False):
                share = (share_a if has_a else 1 - share_a) * (share_b if has_b else 1 - share_b)
                transfer = (moved["a"] if has_a else 0) + (moved["b"] if has_b else 0) + (moved["c"] if ends else 0)
                ticks = transfer * per_byte + (spilled if ends else 2 * spilled) * (trips["k"] > 1)
                share = share * (share_c if ends else 1 - share_c)
                mean = mean + share * (np.maximum(compute, ticks) if overlap else compute + ticks)
    return mean


def _total_bytes(moved: dict[str, Integers], trips: dict[str, Integers], tiles: Integers) -> Integers:
    """DRAM bytes of the whole GEMM, for every choice of what to keep and tile."""
    a = moved["a"] * np.where(KEEP[:, :1], tiles / trips["n"], tiles)
    b = moved["b"] * np.where(KEEP[:, 1:2], tiles / trips["m"], tiles)
    spilled = np.where(KEEP[:, 2:], 0.0, 2 * moved["sums"] * (tiles - tiles / trips["k"]))
    return a + b + moved["c"] * (tiles / trips["k"]) + spilled


def _footprints(
    work: GemmWork, tile: tuple[Integers, Integers, Integers], trips: dict[str, Integers], buffers: int
) -> Integers:
    """Room in bytes for every choice of what to keep x loop order x tile; `kept_tiles` for all of them at once."""
    room: Integers = 0
    sizes = _tile_rooms(work, tile)
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


# ---- integers and arrays of them alike


def _larger(a: Integers, b: Integers) -> Integers:
    return np.maximum(a, b) if isinstance(a, np.ndarray) or isinstance(b, np.ndarray) else max(a, b)


def _smaller(a: Integers, b: Integers) -> Integers:
    return np.minimum(a, b) if isinstance(a, np.ndarray) or isinstance(b, np.ndarray) else min(a, b)


def _where(condition: Any, a: Integers, b: Integers) -> Integers:
    if isinstance(condition, np.ndarray):
        return np.where(condition, a, b)
    return a if condition else b


def _round_up(size: Integers, burst: int) -> Integers:
    return -(-size // burst) * burst
