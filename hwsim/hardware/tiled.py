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


class MatrixConvolution(Sourced):
    """What convolutions need before they run on units that multiply small matrices, and what happens if they fail to.

    formats: operand formats whose MAC rate is that of matrix units.
    channel_multiple: input and output channels must be multiples of this; others are padded to it and run on the
      scalar lanes (`fallback_*`).
    split_k: the GEMMs for which programs that split the reduced axis exist.
    """

    formats: Annotated[tuple[str, ...], Field(min_length=1)]
    channel_multiple: Count = 8
    tiles: Annotated[tuple[TileSize, ...], Field(min_length=1)]
    split_k: tuple[Literal["output", "grad_input", "grad_weight"], ...] = ("output", "grad_weight")
    fallback_tiles: Annotated[tuple[TileSize, ...], Field(min_length=1)]
    fallback_macs_per_cycle: Positive  # of one array
    fallback_efficiency: Share = 1.0


class Tiled(Sourced):
    """How a machine works through tiles.

    cooperative: all arrays work on one tile together (an array machine with a large shared memory) instead of one
      program to an array.
    tiles: output tiles that programs exist for.
    step_bytes: length of a step along k in bytes of one operand row; several are tried.
    split_k: into how many parts the reduced axis may be cut.
    accumulator_kib: memory for the float32 sums of resident tiles: of one array, or of the machine if cooperative.
    operand_kib: cooperative: memory for the sums and two steps of operands together.
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
    tiles: Annotated[tuple[TileSize, ...], Field(min_length=1)]
    step_bytes: Annotated[tuple[Count, ...], Field(min_length=1)] = (64,)
    split_k: Annotated[tuple[Count, ...], Field(min_length=1)] = (1,)
    accumulator_kib: Positive
    resident_tiles: Count = 1
    granule: tuple[Count, Count, Count] = (1, 1, 1)
    step_floor_ns: NonNegative = 0
    step_overhead_ns: NonNegative = 0
    reduction_ns: NonNegative = 0
    output_overlap: bool = True
    cache_share: Share = 0.5
    k_contiguous_efficiency: Share = 1.0
    gather_efficiency: Share = 1.0
    convolution: MatrixConvolution | None = None
