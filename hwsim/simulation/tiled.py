"""How long a machine that works through output tiles in waves takes for a GEMM, and how it lays the GEMM out.

Every combination of output tile, split of the reduced axis and length of a step is a candidate. A program computes
one tile in steps along k; the operands of the next step arrive while it computes this one. All programs are alike, so
the machine is a pipeline of two stages, and with `stages` steps one after the other on the busiest array

    cycles = load + (stages - 1) x max(load, compute + overhead) + compute + tail

load     a step's share of the DRAM time: unique operands, read again for every wave that no longer finds them in the
         cache, and the results unless they leave at the end (`tail`)
compute  the slowest of the MACs of a step, its reads from the outermost on-chip memory, and the latency floor
tail     results that leave after the last tile, and the reduction of split sums through memory

The fastest candidate is taken; ties go to the first. `TiledWork` holds one GEMM or many (numpy arrays): fits and
tests ask for thousands at once, the engine for one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from hwsim.arithmetic.number import NumberFormat
from hwsim.hardware.accelerator import Accelerator
from hwsim.hardware.tiled import Tiled
from hwsim.workload import ConvGeometry, Gemm

FLOAT32_BYTES = 4
SHORTEST_SPLIT = 4  # steps along k that a part of a split reduction keeps at least

PLAIN, MATRIX_CONVOLUTION, FALLBACK_CONVOLUTION = 0, 1, 2  # which list of tiles applies

Numbers = Any  # one number, or a numpy array of them


@dataclass(frozen=True)
class TiledWork:
    """One GEMM, or many of the same operand width: c (m x n) = a (m x k) times b (k x n), `groups` of them at once.

    Bytes are unique bytes in memory: of a convolution the image, not its unfolding; 0 for what is on chip already.
    """

    m: Numbers
    n: Numbers
    k: Numbers
    a_bytes: Numbers
    b_bytes: Numbers
    c_bytes: Numbers
    operand_bytes: Numbers  # of one element of the wider operand
    macs_per_cycle: Numbers  # of one array
    a_along_k: Numbers = False  # whether neighbors in memory lie along k
    b_along_k: Numbers = False
    gathered: Numbers = False  # operands of a convolution, fetched by position
    kind: Numbers = PLAIN
    may_split: Numbers = True
    groups: Numbers = 1


@dataclass(frozen=True)
class TiledPlan:
    """How the work is laid out, and its times in cycles of the running clock (arrays if the work was many)."""

    cycles: Numbers
    tile_m: Numbers
    tile_n: Numbers
    split_k: Numbers
    step_k: Numbers
    stages: Numbers
    load: Numbers  # of one stage
    compute: Numbers  # of one stage
    overhead: Numbers  # between two stages
    tail: Numbers
    busy: Numbers  # of one stage: the arrays are fed
    macs_per_cycle: Numbers  # of one array
    dram_read: Numbers  # bytes in all
    dram_written: Numbers
    chip_read: Numbers  # bytes in all, from the outermost on-chip memory

    def __str__(self) -> str:
        split = f" split_k={int(self.split_k)}" if self.split_k > 1 else ""
        return f"tile={int(self.tile_m)}x{int(self.tile_n)} step_k={int(self.step_k)}{split}"


def gemm_work(
    m: Numbers,
    n: Numbers,
    k: Numbers,
    machine: Accelerator,
    formats: tuple[NumberFormat, NumberFormat, NumberFormat],
    along_k: tuple[Numbers, Numbers] = (True, True),
) -> TiledWork:
    """A dense GEMM from and to DRAM; `along_k` says for a and b whether neighbors in memory lie along k."""
    a, b, c = (each.bits_per_element / 8 for each in formats)
    rate = float(machine.arrays.rate_of(*formats[:2]))
    return TiledWork(m, n, k, m * k * a, k * n * b, m * n * c, max(a, b), rate, *along_k)


def convolution_work(
    conv: ConvGeometry, gemm: Gemm, machine: Accelerator, formats: tuple[NumberFormat, NumberFormat, NumberFormat]
) -> TiledWork:
    """One of a convolution's three GEMMs as an implicit GEMM on images; `formats` are of a, b and c (contracts: output
    reads image and weights, grad_input the output's gradient and weights, grad_weight that gradient and the image).

    A strided grad_input runs phase by phase: every input pixel of a phase meets the same taps, as many as the fullest
    phase has; phases without taps (a stride larger than the kernel) are only written.
    """
    tiled = machine.tiled
    assert tiled is not None
    a, b, c = (each.bits_per_element / 8 for each in formats)
    channels, filters = conv.in_channels // conv.groups, conv.out_channels // conv.groups
    taps = conv.kernel[0] * conv.kernel[1]
    pixels_in = conv.batch * conv.in_size[0] * conv.in_size[1]
    pixels_out = conv.batch * conv.out_size[0] * conv.out_size[1]
    rate, kind, may_split = float(machine.arrays.rate_of(*formats[:2])), PLAIN, True
    padded_channels, padded_filters = channels, filters
    rule = tiled.convolution
    if rule is not None and formats[0].name in rule.formats:
        multiple = rule.channel_multiple
        padded_channels, padded_filters = (-(-count // multiple) * multiple for count in (channels, filters))
        kind, may_split = MATRIX_CONVOLUTION, gemm.value in rule.split_k
        if (padded_channels, padded_filters) != (channels, filters):
            rate, kind = rule.fallback_macs_per_cycle * rule.fallback_efficiency, FALLBACK_CONVOLUTION
    image, result = pixels_in * conv.in_channels, pixels_out * conv.out_channels
    weights = taps * channels * conv.out_channels
    if gemm is Gemm.OUTPUT:
        sizes, elements = (pixels_out, filters, padded_channels * taps), (image, weights, result)
    elif gemm is Gemm.GRAD_INPUT:
        phase_taps, phases = 1, 1
        for axis in (0, 1):
            phase_taps *= -(-conv.kernel[axis] // conv.stride[axis])
            phases *= min(conv.kernel[axis], conv.stride[axis])
        met = -(-pixels_in * phases // (conv.stride[0] * conv.stride[1]))
        sizes, elements = (met, channels, padded_filters * phase_taps), (result, weights, image)
    else:
        sizes, elements = (filters, padded_channels * taps, pixels_out), (result, image, weights)
    stored = (elements[0] * a, elements[1] * b, elements[2] * c)
    return TiledWork(
        *sizes, *stored, max(a, b), rate, gathered=True, kind=kind, may_split=may_split, groups=conv.groups
    )


def plan(work: TiledWork, machine: Accelerator) -> TiledPlan:
    """Lay the work out in the fastest way that the machine's description allows."""
    one = np.ndim(work.m) == 0
    tiled = machine.tiled
    assert tiled is not None
    times = _candidates(_column(work), machine, tiled)
    best = times.cycles.argmin(axis=1)
    rows = np.arange(len(best))
    chosen = {name: np.broadcast_to(values, times.cycles.shape)[rows, best] for name, values in vars(times).items()}
    return TiledPlan(**{name: values[0] if one else values for name, values in chosen.items()})


def _column(work: TiledWork) -> TiledWork:
    """The same work as columns, so that candidates stand side by side in rows."""
    values = {name: np.atleast_1d(np.asarray(value))[:, None] for name, value in vars(work).items()}
    for name in ("m", "n", "k", "a_bytes", "b_bytes", "c_bytes", "groups"):
        values[name] = values[name].astype(np.float64)
    return TiledWork(**values)


def _candidates(work: TiledWork, machine: Accelerator, tiled: Tiled) -> TiledPlan:
    """Times of every candidate (columns) for every GEMM (rows)."""
    tile_m, tile_n, split, step_bytes, lists = _choices(tiled)
    step_k = np.maximum(1.0, np.floor(step_bytes / work.operand_bytes))
    arrays, ghz = machine.arrays.count, machine.clock.running_ghz
    if tiled.cooperative:
        pad_m, pad_n, pad_k = (
            np.ceil(size / grain) * grain for size, grain in zip((work.m, work.n, work.k), tiled.granule, strict=True)
        )
        tile_m, tile_n, step_k = np.minimum(tile_m, pad_m), np.minimum(tile_n, pad_n), np.minimum(step_k, pad_k)
        steps = np.ceil(pad_k / step_k)
        across, down = np.ceil(work.n / tile_n), np.ceil(work.m / tile_m)
        tiles = across * down * work.groups
        rounds, per_array, at_once = tiles, tiles, 1.0
        mac_cycles = pad_m * pad_n * pad_k * work.groups / (work.macs_per_cycle * arrays)
        depth = pad_k
        sums = tile_m * tile_n * FLOAT32_BYTES
        fits = 2 * (tile_m + tile_n) * step_k * work.operand_bytes + sums <= tiled.accumulator_kib * 1024
    else:
        steps = np.ceil(work.k / split / step_k)
        depth = steps * step_k
        across, down = np.ceil(work.n / tile_n), np.ceil(work.m / tile_m)
        tiles = across * down * split * work.groups
        room = np.floor(tiled.accumulator_kib * 1024 / FLOAT32_BYTES / (tile_m * tile_n))
        resident = np.clip(room, 1, tiled.resident_tiles)
        rounds, per_array = np.ceil(tiles / (arrays * resident)), np.ceil(tiles / arrays)
        at_once = np.minimum(tiles, arrays * resident)
        mac_cycles = per_array * tile_m * tile_n * depth / work.macs_per_cycle
        fits = (room >= 1) & ((split == 1) | ((steps >= SHORTEST_SPLIT) & work.may_split))
    stages = rounds * steps
    # The outermost on-chip memory serves all arrays alike.
    share = machine.outermost.bytes_per_cycle / (1 if tiled.cooperative else arrays)
    chip_bytes = (tile_m + tile_n) * depth * work.operand_bytes
    chip_cycles = per_array * chip_bytes / share
    floor_cycles = stages * tiled.step_floor_ns * ghz
    compute = np.maximum(np.maximum(mac_cycles, chip_cycles), floor_cycles) / stages

    read = _operand_traffic(work, machine, tiled, (tile_m, tile_n, split, across, down, at_once))
    sums_bytes = np.where(split > 1, split * work.m * work.n * work.groups * FLOAT32_BYTES, 0.0)
    per_cycle = float(machine.dram_bytes_per_cycle)
    written = work.c_bytes / per_cycle
    tail = 2 * sums_bytes / per_cycle + (0.0 if tiled.output_overlap else written)
    tail = tail + np.where(split > 1, tiled.reduction_ns * ghz, 0.0)
    load = (read[0] / per_cycle + (written if tiled.output_overlap else 0.0)) / stages
    overhead = tiled.step_overhead_ns * ghz
    cycles = load + (stages - 1) * np.maximum(load, compute + overhead) + compute + tail
    usable = fits & _in_list(lists, work.kind)
    return TiledPlan(
        cycles=np.where(usable, cycles, np.inf),
        tile_m=tile_m,
        tile_n=tile_n,
        split_k=split,
        step_k=step_k,
        stages=stages,
        load=load,
        compute=compute,
        overhead=overhead,
        tail=tail,
        busy=mac_cycles / stages,
        macs_per_cycle=work.macs_per_cycle,
        dram_read=read[1] + sums_bytes,
        dram_written=work.c_bytes + sums_bytes,
        chip_read=tiles * chip_bytes,
    )


def _operand_traffic(
    work: TiledWork, machine: Accelerator, tiled: Tiled, layout: tuple[Numbers, ...]
) -> tuple[Numbers, Numbers]:
    """Bytes of operands read from DRAM: as time counts them (more where access is inefficient), and moved.

    The tiles of one wave form a block about as wide as high; each operand is read once for every row (column) of
    blocks, and only once if the cache can hold it.
    """
    tile_m, tile_n, split, across, down, at_once = layout
    block_down = np.minimum(down, np.maximum(1.0, np.ceil(np.sqrt(at_once / split * tile_n / tile_m))))
    block_across = np.minimum(across, np.ceil(at_once / split / block_down))
    cache = 0.0 if tiled.cooperative else machine.outermost.capacity_kib * 1024 * tiled.cache_share
    a_reads = np.where(work.a_bytes < cache, 1.0, np.ceil(across / np.maximum(1.0, block_across)))
    b_reads = np.where(work.b_bytes < cache, 1.0, np.ceil(down / block_down))
    a, b = work.a_bytes * a_reads, work.b_bytes * b_reads
    gather = np.where(work.gathered, tiled.gather_efficiency, 1.0)
    along = tiled.k_contiguous_efficiency
    timed = a / np.where(work.a_along_k, along, gather) + b / np.where(work.b_along_k, along, gather)
    return timed, a + b


@lru_cache(maxsize=64)
def _choices(tiled: Tiled) -> tuple[np.ndarray, ...]:
    """Candidates: tile rows and columns, split, step bytes, and which lists of tiles (bits) a tile stands in."""
    rule = tiled.convolution
    lists = [tiled.tiles, rule.tiles if rule else (), rule.fallback_tiles if rule else ()]
    tiles = list(dict.fromkeys(tile for each in lists for tile in each))
    table = np.array(
        [
            (*tile, split, step, sum(1 << number for number, each in enumerate(lists) if tile in each))
            for tile in tiles
            for split in tiled.split_k
            for step in tiled.step_bytes
        ],
        dtype=np.float64,
    )
    return tuple(table[:, column][None, :] for column in range(table.shape[1]))


def _in_list(lists: np.ndarray, kind: Numbers) -> Numbers:
    return (lists.astype(np.int64) >> np.asarray(kind, dtype=np.int64)) & 1 == 1
