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
from collections.abc import Iterator
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

Integers = Any  # an int, or a numpy array of ints: the cost formulas take both


@dataclass(frozen=True)
class Operand:
    """One side of a GEMM as it lies in memory. `bits` are of one element, block scales included, times 256."""

    bits: int
    contiguous: str  # the axis along which neighbors lie next to each other
    on_chip: bool = False  # held by the outermost on-chip memory: no DRAM traffic
    picked: bool = False  # its lines are picked by index, so each of them starts at a burst of its own
    spread: Fraction = Fraction(1)  # moved over useful bytes if kept positions lie scattered along the lines
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
    fed: Fraction = Fraction(1)  # share of the streamed positions that take array time (the others are skipped zeros)
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
    speed = rate / (arrays.rows * arrays.cols)
    depth = max(arrays.depth, int(speed))
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
    stream = ceil_div(stream * work.fed.numerator, work.fed.denominator)
    rounds = ceil_div(folds, arrays.count)
    edge = (rows + cols - 2 if arrays.skewed else 0) * TICKS + arrays.pipeline_cycles * TICKS
    busy = rounds * stream
    if arrays.folds == "separate":
        return busy, rounds * (load + stream + edge)
    swap = rows * TICKS  # the next stationary operand (or the last results) moves while this fold streams
    return busy, rounds * _larger(stream, swap) + load + edge


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
    if operand.spread != 1 and burst > 1:
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


def kept_tiles(name: str, order: str, keep: Any, trips: dict[str, Integers], buffers: int) -> Integers:
    """Tiles of an operand that are on chip at once: those met again, plus those in flight."""
    free = order.index(FREE_AXIS[name])
    held: Integers = 1
    total: Integers = 1
    for axis in AXES_OF[name]:
        total = total * trips[axis]
        if order.index(axis) > free:
            held = held * trips[axis]
    held = _where(keep, held, 1)
    return _smaller(total, held + buffers - 1)


def footprint_bytes(work: GemmWork, tile: tuple[Integers, Integers, Integers], held: dict[str, Integers]) -> Integers:
    """Room that a mapping takes in the innermost memory: tiles of the operands, and partial sums at their width."""
    sums = ceil_div(chip_elements(work, "c", tile) * max(work.sum_bits * 256, work.c.bits), 2048)
    a, b = (work.operand(name).bytes_of(chip_elements(work, name, tile)) for name in "ab")
    return a * held["a"] + b * held["b"] + sums * held["c"]


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
    work: GemmWork, machine: Accelerator, room: int, prices: SearchPrices | None = None, best: int = 3
) -> list[Ranked]:
    """The `best` mappings by a closed-form estimate, deterministic; ties go to the first candidate.

    The space is bounded: per axis at most seven tile sizes (the array's own width times powers of two, and the whole
    extent), six loop orders, every choice of what to keep, and the dataflows that the machine offers. The estimate
    is the larger of compute and port time, plus the first load and the last store, which nothing can hide.

    Raises:
        SpecError: not even the smallest tiles fit.
    """
    prices = prices or SearchPrices()
    flows = DATAFLOWS if machine.arrays.dataflow == "any" else (machine.arrays.dataflow,)
    found: list[Ranked] = []
    for flow in flows:
        found += _search_flow(work, machine, room, prices, flow, best)
    if not found:
        raise SpecError(
            f"{machine.name}: memories[0].capacity_kib: the smallest tile of a {work.m} x {work.n} x {work.k} GEMM "
            f"does not fit in {room} bytes"
        )
    return sorted(found, key=lambda item: item.score)[:best]


def _search_flow(
    work: GemmWork, machine: Accelerator, room: int, prices: SearchPrices, flow: Dataflow, best: int
) -> list[Ranked]:
    arrays, memory, burst = machine.arrays, machine.scratchpad, machine.dram.burst_bytes
    tm, tn, tk = _candidate_tiles(work, arrays, flow)
    trips = {axis: ceil_div(np.int64(work.extent(axis)), size) for axis, size in zip("mnk", (tm, tn, tk), strict=True)}
    tiles = trips["m"] * trips["n"] * trips["k"]
    _, compute = array_ticks(arrays, work, flow, tm, tn, tk)
    read, written, again = feed_bits(arrays, work, flow, tm, tn, tk)
    feed = (read + written + again * (trips["k"] - 1) // trips["k"]) / 2048
    port = (feed * (TICKS / memory.bytes_per_cycle)).astype(np.int64)
    compute_total = np.maximum(compute, port) * tiles

    # Bytes of each operand if every tile is fetched once, and bytes of its first tile.
    whole = {name: _whole_bytes(work, name, (tm, tn, tk), trips, burst) for name in "abc"}
    spill = _spill_bytes(work, trips)
    rate = float(machine.dram_bytes_per_cycle)
    first = sum(tile_bytes(work, name, (tm, tn, tk), burst) for name in "ab" if not work.operand(name).on_chip)
    last = 0 if work.c.on_chip else tile_bytes(work, "c", (tm, tn, tk), burst)

    # All loop orders (rows) and tiles (columns) at once, one choice of what to keep after the other.
    ranked: list[Ranked] = []
    for keep_a, keep_b, keep_c in _keep_choices():
        keep = {"a": keep_a, "b": keep_b, "c": keep_c}
        rows = []
        for order in ORDERS:
            held = {name: kept_tiles(name, order, keep[name], trips, memory.buffers) for name in "abc"}
            rows.append(footprint_bytes(work, (tm, tn, tk), held))
        fits = np.stack(rows) <= room
        if not fits.any():
            continue
        moved = sum(
            np.where(keep[name], whole[name], whole[name] * trips[FREE_AXIS[name]])
            for name in "ab"
            if not work.operand(name).on_chip
        )
        moved = moved + (0 if work.c.on_chip else whole["c"]) + (0 if keep_c else spill)
        transfer = moved * (TICKS / rate)
        if memory.buffers > 1:
            ticks = np.maximum(compute_total, transfer) + (first + last) * (TICKS / rate)
        else:
            ticks = compute_total + transfer
        score = ticks
        if prices.objective != "cycles":
            energy = moved * prices.dram_pj_per_byte + feed * tiles * prices.inner_pj_per_byte
            score = energy if prices.objective == "energy" else energy * ticks
        table = np.where(fits, score, np.inf)
        for flat in np.argsort(table, axis=None, kind="stable")[:best]:
            row, column = divmod(int(flat), table.shape[1])
            if np.isfinite(table[row, column]):
                tile = (int(tm[column]), int(tn[column]), int(tk[column]))
                kept = "".join(name for name in "abc" if keep[name])
                mapping = Mapping(flow, tile, ORDERS[row], kept)
                ranked.append(Ranked(mapping, int(ticks[column]) * work.groups, float(table[row, column])))
    return sorted(ranked, key=lambda item: item.score)[:best]


def _keep_choices() -> Iterator[tuple[bool, bool, bool]]:
    for bits in range(7, -1, -1):
        yield bool(bits & 4), bool(bits & 2), bool(bits & 1)


def _whole_bytes(
    work: GemmWork, name: str, tile: tuple[Integers, Integers, Integers], trips: dict[str, Integers], burst: int
) -> Integers:
    """Bytes of all tiles of an operand, each fetched once (full tiles everywhere: an estimate at the edges)."""
    first, second = tuple(AXES_OF[name])
    size = dict(zip("mnk", tile, strict=True))
    share = (work.extent(first) * work.extent(second)) / (size[first] * trips[first] * size[second] * trips[second])
    return tile_bytes(work, name, tile, burst) * trips[first] * trips[second] * share


def _spill_bytes(work: GemmWork, trips: dict[str, Integers]) -> Integers:
    """Partial sums written out and fetched back where they are not kept along k."""
    sums = ceil_div(work.m * work.n * work.sum_bits, 8)
    return 2 * sums * (trips["k"] - 1)


def _candidate_tiles(work: GemmWork, arrays: Arrays, flow: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    depth, _ = unit_depth(arrays, work.rate)
    row_axis, col_axis, _ = fold_axes(flow)
    unit = {"m": 16, "n": 16, "k": 16 * depth}
    unit[row_axis] = arrays.rows * (depth if row_axis == "k" else 1)
    unit[col_axis] = arrays.cols
    return _grid(*(_sizes(work.extent(axis), unit[axis]) for axis in "mnk"))


@lru_cache(maxsize=4096)
def _grid(m: tuple[int, ...], n: tuple[int, ...], k: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    grid = np.meshgrid(np.array(m, np.int64), np.array(n, np.int64), np.array(k, np.int64), indexing="ij")
    return grid[0].ravel(), grid[1].ravel(), grid[2].ravel()


@lru_cache(maxsize=4096)
def _sizes(extent: int, unit: int) -> tuple[int, ...]:
    """Tile sizes along one axis, largest first: the whole, then a geometric series of units, at most seven in all."""
    sizes = [extent]
    units = -(-extent // unit)
    ratio = max(2.0, units ** (1 / 6))
    while units > 1 and len(sizes) < 7:
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
