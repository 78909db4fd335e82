"""`random_bits.word` for the lanes of a tile, in few instructions: no bit changes, only how it comes about.

word(stream, index, k) xors the index with the low half of k's key, mixes, xors the high half, and mixes again. The
first mixing starts with x ^ x >> 16, which may be done for index and key apart, outside the loop. Two more savings:

* `low`: where rounding takes the word's top 16 bits for the 16 bits that bfloat16 drops, the last product is formed by
  16-bit multiplications, which leave its upper half where it is needed.
* `aligned`: where each vector's first index is a multiple of 16, its lanes are one number s xor 0 ... 15. The first
  product is then (s - s mod 16) * M1, one scalar, plus a row of a table of 16 x 16. The scalars of all vectors are made
  together one k ahead, and come back from memory.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils

from hwsim.kernels.numba_cpu.vector_ir import INT32, INT64, Lanes
from hwsim.kernels.random_bits import M1, M2

SIXTEEN = ir.VectorType(INT32, 16)
SHORTS = ir.VectorType(ir.IntType(16), 32)


def random_word(b: ir.IRBuilder, index: Any, key: Any) -> Any:
    """Return `random_bits.word` of each lane, from the low halves of the indices and the two halves of the key."""
    return _last_half(b, _first_half(b, b.mul(_folded(b, b.xor(index, key[0])), _whole(index, M1)), key[1]))


def _whole(like: Any, value: int) -> Any:
    return ir.Constant(like.type, [value] * like.type.count)


def _folded(b: ir.IRBuilder, x: Any) -> Any:
    shift = _whole(x, 16) if isinstance(x.type, ir.VectorType) else ir.Constant(x.type, 16)
    return b.xor(x, b.lshr(x, shift))


def _first_half(b: ir.IRBuilder, product: Any, key_high: Any) -> Any:
    return b.xor(b.xor(product, b.lshr(product, _whole(product, 15))), key_high)


def _last_half(b: ir.IRBuilder, x: Any) -> Any:
    x = b.mul(x, _whole(x, M2))
    return b.xor(x, b.lshr(x, _whole(x, 15)))


def _top_of_last_half(b: ir.IRBuilder, x: Any, mask: Any) -> Any:
    """Return the top 16 bits of `_last_half` in the low half of each lane, masked (AVX-512 VNNI)."""

    def call(name: str, kind: ir.Type, *values: Any) -> Any:
        types = ir.FunctionType(kind, [v.type for v in values])
        return b.call(b.module.globals.get(name) or ir.Function(b.module, types, name), values)

    low, high = M2 & 0xFFFF, M2 >> 16
    words = b.bitcast(x, SHORTS)
    carried = call("llvm.x86.avx512.pmulhu.w.512", SHORTS, words, ir.Constant(SHORTS, [low, 0] * 16))
    pairs = ir.Constant(SHORTS, [high, low] * 16)  # low half times high + high half times low
    top = call("llvm.x86.avx512.vpdpwssd.512", SIXTEEN, b.bitcast(carried, SIXTEEN), words, pairs)
    first_bit = b.bitcast(b.lshr(b.bitcast(top, SHORTS), ir.Constant(SHORTS, [15] * 32)), SIXTEEN)
    return b.and_(b.xor(top, first_bit), mask)


class TileWords:
    """The random words of one tile, k ascending.

    Args:
        rows, vectors: of the tile; `lanes` says how many columns a vector has.
        keys: address of one u64 for each k (with `aligned`, one more behind the last), `key_step` bytes apart.
        index: address of one u32 for each row: the row-major output index of its first column.
        mask: for words of 16 bits in the low half (`low`), which of them count; else None.
    """

    def __init__(
        self, lanes: Lanes, rows: int, vectors: int, keys: Any, key_step: int, index: Any, aligned: bool,
        mask: Any = None,
    ) -> None:  # fmt: skip
        self.builder, self.count, self.keys, self.mask = lanes.builder, lanes.count, keys, mask
        self.vectors, self.aligned, self.key_step = vectors, aligned, key_step
        self.lanes = Lanes(self.builder, 32)
        b = self.builder
        starts = [self.lanes.load_scalar(b.add(index, INT64(4 * row)), INT32) for row in range(rows)]
        if aligned:
            self._prepare_table([b.add(s, INT32(16 * v)) for s in starts for v in range(vectors)])
            self._make_ahead(INT64(0))
            return
        kind = ir.VectorType(INT32, self.count)
        self.index = [
            [_folded(b, b.add(self._spread(s), ir.Constant(kind, [v * self.count + j for j in range(self.count)])))
             for v in range(vectors)]
            for s in starts
        ]  # fmt: skip

    def _spread(self, scalar: Any) -> Any:
        kind = ir.VectorType(scalar.type, self.count)
        one = self.builder.insert_element(ir.Constant(kind, ir.Undefined), scalar, INT32(0))
        zeros = ir.Constant(ir.VectorType(INT32, self.count), [0] * self.count)
        return self.builder.shuffle_vector(one, ir.Constant(kind, ir.Undefined), zeros)

    def _key(self, k: Any) -> tuple[Any, Any]:
        """Return the two halves of the key of k, the low one folded."""
        b = self.builder
        key = self.lanes.load_scalar(b.add(self.keys, b.mul(k, INT64(self.key_step))), INT64)
        return _folded(b, b.trunc(key, INT32)), b.trunc(b.lshr(key, INT64(32)), INT32)

    def _prepare_table(self, starts: list[Any]) -> None:
        b = self.builder
        table = [(j ^ lane) * M1 % 2**32 for j in range(16) for lane in range(16)]
        kind = ir.ArrayType(INT32, len(table))
        constant = cgutils.global_constant(b.module, "hwsim.first_products", ir.Constant(kind, table))
        constant.align = 64
        self.table = b.ptrtoint(constant, INT64)
        # two halves in turns, so that what is read was written one k ago: products of 16 vectors, then table rows
        room = cgutils.alloca_once(b, ir.ArrayType(SIXTEEN, 4))
        room.align = 64
        self.room = b.ptrtoint(room, INT64)
        first = ir.Constant(SIXTEEN, [0] * 16)
        for place, start in enumerate(starts):
            first = b.insert_element(first, start, INT32(place))
        self.first = _folded(b, first)

    def _half(self, k: Any) -> Any:
        return self.builder.add(self.room, self.builder.mul(self.builder.and_(k, INT64(1)), INT64(128)))

    def _make_ahead(self, k: Any) -> None:
        b = self.builder
        mixed = b.xor(self.first, self._spread(self._key(k)[0]))
        low = b.and_(mixed, _whole(mixed, 15))
        half = self._half(k)
        self.lanes.store(b.mul(b.xor(mixed, low), _whole(mixed, M1)), half)
        self.lanes.store(b.shl(low, _whole(low, 6)), b.add(half, INT64(64)))

    def start(self, k: Any) -> None:
        """Begin the step at k."""
        low, high = self._key(k)
        self.high = self._spread(high)
        if self.aligned:
            self.made = self._half(k)
            self._make_ahead(self.builder.add(k, INT64(1)))
        else:
            self.low = self._spread(low)

    def word(self, row: int, vector: int) -> Any:
        """Return the words of one vector (with a `mask`, their top 16 bits in the low half)."""
        b = self.builder
        if self.aligned:
            place = INT64(4 * (row * self.vectors + vector))
            product = self._spread(self.lanes.load_scalar(b.add(self.made, place), INT32))
            offset = self.lanes.load_scalar(b.add(b.add(self.made, INT64(64)), place), INT32)
            row_of_table = b.add(self.table, b.zext(offset, INT64))
            product = b.add(product, b.load(b.inttoptr(row_of_table, SIXTEEN.as_pointer()), typ=SIXTEEN, align=64))
        else:
            product = b.xor(self.index[row][vector], self.low)
            product = b.mul(product, _whole(product, M1))
        half = _first_half(b, product, self.high)
        return _last_half(b, half) if self.mask is None else _top_of_last_half(b, half, self.mask)
