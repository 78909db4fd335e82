"""Machines whose arrays work through output tiles: GPUs (one program an array) and arrays that share one tile.

A GEMM is cut into output tiles and, if that helps, its reduced axis into parts (split-k). A program computes one tile
in steps along k, loading the operands of the next step while it computes this one. Programs run in waves over the
arrays. `hwsim.simulation.tiled` turns this description into time; nothing here depends on a shape.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from hwsim.hardware.sourced import Count, NonNegative, Positive, Share, Sourced

TileSize = tuple[Count, Count]  # rows (m) x columns (n) of the output

# Output tiles that GPU libraries offer (sizes of CUTLASS), and parts into which they cut a reduction.
GPU_TILES: tuple[TileSize, ...] = (
    (256, 128), (128, 256), (128, 128), (256, 64), (64, 256), (128, 64), (64, 128), (64, 64),
    (32, 128), (128, 32), (64, 32), (32, 64), (128, 16), (16, 128),
)  # fmt: skip
MATRIX_CONVOLUTION_TILES: tuple[TileSize, ...] = GPU_TILES[:5]
FALLBACK_CONVOLUTION_TILES: tuple[TileSize, ...] = GPU_TILES[2:8]
GPU_SPLITS: tuple[Count, ...] = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)


class MatrixConvolution(Sourced):
    """What convolutions need before they run on units that multiply small matrices, and what happens if they fail to.

    formats: operand formats whose MAC rate is that of matrix units.
    channel_multiple: input and output channels must be multiples of this; others are padded to it and run on the
      scalar lanes (`fallback_*`).
    split_k: the GEMMs for which programs that split the reduced axis exist.
    """

    formats: Annotated[tuple[str, ...], Field(min_length=1)]
    channel_multiple: Count = 8
    tiles: Annotated[tuple[TileSize, ...], Field(min_length=1)] = MATRIX_CONVOLUTION_TILES
    split_k: tuple[Literal["output", "grad_input", "grad_weight"], ...] = ("output", "grad_weight")
    fallback_tiles: Annotated[tuple[TileSize, ...], Field(min_length=1)] = FALLBACK_CONVOLUTION_TILES
    fallback_macs_per_cycle: Positive  # of one array
    fallback_efficiency: Share = 0.93


class Tiled(Sourced):
    """How a machine works through tiles.

    Defaults are those of a GPU of which only the data sheet is known: sizes that libraries offer, half of a 256 KiB
    register file for sums, and what fits to the V100 and A100 found (reports/validation); `source` answers for them.

    cooperative: all arrays work on one tile together (an array machine with a large shared memory) instead of one
      program to an array.
    tiles: output tiles that programs exist for.
    step_bytes: length of a step along k in bytes of one operand row; several are tried.
    split_k: into how many parts the reduced axis may be cut.
    accumulator_kib: memory for the float32 sums of resident tiles of one array; if cooperative, for the sums and two
      steps of operands of the whole machine.
    resident_tiles: programs that one array runs at the same time at most.
    granule: m, n, k to which the ragged edge of a cooperative tile is padded; other machines compute whole tiles.
    step_floor_ns: latency that a step cannot beat however little it computes.
    step_overhead_ns: time that each step but the last adds.
    reduction_ns: start of the second program that adds the parts of a split reduction.
    output_overlap: results leave while the next tile is computed.
    cache_share: share of the outermost memory that can hold one operand for reuse by later waves.
    k_contiguous_efficiency: share of the DRAM rate that remains when an operand is contiguous along k, so that a tile
      reads short pieces of many rows.
    gather_efficiency: the same for the operands of a convolution, which are gathered by position.
    """

    cooperative: bool = False
    tiles: Annotated[tuple[TileSize, ...], Field(min_length=1)] = GPU_TILES
    step_bytes: Annotated[tuple[Count, ...], Field(min_length=1)] = (64,)
    split_k: Annotated[tuple[Count, ...], Field(min_length=1)] = GPU_SPLITS
    accumulator_kib: Positive = 128
    resident_tiles: Count = 4
    granule: tuple[Count, Count, Count] = (1, 1, 1)
    step_floor_ns: NonNegative = 200
    step_overhead_ns: NonNegative = 0
    reduction_ns: NonNegative = 2500
    output_overlap: bool = True
    cache_share: Share = 0.5
    k_contiguous_efficiency: Share = 0.8
    gather_efficiency: Share = 1.0
    convolution: MatrixConvolution | None = None
