"""GEMM on the CPU: operands as addresses and strides, a plan, and the compiled kernel over shares of the rows."""

from __future__ import annotations

import math
import struct
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np

from hwsim.arithmetic.mac import Chunked, Exact, Fused, MacSpec, Pairwise, ProductTable
from hwsim.arithmetic.number import BlockScaled, FixedPoint, FloatingPoint, NumberFormat
from hwsim.arithmetic.rounding import Overflow, RoundingMode
from hwsim.arithmetic.storage import Cast
from hwsim.errors import SpecError, UnsupportedError
from hwsim.kernels import random_bits
from hwsim.kernels.casts import cast_numpy
from hwsim.kernels.counters import SAMPLE, Counters
from hwsim.kernels.numba_cpu import (
    fused,
    half_lanes,
    int16_lanes,
    matmul_blas,
    matmul_counts,
    matmul_exact,
    matmul_terms,
    matmul_tree,
)
from hwsim.kernels.numba_cpu.compiled import compiled
from hwsim.kernels.numba_cpu.matmul_driver import kernel
from hwsim.kernels.numba_cpu.matmul_plan import (
    NOTHING,
    Facts,
    Plan,
    check_specials,
    exact_plan,
    facts_of_format,
    general_recipe,
    plan,
)
from hwsim.kernels.numba_cpu.matmul_tile import look_vectors, read32, write_whole
from hwsim.kernels.numba_cpu.matrix import Matrix, Patches, matrix, share_rows
from hwsim.kernels.numba_cpu.quantize import cast_into
from hwsim.kernels.numba_cpu.threads import threads
from hwsim.kernels.numba_cpu.whole_numbers import Wholes, whole_numbers
from hwsim.kernels.reference.matmul import Stage, result_carrier, result_cast, stage_stream

SIGN_FORGOTTEN = ("split", "magic")  # rules under which a sum of negative zeros in a tree becomes +0
LOOK_WORK = 1 << 18  # multiply-accumulates from which a look at operands of known formats repays
_BLANK = np.zeros(8, np.uint64)


def _array(x: Any) -> np.ndarray:
    return x if isinstance(x, np.ndarray) else x.detach().numpy()


def as_float64(x: Matrix) -> Matrix:
    """Return a float64 copy of an operand."""
    if x.bits == 64:
        return x
    return matrix(_array(x.keep).astype(np.float64, order="K"))


def canonical(x: Matrix) -> Matrix:
    """Return a copy whose NaN are canonical: rounding by integer steps could carry out of others."""
    array = _array(x.keep).copy()
    array[np.isnan(array)] = np.nan
    return matrix(array)


def multiply(
    a: Any, b: Any, mac: MacSpec, out: np.ndarray, start: np.ndarray | None, bias: np.ndarray | None,
    formats: tuple[NumberFormat | None, NumberFormat | None], stream: int, k_positions: np.ndarray | None,
    indices: np.ndarray | None, counters: Counters | None = None,
) -> None:  # fmt: skip
    """Compute one GEMM into `out` (m x n, contiguous columns, the result's carrier).

    Args:
        a, b: m x k and k x n, numpy or torch, any strides.
        start: float64, m x n (broadcast views allowed), values of the accumulator's (outer) format.
        formats: what the operands are known to hold; None where it must be found out.
        k_positions, indices: int64; original positions of k, and each row's first output index (random words).

    Raises:
        UnsupportedError: no compiled kernel does this case exactly.
        SpecError: a sum out of range where the accumulator makes that an error.
    """
    left, right = matrix(a), matrix(b)
    m, k, n = left.rows, left.columns, right.columns
    if not m or not n:
        return
    if isinstance(mac.order, Fused):
        totals = None if counters is None else np.zeros(3)
        _fused(_array(a), _array(b), mac.order, out, start, totals)
        if counters is not None and totals is not None:
            matmul_counts.add(counters, -(-m // SAMPLE), totals, mac)
        _finish(out, mac, start, bias, k, stream, indices)
        return
    # a format may hold infinities and NaN; they are looked for only if a NaN comes out, since none of the rules but
    # "clamped" can lose one
    unsure = [f for f in formats if f is not None and (isinstance(f, BlockScaled) or f.has_nan or f.infinities)]
    alone = start is None and counters is None and not unsure and isinstance(mac.accumulator, FixedPoint)
    wholes = _wholes(left, right, mac, formats) if alone else None
    (a_facts, a_largest), (b_facts, b_largest) = (
        (w.facts, w.largest) if w is not None else look_at(x) if f is None else facts_and_largest(f)
        for w, x, f in zip(wholes or (None, None), (left, right), formats, strict=True)
    )
    if a_facts.special or b_facts.special:
        left, right = canonical(left), canonical(right)
        a, b = left.keep, right.keep
    start_facts, negative_zero = NOTHING, False
    if start is not None:
        start_facts, negative_zero = facts_of_start(start)
    if unsure and (isinstance(mac.order, Exact | Pairwise) or isinstance(mac.product, ProductTable)):
        a_facts, b_facts = facts(left), facts(right)
    if alone and matmul_blas.multiply(a, b, mac, out, (a_facts, b_facts), (a_largest, b_largest), wholes):
        if bias is not None:  # no sum leaves the range, so there is no NaN to look for
            _finish(out, mac, start, bias, k, stream, indices)
        return
    if isinstance(mac.order, Exact):
        _exact(_array(a), _array(b), mac, out, start, (a_facts, b_facts, start_facts), stream, indices)
        if counters is not None:
            matmul_counts.exact(_array(a), _array(b), mac, out, counters)
        _finish(out, mac, start, bias, k, stream, indices)
        return
    if isinstance(mac.order, Pairwise) or isinstance(mac.product, ProductTable):
        known = (a_facts, b_facts, start_facts)
        summed = isinstance(mac.order, Pairwise) and _in_a_tree(left, right, mac, out, start, known)
        if not summed or counters is not None:
            _by_terms(_array(a), _array(b), mac, out, start, known, stream, k_positions, indices, counters, summed)
        _finish(out, mac, start, bias, k, stream, indices)
        return
    largest = (math.inf, math.inf) if unsure else (a_largest, b_largest)
    in_lanes = _in_lanes(left, right, mac, out, start, (a_facts, b_facts), largest, wholes)
    if in_lanes and counters is None:
        if bias is not None:
            _finish(out, mac, start, bias, k, stream, indices)
        return
    chosen = plan(mac, k, a_facts, b_facts, start_facts, negative_zero)
    if not in_lanes and formats != (None, None) and chosen.recipe.proves_nothing and m * n * k >= LOOK_WORK:
        looked = facts(left), facts(right)  # a format says less than its values
        if not (looked[0].special or looked[1].special):
            chosen = plan(mac, k, *looked, start_facts, negative_zero)
    nans = 0 if in_lanes else 1
    if not in_lanes and not (unsure and chosen.recipe.rule == "clamped"):
        nans = run(chosen, left, right, mac, out, start, stream, k_positions, indices, threads())
    if nans and unsure:
        a_facts, b_facts = facts(left), facts(right)
        left, right = canonical(left), canonical(right)
        chosen = plan(mac, k, a_facts, b_facts, start_facts, negative_zero)
        nans = run(chosen, left, right, mac, out, start, stream, k_positions, indices, threads())
    if counters is not None:
        _count(chosen, left, right, mac, start, stream, k_positions, indices, counters)
    if nans and chosen.nan_is_error:
        check_no_nan(out, mac)
    if bias is not None:
        _finish(out, mac, start, bias, k, stream, indices)


def _wholes(
    left: Matrix, right: Matrix, mac: MacSpec, formats: tuple[NumberFormat | None, NumberFormat | None]
) -> tuple[Wholes, Wholes] | None:
    """Return both operands as whole numbers, if the kernels of the accumulator take them and they are."""
    bits = matmul_blas.wanted_bits(mac, left.rows * left.columns * right.columns)
    one = whole_numbers(left, bits, formats[0], "left") if bits else None
    other = None if one is None else whole_numbers(right, bits, formats[1], "right")
    return None if one is None or other is None else (one, other)


def _in_lanes(
    left: Matrix, right: Matrix | Patches, mac: MacSpec, out: np.ndarray, start: np.ndarray | None,
    known: tuple[Facts, Facts], largest: tuple[float, float], wholes: tuple[Wholes, Wholes] | None = None,
) -> bool:  # fmt: skip
    """Try the kernels in lanes of 16 bits; return whether one of them did it."""
    if isinstance(mac.accumulator, FixedPoint):
        return int16_lanes.multiply(left, right, mac, out, start, known, largest, wholes)
    return half_lanes.multiply(left, right, mac, out, start, known)


def _count(
    chosen: Plan, left: Matrix, right: Matrix, mac: MacSpec, start: np.ndarray | None, stream: int,
    k_positions: np.ndarray | None, indices: np.ndarray | None, counters: Counters,
) -> None:  # fmt: skip
    """Sum every `SAMPLE`-th row once more, counting."""
    n = right.columns
    rows = -(-left.rows // SAMPLE)
    some = left._replace(rows=rows, row=left.row * SAMPLE, keep=_array(left.keep)[::SAMPLE])
    places = (np.arange(left.rows, dtype=np.int64) * n if indices is None else indices)[::SAMPLE]
    totals = np.zeros(3)
    counting = replace(chosen, recipe=replace(chosen.recipe, counts=True))
    begin = None if start is None else start[::SAMPLE]
    out = np.empty((rows, n), result_carrier(mac))
    run(counting, some, right, mac, out, begin, stream, k_positions, places, 1, totals)
    if counting.recipe.counts_same:
        terms = matmul_counts.terms(some.keep, _array(right.keep))
        totals[:] = totals[0] - (rows * n * left.columns - terms), 0, terms
    matmul_counts.add(counters, rows, totals, mac)


def _exact(
    a: np.ndarray, b: np.ndarray, mac: MacSpec, out: np.ndarray, start: np.ndarray | None,
    known: tuple[Facts, Facts, Facts], stream: int, indices: np.ndarray | None,
) -> None:  # fmt: skip
    if mac.rounding.stochastic and indices is not None:
        raise UnsupportedError("matmul: order exact with stochastic rounding runs on whole matrices only")
    general_recipe(mac.cast)  # raises where the format is too wide
    if mac.product == "exact":
        sums = matmul_exact.exact_sums(a, b, mac, start, known)
    elif isinstance(mac.product, Cast) and mac.rounding.mode is not RoundingMode.DOWN:
        sums = np.empty(out.shape)
        chosen = exact_plan(mac.product, a.shape[1], *known)
        run(chosen, matrix(a), matrix(b), mac, sums, start, 0, None, None, threads())
    else:
        raise UnsupportedError(f"matmul: {mac} has no vector kernel")
    cast_numpy(sums, mac.cast, stream, None, out, -1, "numba")


def _in_a_tree(
    left: Matrix, right: Matrix, mac: MacSpec, out: np.ndarray, start: np.ndarray | None,
    known: tuple[Facts, Facts, Facts],
) -> bool:  # fmt: skip
    """Sum in a balanced tree by vectors over columns; return whether there is such a kernel."""
    if left.columns < 2 or known[0].wide or known[1].wide or mac.rounding.stochastic:
        return False
    try:
        chosen = plan(mac, left.columns, *known, False, with_start=start is not None)
    except UnsupportedError:
        return False
    if known[0].special or known[1].special:
        left, right = canonical(left), canonical(right)
    run(chosen, left, right, mac, out, start, 0, None, None, threads())
    if chosen.recipe.rule in SIGN_FORGOTTEN:
        first = np.zeros((1, 1)) if start is None else start
        matmul_tree.restore_zeros(_array(left.keep), _array(right.keep), first, start is not None, out)
    elif chosen.recipe.rule == "clamped":
        out += 0.0  # fixed point has no negative zero
    return True


def _by_terms(
    a: np.ndarray, b: np.ndarray, mac: MacSpec, out: np.ndarray, start: np.ndarray | None,
    known: tuple[Facts, Facts, Facts], stream: int, k_positions: np.ndarray | None, indices: np.ndarray | None,
    counters: Counters | None, summed: bool = False,
) -> None:  # fmt: skip
    """Sum term by term, and count so; with `summed`, only count."""
    if known[0].wide or known[1].wide:
        raise UnsupportedError(f"matmul: {mac} of float64 operands has no vector kernel")
    for cast in (mac.cast, result_cast(mac), mac.product):
        if isinstance(cast, Cast):
            check_specials(cast, any(f.special for f in known))
    (m, k), n = a.shape, b.shape[1]
    keys = keys_of(stream, np.arange(k) if k_positions is None else k_positions)
    chunks = -(-k // mac.order.size) if isinstance(mac.order, Chunked) else 1
    index = np.arange(m, dtype=np.int64) * n if indices is None else indices
    outer_keys = keys_of(stage_stream(stream, Stage.OUTER), np.arange(chunks))
    keys = keys if keys.size else _BLANK
    outer_keys = outer_keys if chunks else _BLANK
    if not summed:
        matmul_terms.multiply(a, b, mac, out, start, keys, outer_keys, index)
    if counters is not None:
        some, begin, totals = a[::SAMPLE], None if start is None else start[::SAMPLE], np.zeros(3)
        sums = np.empty((len(some), n), out.dtype)
        matmul_terms.multiply(some, b, mac, sums, begin, keys, outer_keys, index[::SAMPLE], totals)
        matmul_counts.add(counters, len(some), totals, mac)


def _finish(
    out: np.ndarray, mac: MacSpec, start: np.ndarray | None, bias: np.ndarray | None, k: int, stream: int,
    indices: np.ndarray | None,
) -> None:  # fmt: skip
    """Add what comes after the last product: the bias."""
    m, n = out.shape
    if bias is not None:
        # one more step, k = 1: a column of ones times the bias, from the sums so far
        last = MacSpec(*_cast_fields(result_cast(mac)))
        ones = np.ones((m, 1), np.float32)
        multiply(ones, bias.reshape(1, n), last, out, out.astype(np.float64), None, (None, None),
                 stage_stream(stream, Stage.OUTER), np.array([k]), indices)  # fmt: skip
    elif mac.overflow is Overflow.ERROR or not _has_nan(mac):
        check_no_nan(out, mac)


def _fused(
    a: np.ndarray, b: np.ndarray, order: Any, out: np.ndarray, start: np.ndarray | None,
    totals: np.ndarray | None = None,
) -> None:  # fmt: skip
    """Fused steps; where the addend joins last, one instruction (groups x terms positions) after the other."""
    if order.addend == "first":
        fused.multiply(a, b, order, out, start, totals)
        return
    span, k = order.groups * order.terms, a.shape[1]
    total = start
    for first in range(0, max(k, 1), span):
        fused.multiply(a[:, first : first + span], b[first : first + span], order, out, None, totals)
        if total is not None:
            _add_nearest(out, total, order.output)
        total = out.astype(np.float64)


def _add_nearest(out: np.ndarray, more: np.ndarray, output: Cast) -> None:
    """out += more by one ordinary addition, to nearest even in the output's format; both hold values of it."""
    fmt = output.format
    assert isinstance(fmt, FloatingPoint)
    if fmt.name == "float32" and output.overflow is Overflow.NATIVE:
        with np.errstate(over="ignore", invalid="ignore"):
            out += more.astype(np.float32)
        out[np.isnan(out)] = np.nan
    elif fmt.emax - fmt.smallest_exponent < 52:  # the float64 sum is exact
        with np.errstate(invalid="ignore"):
            cast_into((out + more).reshape(-1), out.reshape(-1), Cast(fmt, "nearest_even", output.overflow), 0)
    else:
        raise UnsupportedError(f"matmul: an addend added last to {fmt} has no vector kernel")


def _cast_fields(cast: Cast) -> tuple[Any, Any, Any]:
    return cast.format, cast.rounding, cast.overflow


def multiply_patches(
    a: np.ndarray, items: list[tuple[Patches, np.ndarray, np.ndarray | None, int]], mac: MacSpec, stream: int,
    facts_of_patches: Facts,
) -> None:  # fmt: skip
    """Multiply one left operand with several right ones given as patches (of one shape, over buffers of one dtype).

    Args:
        a: m x k.
        items: (right operand, out, start, first output index) of each product.
        facts_of_patches: what holds for all values behind the patches.

    Raises:
        UnsupportedError: no such compiled kernel; `multiply` on the matrix written out may still do it.
    """
    special = isinstance(mac.order, Fused | Exact | Pairwise) or isinstance(mac.product, ProductTable)
    if special:
        raise UnsupportedError(f"matmul: {mac} has no kernel over patches")
    m, k = a.shape
    left = matrix(a)
    left_facts, left_largest = look_at(left)
    both, largest = (left_facts, facts_of_patches), (left_largest, math.inf)
    if isinstance(mac.accumulator, FixedPoint) and mac.accumulator.bits <= int16_lanes.BITS:
        buffers = {id(item[0].values): item[0].values for item in items}.values()
        largest = (left_largest, max(look_at(matrix(values.reshape(1, -1)))[1] for values in buffers))
    for patches, out, start, first_index in items:
        if _in_lanes(left, patches, mac, out, start, both, largest):
            continue
        start_facts, negative_zero = (NOTHING, False) if start is None else facts_of_start(start)
        chosen = plan(mac, k, left_facts, facts_of_patches, start_facts, negative_zero)
        indices = first_index + np.arange(m, dtype=np.int64) * out.shape[1]
        run(chosen, left, patches, mac, out, start, stream, None, indices, threads())
        if mac.overflow is Overflow.ERROR or not _has_nan(mac):
            check_no_nan(out, mac)


def run(
    chosen: Plan,
    left: Matrix,
    right: Matrix | Patches,
    mac: MacSpec,
    out: np.ndarray,
    start: np.ndarray | None,
    stream: int,
    k_positions: np.ndarray | None,
    indices: np.ndarray | None,
    workers: int,
    counts: np.ndarray = _BLANK,
) -> int:
    """Run a plan; return how many results are NaN. A counting plan adds to `counts` (three float64)."""
    bits = chosen.recipe.bits
    k_table, n_table = _BLANK, _BLANK
    patches = isinstance(right, Patches)
    if isinstance(right, Patches):
        k_table, n_table = right.k_places * (bits // 8), right.n_places * (bits // 8)
        values = right.values if right.values.itemsize * 8 >= bits else right.values.astype(np.float64)
        data = values.__array_interface__["data"][0]
        right = Matrix(data, len(k_table), len(n_table), 0, 0, 8 * values.itemsize, values)
    if bits == 64:
        left, right = as_float64(left), as_float64(right)
    elif left.bits == 64 or right.bits == 64:
        raise UnsupportedError("matmul: float64 operands need float64 lanes")
    m, k, n = left.rows, left.columns, right.columns
    order = mac.order
    chunk = order.size if isinstance(order, Chunked) else max(k, 1)
    keys, outer_keys, index = _BLANK, _BLANK, None
    if chosen.recipe.random or (chosen.outer and chosen.outer.random):
        if m * n > 1 << 32 or (indices is not None and int(indices[-1]) + n > 1 << 32):
            raise UnsupportedError("matmul: more than 2**32 outputs with stochastic rounding have no vector kernel")
        positions = np.arange(k) if k_positions is None else k_positions
        stages = chosen.recipe.draws or (Stage.ACCUMULATE,)
        keys = np.stack([keys_of(stage_stream(stream, stage), np.append(positions, 0)) for stage in stages], 1)
        outer_keys = keys_of(stage_stream(stream, Stage.OUTER), np.arange(-(-k // chunk)))
        index = (np.arange(m, dtype=np.int64) * n if indices is None else indices).astype(np.uint32)
    recipe = chosen.recipe
    if recipe.random and recipe.bits == 32 and index is not None and n % 16 == 0 and not (index & 15).any():
        recipe = replace(recipe, aligned=True)
    function = kernel(recipe, chosen.outer, 8 * out.itemsize)
    first = (0, 0, 0) if start is None else (start.__array_interface__["data"][0], *start.strides)
    plain = keys is _BLANK

    def share(begin: int, end: int) -> int:
        return function(
            left.address, left.row, left.column, right.address, right.row, right.column, *first,
            out.__array_interface__["data"][0], out.strides[0], begin, end, n, k, chunk,
            chosen.mode, chosen.outer_mode, *chosen.addresses,
            0 if plain else keys.ctypes.data, 0 if plain else outer_keys.ctypes.data,
            0 if index is None else index.ctypes.data,
            k_table.ctypes.data if patches else 0, n_table.ctypes.data if patches else 0,
            0 if counts is _BLANK else counts.ctypes.data,
        )  # fmt: skip

    return share_rows(share, m, m * n * k, workers)


def keys_of(stream: int, positions: np.ndarray) -> np.ndarray:
    """Return `random_bits.key` for each position (uint64)."""
    with np.errstate(over="ignore"):
        x = np.uint64(stream) + positions.astype(np.uint64) * np.uint64(random_bits.K_STEP)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58_476D_1CE4_E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D0_49BB_1331_11EB)
        return np.ascontiguousarray(x ^ (x >> np.uint64(31)))


def check_no_nan(out: np.ndarray, mac: MacSpec) -> None:
    """Raise where a NaN marks a sum that the accumulator does not admit."""
    if np.isnan(out).any():
        cast = result_cast(mac)
        fmt = cast.format
        raise SpecError(f"matmul, accumulator {cast}: a sum left {fmt.lowest} to {fmt.largest}")  # type: ignore[union-attr]


def _has_nan(mac: MacSpec) -> bool:
    return result_cast(mac).format.has_nan and mac.accumulator.has_nan


# ------------------------------------------------------------------------------------------------ facts by looking
def facts(x: Matrix) -> Facts:
    """Find out what is true of all values of an operand (one pass)."""
    return look_at(x)[0]


@cache
def facts_and_largest(fmt: NumberFormat) -> tuple[Facts, float]:
    """Return what a format alone tells, and its largest magnitude."""
    return facts_of_format(fmt), math.inf if isinstance(fmt, BlockScaled) else max(fmt.largest, -fmt.lowest)


def look_at(x: Matrix) -> tuple[Facts, float]:
    """Find out what is true of all values of an operand, and the largest magnitude (one pass)."""
    if x.bits == 64:
        return facts_of_doubles(_array(x.keep)), math.inf
    found = np.empty(5, np.int64)
    across = abs(x.row) < abs(x.column)  # walk along memory
    look(*((x.address, x.columns, x.rows, x.column, x.row) if across else x[:5]), found.ctypes.data)
    trailing, lowest, highest, special, code = found.tolist()
    if highest < 0:  # nothing but zeros
        return Facts(1, NOTHING.lsb, NOTHING.top, bool(special)), 0.0
    largest = struct.unpack("f", struct.pack("i", code))[0]
    return Facts(24 - trailing, lowest - 150, highest - 126, bool(special)), largest


@compiled
def look(address, rows, columns, row, column, found):  # type: ignore[no-untyped-def]
    """Look at every float32 of a matrix; write to `found` (see `look_vector`).

    found: fewest trailing zeros of a significand; lowest last bit (2**(lowest - 150)); highest biased exponent (-1 if
    all are zero); whether there are infinities or NaN; the code of the highest magnitude.
    """
    state = np.empty(3 * 16, np.int32)
    at = state.ctypes.data
    state[:16] = 0  # bits of all significands
    state[16:32] = -1  # as u32: lowest last bit, minus 1
    state[32:48] = 0  # highest magnitude
    line = np.zeros(16, np.float32)
    for i in range(rows):
        start = address + i * row
        whole = columns // 16 * 16 if column == 4 else 0
        look_vectors(at, start, whole // 16)
        for begin in range(whole, columns, 16):
            line[:] = 0
            for j in range(min(16, columns - begin)):
                line[j] = read32(start + (begin + j) * column)
            look_vectors(at, line.ctypes.data, 1)
    bits, low, high = np.int64(0), np.int64(0xFFFFFFFF), np.int64(0)
    for j in range(16):
        bits |= np.int64(state[j])
        low = min(low, np.int64(np.uint32(state[16 + j])))
        high = max(high, np.int64(state[32 + j]))
    trailing = 0
    while trailing < 23 and not (bits >> trailing) & 1:
        trailing += 1
    write_whole(found, trailing)
    write_whole(found + 8, ((low + 1) >> 23) - 127)
    write_whole(found + 16, (high >> 23) if high else -1)
    write_whole(found + 24, np.int64(high >= 0x7F800000))
    write_whole(found + 32, high)


def facts_of_doubles(x: np.ndarray) -> Facts:
    """Return facts of a float64 array; exact only where float32 holds every value."""
    with np.errstate(over="ignore", invalid="ignore"):
        narrow = x.astype(np.float32)
    if np.array_equal(narrow, x, equal_nan=True):
        return facts(matrix(np.atleast_2d(narrow)))
    finite = np.abs(x[np.isfinite(x)])
    top = math.frexp(float(finite.max()))[1] if finite.size else -2000
    return Facts(53, -1074, top, bool(not np.isfinite(x).all()), True)


def facts_of_start(start: np.ndarray) -> tuple[Facts, bool]:
    """Return facts of start values, and whether a negative zero is among them."""
    return facts_of_doubles(np.atleast_2d(start)), bool(np.any((start == 0) & np.signbit(start)))
