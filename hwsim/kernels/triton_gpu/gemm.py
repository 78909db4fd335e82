"""GEMMs on the GPU in the arithmetic of a MacSpec: the accumulator is rounded at every step, as `reference` defines it.

Orders: sequential, chunked, kahan and fused (tensor-core steps). Operands are float32 values, so a product of two is
exact
in float64; a sum is exact or rounded to odd in float64 and then rounded once, in integers. One program holds a small
tile of results and walks along k.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import triton
import triton.language as tl

from hwsim.arithmetic.mac import Chunked, Fused, Kahan, MacSpec, ProductTable, Sequential
from hwsim.arithmetic.number import FixedPoint, FloatingPoint, NumberFormat
from hwsim.arithmetic.rounding import Overflow, RoundingMode
from hwsim.arithmetic.storage import Cast
from hwsim.errors import SpecError, UnsupportedError
from hwsim.kernels.reference.fused import LOWEST_ALIGNMENT, addend_format
from hwsim.kernels.reference.matmul import result_carrier, result_cast, start_format
from hwsim.kernels.triton_gpu.quantize import cast_tensor
from hwsim.kernels.triton_gpu.rounding import (
    Rule,
    add_to_odd,
    carrier_bits,
    join_stream,
    may_go_wrong,
    mix64,
    power_of_two,
    random_word,
    round_bits,
    rule_of,
    stream_parts,
)

if TYPE_CHECKING:
    import torch

BLOCK_M, BLOCK_N = 16, 32
SPARE_BITS = 2  # bits that a sum rounded to odd needs beyond what a later rounding looks at
SEQUENTIAL, CHUNKED, KAHAN = 0, 1, 2


@triton.jit
def _as_float(bits):
    return bits.to(tl.float64, bitcast=True)


@triton.jit
def _negated(x):
    # not 0 - x, which loses the sign of zero
    return (x.to(tl.int64, bitcast=True) ^ (-0x8000000000000000)).to(tl.float64, bitcast=True)


@triton.jit
def _add(x, y, stream, index, k, RULE: tl.constexpr):
    """x + y rounded once; returns the sum (float64) and where there is none."""
    bits = add_to_odd(x, y, RULE[6] == 4)
    word = bits
    if RULE[6] == 6:
        word = random_word(stream, index, k * 0, k)
    bits, wrong = round_bits(bits, word, RULE)
    return _as_float(bits), wrong


@triton.jit
def _product(
    a_line, b_line, stream, index, k, place, stride_ak, stride_bk, row_inside, column_inside, PRODUCT: tl.constexpr
):
    """The products of one k for a tile of results, exact or rounded by their own rule."""
    x = tl.load(a_line + k * stride_ak, mask=row_inside, other=0.0).to(tl.float64)
    y = tl.load(b_line + k * stride_bk, mask=column_inside, other=0.0).to(tl.float64)
    exact = x[:, None] * y[None, :]
    wrong = exact < exact  # noqa: PLR0124 (nowhere)
    if PRODUCT is not None:
        bits = exact.to(tl.int64, bitcast=True)
        word = bits
        if PRODUCT[6] == 6:
            word = random_word(stream, index, k * 0, place)
        bits, wrong = round_bits(bits, word, PRODUCT)
        exact = _as_float(bits)
    return exact, wrong


@triton.jit(do_not_specialize=["low", "middle", "high"])
def _matmul(
    a,
    b,
    c,
    bias,
    out,
    trouble,
    places,
    row_places,
    m,
    n,
    k,
    stride_ag,
    stride_am,
    stride_ak,
    stride_bg,
    stride_bk,
    stride_bn,
    stride_cg,
    stride_cm,
    stride_cn,
    low,
    middle,
    high,
    ACCUMULATOR: tl.constexpr,
    PRODUCT: tl.constexpr,
    OUTER: tl.constexpr,
    RESULT: tl.constexpr,
    ORDER: tl.constexpr,
    CHUNK: tl.constexpr,
    HAS_PLACES: tl.constexpr,
    HAS_ROW_PLACES: tl.constexpr,
    HAS_C: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    WIDE: tl.constexpr,
    REPORT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    group = tl.program_id(2).to(tl.int64)
    rows = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tl.program_id(1).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    row_inside, column_inside = rows < m, columns < n
    inside = row_inside[:, None] & column_inside[None, :]
    result_at = (group * m + rows)[:, None] * n + columns[None, :]
    index = result_at
    if HAS_ROW_PLACES:
        original = tl.load(row_places + rows, mask=row_inside, other=0)
        index = (group * m + original)[:, None] * n + columns[None, :]
    a_line = a + group * stride_ag + rows * stride_am
    b_line = b + group * stride_bg + columns * stride_bn
    stream = join_stream(low, middle, high)
    zero = index.to(tl.float64) * 0.0
    total = zero
    if HAS_C:
        start_at = group * stride_cg + rows[:, None] * stride_cm + columns[None, :] * stride_cn
        total = tl.load(c + start_at, mask=inside, other=0.0).to(tl.float64)
    wrong = index < 0
    none = group * 0  # int64: positions along k are counted in the same type everywhere
    if ORDER == 0:
        for step in range(k):
            at = none + step
            place = at
            if HAS_PLACES:
                place = tl.load(places + at)
            product, bad = _product(
                a_line,
                b_line,
                mix64(stream + 1),
                index,
                at,
                place,
                stride_ak,
                stride_bk,
                row_inside,
                column_inside,
                PRODUCT,
            )
            total, worse = _add(total, product, stream, index, place, ACCUMULATOR)
            wrong = wrong | bad | worse
    elif ORDER == 1:
        for first in range(0, k, CHUNK):
            inner = zero
            for step in range(first, tl.minimum(first + CHUNK, k)):
                at = none + step
                place = at
                if HAS_PLACES:
                    place = tl.load(places + at)
                product, bad = _product(
                    a_line,
                    b_line,
                    mix64(stream + 1),
                    index,
                    at,
                    place,
                    stride_ak,
                    stride_bk,
                    row_inside,
                    column_inside,
                    PRODUCT,
                )
                inner, worse = _add(inner, product, stream, index, place, ACCUMULATOR)
                wrong = wrong | bad | worse
            total, worse = _add(total, inner, mix64(stream + 2), index, none + first // CHUNK, OUTER)
            wrong = wrong | worse
    else:
        lost = zero
        for step in range(k):
            at = none + step
            place = at
            if HAS_PLACES:
                place = tl.load(places + at)
            product, bad = _product(
                a_line,
                b_line,
                mix64(stream + 1),
                index,
                at,
                place,
                stride_ak,
                stride_bk,
                row_inside,
                column_inside,
                PRODUCT,
            )
            term, worse = _add(product, _negated(lost), mix64(stream + 3), index, place, ACCUMULATOR)
            wrong = wrong | bad | worse
            new, worse = _add(total, term, stream, index, place, ACCUMULATOR)
            wrong = wrong | worse
            gained, worse = _add(new, _negated(total), mix64(stream + 4), index, place, ACCUMULATOR)
            wrong = wrong | worse
            lost, worse = _add(gained, _negated(term), mix64(stream + 5), index, place, ACCUMULATOR)
            wrong = wrong | worse
            total = new
    if HAS_BIAS:
        more = tl.load(bias + columns, mask=column_inside, other=0.0).to(tl.float64)
        total, worse = _add(total, zero + more[None, :], mix64(stream + 2), index, none + k, RESULT)
        wrong = wrong | worse
    bits = total.to(tl.int64, bitcast=True)
    if WIDE:
        tl.store(out + result_at, bits, mask=inside)
    else:
        tl.store(out + result_at, carrier_bits(bits), mask=inside)
    if REPORT:
        tl.atomic_max(trouble, tl.max(tl.max((wrong & inside).to(tl.int32), axis=1), axis=0))


@triton.jit
def _cut_operand(x, MANTISSA: tl.constexpr, EMIN: tl.constexpr):
    """An operand (float64) without the bits its format lacks, and its exponent, never below the format's smallest."""
    bits = x.to(tl.int64, bitcast=True)
    exponent = tl.maximum(((bits >> 52) & 0x7FF) - 1023, EMIN)
    unit = power_of_two(exponent - MANTISSA)
    scaled = x * power_of_two(MANTISSA - exponent)  # exact; within 2^53 for every float32
    whole = scaled.to(tl.int64).to(tl.float64)  # toward zero
    finite = (bits & 0x7FFFFFFFFFFFFFFF) < 0x7FF0000000000000
    return tl.where(finite, whole * unit, x), exponent


@triton.jit
def _fused_step(
    a_line,
    b_line,
    total,
    first,
    k,
    stride_ak,
    stride_bk,
    row_inside,
    column_inside,
    TERMS: tl.constexpr,
    FRACTION: tl.constexpr,
    PART: tl.constexpr,
    MANTISSA: tl.constexpr,
    EMIN: tl.constexpr,
    C_EMIN: tl.constexpr,
    OUTPUT: tl.constexpr,
    BEYOND: tl.constexpr,
    LOWEST: tl.constexpr,
):
    """One fused step over TERMS positions from `first` (PART 1, 2: the half with k mod 4 in {0, 1} or {2, 3} of twice
    as many)."""
    # First the largest exponent of the terms that are not zero, and at least LOWEST.
    none = tl.program_id(2).to(tl.int64) * 0
    row_zero, column_zero = row_inside.to(tl.int64) * 0, column_inside.to(tl.int64) * 0
    c_bits = total.to(tl.int64, bitcast=True)
    c_exponent = tl.maximum(((c_bits >> 52) & 0x7FF) - 1023, C_EMIN)
    top = tl.where(total != 0, tl.maximum(c_exponent, LOWEST), LOWEST)
    special = total
    for term in range(TERMS):
        at = none + first + term
        if PART > 0:
            at = none + first + term // 2 * 4 + (PART - 1) * 2 + term % 2
        x = tl.load(a_line + at * stride_ak, mask=row_inside & (row_zero + at < k), other=0.0).to(tl.float64)
        y = tl.load(b_line + at * stride_bk, mask=column_inside & (column_zero + at < k), other=0.0).to(tl.float64)
        x, x_exponent = _cut_operand(x, MANTISSA, EMIN)
        y, y_exponent = _cut_operand(y, MANTISSA, EMIN)
        product = x[:, None] * y[None, :]
        top = tl.maximum(top, tl.where(product != 0, x_exponent[:, None] + y_exponent[None, :], LOWEST))
        special += product
    # Then the integers: each term cut toward zero FRACTION bits below the largest exponent. |scale| is a normal number.
    scale = power_of_two(FRACTION - top)
    finite = (special - special) == 0.0
    whole = tl.where(finite, total * scale, 0.0).to(tl.int64)
    for term in range(TERMS):
        at = none + first + term
        if PART > 0:
            at = none + first + term // 2 * 4 + (PART - 1) * 2 + term % 2
        x = tl.load(a_line + at * stride_ak, mask=row_inside & (row_zero + at < k), other=0.0).to(tl.float64)
        y = tl.load(b_line + at * stride_bk, mask=column_inside & (column_zero + at < k), other=0.0).to(tl.float64)
        x, _ = _cut_operand(x, MANTISSA, EMIN)
        y, _ = _cut_operand(y, MANTISSA, EMIN)
        whole += tl.where(finite, x[:, None] * y[None, :] * scale, 0.0).to(tl.int64)
    exact = whole.to(tl.float64) * power_of_two(top - FRACTION)
    exact_bits = exact.to(tl.int64, bitcast=True)
    result, _ = round_bits(exact_bits, exact_bits, OUTPUT)
    if BEYOND != 0:  # a sum beyond the range is an infinity whatever the rounding of its last bit
        sign = exact_bits & (exact_bits * 0 + (-0x8000000000000000))
        result = tl.where((exact_bits & 0x7FFFFFFFFFFFFFFF) >= BEYOND, sign | 0x7FF0000000000000, result)
    result = tl.where(whole == 0, 0, result)
    unrounded = special.to(tl.int64, bitcast=True)
    unrounded = tl.where(special != special, 0x7FF8000000000000, unrounded)  # noqa: PLR0124
    return tl.where(finite, result, unrounded).to(tl.float64, bitcast=True)


@triton.jit
def _fused_matmul(
    a,
    b,
    c,
    bias,
    out,
    m,
    n,
    k,
    stride_ag,
    stride_am,
    stride_ak,
    stride_bg,
    stride_bk,
    stride_bn,
    stride_cg,
    stride_cm,
    stride_cn,
    TERMS: tl.constexpr,
    FRACTION: tl.constexpr,
    GROUPS: tl.constexpr,
    ADDEND_LAST: tl.constexpr,
    MANTISSA: tl.constexpr,
    EMIN: tl.constexpr,
    C_EMIN: tl.constexpr,
    OUTPUT: tl.constexpr,
    BEYOND: tl.constexpr,
    LOWEST: tl.constexpr,
    NEAREST: tl.constexpr,
    HAS_C: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    group = tl.program_id(2).to(tl.int64)
    rows = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tl.program_id(1).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    row_inside, column_inside = rows < m, columns < n
    inside = row_inside[:, None] & column_inside[None, :]
    index = (group * m + rows)[:, None] * n + columns[None, :]
    a_line = a + group * stride_ag + rows * stride_am
    b_line = b + group * stride_bg + columns * stride_bn
    zero = index.to(tl.float64) * 0.0
    start = zero
    if HAS_C:
        place = group * stride_cg + rows[:, None] * stride_cm + columns[None, :] * stride_cn
        start = tl.load(c + place, mask=inside, other=0.0).to(tl.float64)
    total = start
    for first in range(0, k, TERMS * GROUPS):
        part = total
        if ADDEND_LAST:
            part = zero
        if GROUPS == 1:
            part = _fused_step(
                a_line,
                b_line,
                part,
                first,
                k,
                stride_ak,
                stride_bk,
                row_inside,
                column_inside,
                TERMS,
                FRACTION,
                0,
                MANTISSA,
                EMIN,
                C_EMIN,
                OUTPUT,
                BEYOND,
                LOWEST,
            )
        else:
            part = _fused_step(
                a_line,
                b_line,
                part,
                first,
                k,
                stride_ak,
                stride_bk,
                row_inside,
                column_inside,
                TERMS,
                FRACTION,
                1,
                MANTISSA,
                EMIN,
                C_EMIN,
                OUTPUT,
                BEYOND,
                LOWEST,
            )
            part = _fused_step(
                a_line,
                b_line,
                part,
                first,
                k,
                stride_ak,
                stride_bk,
                row_inside,
                column_inside,
                TERMS,
                FRACTION,
                2,
                MANTISSA,
                EMIN,
                C_EMIN,
                OUTPUT,
                BEYOND,
                LOWEST,
            )
        if ADDEND_LAST:
            part, _ = _add(part, total, group, index, group, NEAREST)
        total = part
    if HAS_BIAS:
        more = tl.load(bias + columns, mask=column_inside, other=0.0).to(tl.float64)
        total, _ = _add(total, zero + more[None, :], group, index, group, OUTPUT)
    bits = total.to(tl.int64, bitcast=True)
    if WIDE:
        tl.store(out + index, bits, mask=inside)
    else:
        tl.store(out + index, carrier_bits(bits), mask=inside)


def matmul(
    a: Any,
    b: Any,
    mac: MacSpec,
    c: Any = None,
    bias: Any = None,
    stream: int = 0,
    out: Any = None,
    k_positions: Any = None,
    row_positions: Any = None,
) -> Any:
    """Return a (..., m, k) @ b (..., k, n) in the arithmetic of `mac` on the device of a; see `hwsim.kernels.matmul`.

    Raises:
        UnsupportedError: an order, format or operand type that this back end does not do bit for bit.
        SpecError: a sum that the accumulator makes an error, or an `out` that does not fit.
    """
    import torch

    given_numpy = isinstance(a, np.ndarray)
    x = torch.from_numpy(a) if given_numpy else a.detach()
    y = (torch.from_numpy(b) if isinstance(b, np.ndarray) else b.detach()).to(x.device)
    _refuse(mac, x, y)
    shape = (*torch.broadcast_shapes(x.shape[:-2], y.shape[:-2]), x.shape[-2], y.shape[-1])
    m, n, k = shape[-2], shape[-1], x.shape[-1]
    carrier = getattr(torch, result_carrier(mac))
    result = torch.empty(shape, dtype=carrier, device=x.device)
    if out is not None:
        result = _checked_out(torch.from_numpy(out) if isinstance(out, np.ndarray) else out, shape, carrier)
    start = None if c is None else _start(c, mac, x.device).expand(shape)
    more = None if bias is None else torch.as_tensor(bias, device=x.device).detach().contiguous()
    groups = result.numel() // (m * n) if m * n else 0
    if result.numel():
        if result.numel() >= 1 << 32 and any(_stochastic(mac)):
            raise UnsupportedError("backend triton: stochastic accumulation of 2^32 results or more")
        operands = [t.expand(*shape[:-2], *t.shape[-2:]).reshape(groups, *t.shape[-2:]) for t in (x, y)]
        first = start.reshape(groups, m, n) if start is not None else operands[0]
        codes = result.view(torch.int64 if carrier == torch.float64 else torch.int32)
        grid = (triton.cdiv(m, BLOCK_M), triton.cdiv(n, BLOCK_N), groups)
        arguments = (*operands, first, more if more is not None else operands[0], codes)
        strides = [stride for t in (*operands, first) for stride in t.stride()]
        common = {
            "HAS_C": c is not None,
            "HAS_BIAS": bias is not None,
            "WIDE": carrier == torch.float64,
            "BLOCK_M": BLOCK_M,
            "BLOCK_N": BLOCK_N,
            "num_warps": 4,
            "enable_fp_fusion": False,
        }
        if isinstance(mac.order, Fused):
            _fused_matmul[grid](*arguments, m, n, k, *strides, **fused_constants(mac.order), **common)
        else:
            positions = (_positions(k_positions, x.device), _positions(row_positions, x.device))
            _run_steps(grid, arguments, (m, n, k), strides, mac, stream, positions, common)
    if given_numpy and out is None:
        return result.numpy()
    return result if out is None else out


def _run_steps(
    grid: tuple[int, int, int],
    arguments: tuple[Any, ...],
    sizes: tuple[int, int, int],
    strides: list[int],
    mac: MacSpec,
    stream: int,
    positions: tuple[torch.Tensor | None, torch.Tensor | None],
    common: dict[str, Any],
) -> None:
    """Launch the kernel that rounds after every product, and raise what it reports."""
    import torch

    order = mac.order
    accumulator = rule_of(mac.cast)
    outer = rule_of(order.outer) if isinstance(order, Chunked) and order.outer is not None else accumulator
    product = rule_of(mac.product) if isinstance(mac.product, Cast) else None
    rules: list[Rule] = [accumulator, outer, *([product] if product is not None else [])]
    report = any(may_go_wrong(rule) for rule in rules)
    trouble = torch.zeros(1, dtype=torch.int32, device=arguments[0].device)
    _matmul[grid](
        *arguments,
        trouble,
        *(arguments[0] if t is None else t for t in positions),
        *sizes,
        *strides,
        *stream_parts(stream),
        ACCUMULATOR=accumulator,
        PRODUCT=product,
        OUTER=outer,
        RESULT=rule_of(result_cast(mac)),
        ORDER=CHUNKED if isinstance(order, Chunked) else KAHAN if isinstance(order, Kahan) else SEQUENTIAL,
        CHUNK=order.size if isinstance(order, Chunked) else 1,
        REPORT=report,
        HAS_PLACES=positions[0] is not None,
        HAS_ROW_PLACES=positions[1] is not None,
        **common,
    )
    if report and int(trouble):
        raise SpecError(f"matmul: a product or a sum that {mac} cannot hold (NaN, or out of range)")


def fused_constants(order: Fused) -> dict[str, Any]:
    """Constants of the fused kernel for one order."""
    output = order.output
    assert isinstance(output.format, FloatingPoint)
    inputs = order.inputs
    native = output.overflow is Overflow.NATIVE
    return {
        "TERMS": order.terms,
        "FRACTION": order.fraction_bits,
        "GROUPS": order.groups,
        "ADDEND_LAST": order.addend == "last",
        "MANTISSA": inputs.mantissa_bits if inputs is not None else 23,
        "EMIN": inputs.emin if inputs is not None else -126,
        "C_EMIN": addend_format(order).emin,
        "OUTPUT": rule_of(output),
        "BEYOND": (output.format.emax + 1 + 1023) << 52 if native else 0,
        "LOWEST": LOWEST_ALIGNMENT,
        "NEAREST": rule_of(Cast(output.format, "nearest_even", output.overflow)),
    }


def _refuse(mac: MacSpec, x: torch.Tensor, y: torch.Tensor) -> None:
    """Refuse what cannot be done exactly here."""
    import torch

    if not isinstance(mac.order, Sequential | Chunked | Kahan | Fused):
        raise UnsupportedError(f"backend triton: got order {mac.order}, expected sequential, chunked, kahan or fused")
    if isinstance(mac.product, ProductTable):
        raise UnsupportedError("backend triton: product tables")
    if x.dtype != torch.float32 or y.dtype != torch.float32:
        raise UnsupportedError(f"backend triton: got operands of {x.dtype} and {y.dtype}, expected float32")
    casts = [mac.cast, result_cast(mac), *([mac.product] if isinstance(mac.product, Cast) else [])]
    for cast in casts:
        if not fits(cast.format, cast.rounding.random_bits if cast.rounding.mode is RoundingMode.STOCHASTIC else 0):
            raise UnsupportedError(f"backend triton: {cast} needs more bits than a float64 sum has")
    if isinstance(mac.order, Fused) and any(_stochastic(mac)):
        raise UnsupportedError("backend triton: stochastic fused steps")
    if isinstance(mac.order, Fused) and isinstance(mac.order.output.format, FloatingPoint):
        overflow = mac.order.output.overflow
        if overflow is Overflow.ERROR or not mac.order.output.format.infinities:
            raise UnsupportedError(f"backend triton: fused steps into {mac.order.output}")


def fits(fmt: NumberFormat, random_bits: int) -> bool:
    """Whether a sum of a value of `fmt` and a float32 product, rounded to odd in float64, rounds on as if it were
    exact."""
    if isinstance(fmt, FloatingPoint):
        return fmt.precision + random_bits + SPARE_BITS <= 53 and fmt.emax <= 900 and fmt.smallest_exponent >= -900
    return isinstance(fmt, FixedPoint) and fmt.bits + random_bits + SPARE_BITS <= 53 and abs(fmt.fraction_bits) <= 400


def _stochastic(mac: MacSpec) -> tuple[bool, ...]:
    casts = (mac.cast, result_cast(mac), *([mac.product] if isinstance(mac.product, Cast) else []))
    return tuple(cast.rounding.stochastic for cast in casts)


def _positions(given: Any, device: torch.device) -> torch.Tensor | None:
    """Return original positions as int64 on the device, or None."""
    import torch

    return None if given is None else torch.as_tensor(given, dtype=torch.int64, device=device).contiguous()


def _start(c: Any, mac: MacSpec, device: torch.device) -> torch.Tensor:
    """Return c rounded to nearest even into the format that holds the sum (as it is where c joins last)."""
    import torch

    values = torch.as_tensor(c, device=device).detach()
    fmt = start_format(mac)
    return values if fmt is None else cast_tensor(values, Cast(fmt, "nearest_even", result_cast(mac).overflow))


def _checked_out(out: torch.Tensor, shape: tuple[int, ...], carrier: torch.dtype) -> torch.Tensor:
    if tuple(out.shape) != shape or out.dtype != carrier or not out.is_contiguous():
        raise SpecError(f"matmul: got out of {tuple(out.shape)}, {out.dtype}, expected contiguous {shape}, {carrier}")
    return out
