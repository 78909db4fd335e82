"""Our own Triton GEMM, dense and with the gather of kept positions inside: no copy of the gathered operands is made."""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def _gemm(
    a, b, c, index, m, n, k,
    stride_am, stride_ak, stride_bk, stride_bn, stride_cm, stride_cn,
    GATHER_K: tl.constexpr, GATHER_M: tl.constexpr, SCATTER_M: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    # Programs walk the tiles of c in groups of GROUP_M rows of tiles, so that neighbours share operands in L2.
    program = tl.program_id(0)
    tiles_m = tl.cdiv(m, BLOCK_M)
    tiles_n = tl.cdiv(n, BLOCK_N)
    group = program // (GROUP_M * tiles_n)
    first = group * GROUP_M
    height = tl.minimum(tiles_m - first, GROUP_M)
    within = program % (GROUP_M * tiles_n)
    rows = (first + within % height) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = (within // height) * BLOCK_N + tl.arange(0, BLOCK_N)
    row_inside = rows < m
    column_inside = columns < n
    source_rows = rows
    if GATHER_M:
        source_rows = tl.load(index + rows, mask=row_inside, other=0)
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in range(0, k, BLOCK_K):
        inner = start + tl.arange(0, BLOCK_K)
        inner_inside = inner < k
        source = inner
        if GATHER_K:
            source = tl.load(index + inner, mask=inner_inside, other=0)
        x = tl.load(
            a + source_rows[:, None] * stride_am + source[None, :] * stride_ak,
            mask=row_inside[:, None] & inner_inside[None, :],
            other=0.0,
        )
        y = tl.load(
            b + source[:, None] * stride_bk + columns[None, :] * stride_bn,
            mask=inner_inside[:, None] & column_inside[None, :],
            other=0.0,
        )
        total = tl.dot(x, y, total, input_precision=PRECISION)
    target_rows = rows
    if SCATTER_M:
        target_rows = tl.load(index + rows, mask=row_inside, other=0)
    tl.store(
        c + target_rows[:, None] * stride_cm + columns[None, :] * stride_cn,
        total.to(c.dtype.element_ty),
        mask=row_inside[:, None] & column_inside[None, :],
    )


def gemm(
    a: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
    tf32: bool = False,
    gather_k: torch.Tensor | None = None,
    gather_m: torch.Tensor | None = None,
    scatter_m: bool = False,
) -> torch.Tensor:
    """Write a (m, k) @ b (k, n) into c (m, n), any strides; float32 sums on the matrix unit.

    gather_k: int32 positions; only these of the k axis of both operands are read (the unified top-k grad_input).
    gather_m: int32 rows of a to use; c gets one row each (the reduced grad_weight), or with `scatter_m` the rows of c
    at those positions are written and the others left alone (the row-sparse grad_weight).
    """
    index = gather_k if gather_k is not None else gather_m
    m = len(gather_m) if gather_m is not None else a.shape[0]
    k = len(gather_k) if gather_k is not None else a.shape[1]
    n = b.shape[1]
    tile = tile_shape(m, n, a.element_size(), exact_float32=a.dtype == torch.float32 and not tf32)
    grid = (triton.cdiv(m, tile["BLOCK_M"]) * triton.cdiv(n, tile["BLOCK_N"]),)
    _gemm[grid](
        a, b, c, index if index is not None else a, m, n, k,
        a.stride(0), a.stride(1), b.stride(0), b.stride(1), c.stride(0), c.stride(1),
        GATHER_K=gather_k is not None, GATHER_M=gather_m is not None, SCATTER_M=scatter_m,
        PRECISION="tf32" if tf32 else "ieee", GROUP_M=8, **tile,
    )  # fmt: skip
    return c


def tile_shape(m: int, n: int, element_bytes: int, exact_float32: bool) -> dict[str, int]:
    """Tile of c and depth of a step: 128 bytes of k for the matrix unit; small tiles where c is small."""
    if exact_float32:  # no matrix unit: registers limit the tile
        return {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 16, "num_warps": 4, "num_stages": 3}
    depth = 128 // element_bytes
    if m <= 32:
        return {"BLOCK_M": 16 if m <= 16 else 32, "BLOCK_N": 128, "BLOCK_K": depth, "num_warps": 4, "num_stages": 4}
    if m * n < 132 * 128 * 128:  # too few large tiles to occupy the multiprocessors of a large GPU
        return {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": depth, "num_warps": 4, "num_stages": 4}
    return {"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": depth, "num_warps": 8, "num_stages": 3}
