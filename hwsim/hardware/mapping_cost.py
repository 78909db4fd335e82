"""What tiles of a GEMM take: time on the arrays, bytes from DRAM, room on chip. Integers, in closed form.

The formulas take Python integers and numpy arrays of them alike: the search evaluates all candidates at once, the
lowering asks for one.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np

from hwsim.hardware.accelerator import Accelerator, Arrays
from hwsim.hardware.mapping import ALL, AXES_OF, FREE_AXIS, TICKS, GemmWork, Integers, Mapping, ceil_div
from hwsim.workload import ConvGeometry

Tile = tuple[Integers, Integers, Integers]  # m, n, k

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


def tile_bytes(work: GemmWork, name: str, tile: Tile, burst: int) -> Integers:
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


def chip_elements(work: GemmWork, name: str, tile: Tile) -> Integers:
    """Elements of a tile as it lies on chip: images stay folded until they enter the arrays."""
    size = dict(zip("mnk", tile, strict=True))
    conv = work.operand(name).conv
    if conv is not None:
        return image_elements(conv, name, size)
    first, second = tuple(AXES_OF[name])
    return size[first] * size[second]


def tile_rooms(work: GemmWork, tile: Tile) -> dict[str, Integers]:
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
    rooms = tile_rooms(work, mapping.tile)
    return sum(rooms[name] * kept_tiles(name, mapping.order, name in mapping.keep, trips, buffers) for name in "abc")


def room_bytes(machine: Accelerator, resident_bytes: int = 0) -> int:
    """Room for tiles in the innermost memory; `resident_bytes` are taken by tensors that stay between ops."""
    capacity = int(machine.scratchpad.capacity_kib * 1024)
    return capacity - resident_bytes if machine.scratchpad is machine.outermost else capacity


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
