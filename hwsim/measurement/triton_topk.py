"""Top-k on the device in Triton: scores, selection with ties to the lowest position, gathered rows, row-sparse Adam.

The k-th largest score is found bit by bit: scores are not negative, so their float32 bits order as integers. These are
kernels to be timed; scores are float32 sums here, where the emulator defines them as float64 sums in row order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def _keep_largest(scores, index, kept, extent, columns):
    """Write the positions of the `kept` largest scores to `index`, ascending; zeros are never kept. Returns how
    many."""
    bits = scores.to(tl.int32, bitcast=True)
    bits = tl.where(columns < extent, bits, 0)
    threshold = 0
    for step in range(31):
        candidate = threshold | (1 << (30 - step))
        enough = tl.sum((bits >= candidate).to(tl.int32)) >= kept
        threshold = tl.where(enough, candidate, threshold)
    above = bits > threshold
    tied = (bits == threshold) & (bits > 0)
    wanted = kept - tl.sum(above.to(tl.int32))
    chosen = above | (tied & (tl.cumsum(tied.to(tl.int32)) <= wanted))
    place = tl.cumsum(chosen.to(tl.int32)) - 1
    tl.store(index + place, columns, mask=chosen)
    return tl.sum(chosen.to(tl.int32))


@triton.jit
def _select_over_batch(
    g,
    partial,
    arrived,
    index,
    count,
    rows,
    extent,
    kept,
    row_stride,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    EXTENT: tl.constexpr,
    SPLITS: tl.constexpr,
):
    # Every program adds |g| over its share of the rows for COLUMNS columns; the last one to finish selects.
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < extent
    share = tl.cdiv(rows, SPLITS)
    first = tl.program_id(1) * share
    last = tl.minimum(first + share, rows)
    total = tl.zeros((COLUMNS,), dtype=tl.float32)
    for start in range(first, last, ROWS):
        line = start + tl.arange(0, ROWS)
        block = tl.load(
            g + line[:, None] * row_stride + columns[None, :], mask=(line < last)[:, None] & inside[None, :], other=0.0
        )
        total += tl.sum(tl.abs(block.to(tl.float32)), axis=0)
    tl.store(partial + tl.program_id(1) * extent + columns, total, mask=inside)
    tl.debug_barrier()  # all stores of this program before it reports
    if tl.atomic_add(arrived, 1, sem="acq_rel") == tl.num_programs(0) * tl.num_programs(1) - 1:
        every = tl.arange(0, EXTENT)
        scores = tl.zeros((EXTENT,), dtype=tl.float32)
        for split in range(SPLITS):
            scores += tl.load(partial + split * extent + every, mask=every < extent, other=0.0)
        found = _keep_largest(scores, index, kept, extent, every)
        tl.store(count, found)
        tl.store(arrived, 0)  # ready for the next call


def select_over_batch(g: torch.Tensor, kept: int, scratch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Positions (int32, ascending) of the `kept` columns of g (rows, extent) with the largest sums of |g|: one launch.

    `scratch` comes from `selection_scratch` and is reused from call to call; the positions live in it.
    """
    rows, extent = g.shape
    splits = len(scratch["partial"])
    columns = 64
    _select_over_batch[(triton.cdiv(extent, columns), splits)](
        g,
        scratch["partial"],
        scratch["arrived"],
        scratch["index"],
        scratch["count"],
        rows,
        extent,
        kept,
        g.stride(0),
        ROWS=16,
        COLUMNS=columns,
        EXTENT=triton.next_power_of_2(extent),
        SPLITS=splits,
        num_warps=min(32, max(4, triton.next_power_of_2(extent) // 512)),
    )
    return scratch["index"][:kept]


def selection_scratch(rows: int, extent: int, kept: int, device: torch.device) -> dict[str, torch.Tensor]:
    """Buffers for `select_over_batch`: partial sums, the arrival counter (0 between calls), positions and their
    number."""
    splits = max(1, min(16, rows // 64))
    return {
        "partial": torch.empty((splits, extent), dtype=torch.float32, device=device),
        "arrived": torch.zeros(1, dtype=torch.int32, device=device),
        "index": torch.empty(kept, dtype=torch.int32, device=device),
        "count": torch.zeros(1, dtype=torch.int32, device=device),
    }


@triton.jit
def _select_rows(g, index, values, extent, kept, row_stride, EXTENT: tl.constexpr, KEPT: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, EXTENT)
    scores = tl.abs(tl.load(g + row * row_stride + columns, mask=columns < extent, other=0.0).to(tl.float32))
    found = _keep_largest(scores, index + row * kept, kept, extent, columns)
    tl.debug_barrier()  # the positions just written are read back by other threads
    slots = tl.arange(0, KEPT)
    place = tl.load(index + row * kept + slots, mask=slots < found, other=0)
    tl.store(index + row * kept + slots, place, mask=slots < kept)  # unused slots name position 0 with value 0
    value = tl.load(g + row * row_stride + place, mask=slots < found, other=0.0)
    tl.store(values + row * kept + slots, value, mask=slots < kept)


def select_rows(g: torch.Tensor, kept: int, index: torch.Tensor, values: torch.Tensor) -> None:
    """For every row of g (rows, extent): positions (int32, ascending) and values of its `kept` largest |g|.

    A row with fewer than `kept` values other than zero fills up with position 0 and value 0.
    """
    rows, extent = g.shape
    padded = triton.next_power_of_2(extent)
    _select_rows[(rows,)](
        g,
        index,
        values,
        extent,
        kept,
        g.stride(0),
        EXTENT=padded,
        KEPT=triton.next_power_of_2(kept),
        num_warps=min(32, max(4, padded // 512)),
    )


@triton.jit
def _rows_grad_input(index, values, weight, result, kept, inputs, SLOTS: tl.constexpr, COLUMNS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < inputs
    total = tl.zeros((COLUMNS,), dtype=tl.float32)
    for start in range(0, kept, SLOTS):
        slots = start + tl.arange(0, SLOTS)
        place = tl.load(index + row * kept + slots, mask=slots < kept, other=0)
        value = tl.load(values + row * kept + slots, mask=slots < kept, other=0.0).to(tl.float32)
        block = tl.load(
            weight + place[:, None].to(tl.int64) * inputs + columns[None, :], mask=inside[None, :], other=0.0
        )
        total += tl.sum(value[:, None] * block.to(tl.float32), axis=0)
    tl.store(result + row * inputs + columns, total.to(result.dtype.element_ty), mask=inside)


def rows_grad_input(
    index: torch.Tensor, values: torch.Tensor, weight: torch.Tensor, result: torch.Tensor
) -> torch.Tensor:
    """result[b] = sum over kept s of values[b, s] * weight[index[b, s]]; weight (out, in), result (batch, in),
    contiguous."""
    batch, kept = index.shape
    inputs = weight.shape[1]
    columns = 256
    _rows_grad_input[(batch, triton.cdiv(inputs, columns))](
        index, values, weight, result, kept, inputs, SLOTS=8, COLUMNS=columns, num_warps=4
    )
    return result


@triton.jit
def _rows_grad_weight(index, values, x, result, kept, inputs, COLUMNS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < inputs
    line = tl.load(x + row * inputs + columns, mask=inside, other=0.0).to(tl.float32)
    for slot in range(kept):
        place = tl.load(index + row * kept + slot).to(tl.int64)
        value = tl.load(values + row * kept + slot).to(tl.float32)
        tl.atomic_add(result + place * inputs + columns, value * line, mask=inside, sem="relaxed")


def rows_grad_weight(index: torch.Tensor, values: torch.Tensor, x: torch.Tensor, result: torch.Tensor) -> torch.Tensor:
    """result[index[b, s]] += values[b, s] * x[b], into a zeroed float32 result (out, in); the order of adds is free."""
    batch, kept = index.shape
    inputs = x.shape[1]
    columns = 256
    result.zero_()
    _rows_grad_weight[(batch, triton.cdiv(inputs, columns))](
        index, values, x, result, kept, inputs, COLUMNS=columns, num_warps=4
    )
    return result


@triton.jit
def _adam(
    weight,
    gradient,
    first,
    second,
    index,
    inputs,
    rate,
    beta1,
    beta2,
    epsilon,
    correction1,
    correction2,
    ROWS_LISTED: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    line = tl.program_id(0).to(tl.int64)
    row = line
    if ROWS_LISTED:
        row = tl.load(index + line).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < inputs
    place = row * inputs + columns
    g = tl.load(gradient + line * inputs + columns, mask=inside, other=0.0)
    m = beta1 * tl.load(first + place, mask=inside, other=0.0) + (1 - beta1) * g
    v = beta2 * tl.load(second + place, mask=inside, other=0.0) + (1 - beta2) * g * g
    tl.store(first + place, m, mask=inside)
    tl.store(second + place, v, mask=inside)
    change = rate * (m / correction1) / (tl.sqrt(v / correction2) + epsilon)
    tl.store(weight + place, tl.load(weight + place, mask=inside, other=0.0) - change, mask=inside)


def adam(
    weight: torch.Tensor,
    gradient: torch.Tensor,
    first: torch.Tensor,
    second: torch.Tensor,
    step: int,
    index: torch.Tensor | None = None,
    rate: float = 1e-3,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-8,
) -> None:
    """One Adam step in place on float32 tensors (out, in).

    With `index` (int32) only those rows move and `gradient` is compact, one row an entry of `index`: another algorithm
    than dense Adam, whose momentum moves every row.
    """
    lines, inputs = gradient.shape
    columns = 1024 if inputs >= 1024 else 256
    _adam[(lines, triton.cdiv(inputs, columns))](
        weight,
        gradient,
        first,
        second,
        index if index is not None else gradient,
        inputs,
        rate,
        beta1,
        beta2,
        epsilon,
        1 - beta1**step,
        1 - beta2**step,
        ROWS_LISTED=index is not None,
        COLUMNS=columns,
        num_warps=4,
    )
