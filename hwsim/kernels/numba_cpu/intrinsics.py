"""What numba cannot say in Python: a float's bits as an integer, wide vectors, and stores that go around the cache."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_FLOAT_TO_BITS = {types.float32: (types.int32, ir.IntType(32)), types.float64: (types.int64, ir.IntType(64))}
_BITS_TO_FLOAT = {types.int32: (types.float32, ir.FloatType()), types.int64: (types.float64, ir.DoubleType())}


def _bitcast(table: dict[types.Type, tuple[types.Type, ir.Type]]) -> Any:
    """Return an intrinsic that reinterprets the bits of one scalar as the type the table names for it."""

    @intrinsic
    def cast(typing_context, value):  # type: ignore[no-untyped-def]
        if value not in table:
            return None
        target, llvm_target = table[value]

        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            return builder.bitcast(arguments[0], llvm_target)

        return target(value), generate

    return cast


bits_of = _bitcast(_FLOAT_TO_BITS)  # float32 -> int32, float64 -> int64
float_of = _bitcast(_BITS_TO_FLOAT)  # int32 -> float32, int64 -> float64


@intrinsic
def typed_as(typing_context, like, value):  # type: ignore[no-untyped-def]
    """Return `value` in the type of `like`: numba widens int32 + int32 to int64, which halves the vector width."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return context.cast(builder, arguments[1], signature.args[1], signature.args[0])

    return like(like, value), generate


def _shift(name: str) -> Any:
    """Return an intrinsic for one LLVM shift that stays in the type of its first operand."""

    @intrinsic
    def shift(typing_context, value, count):  # type: ignore[no-untyped-def]
        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            amount = context.cast(builder, arguments[1], signature.args[1], signature.args[0])
            return getattr(builder, name)(arguments[0], amount)

        return value(value, count), generate

    return shift


# numba widens before it shifts, and LLVM cannot narrow a shift whose count it does not know.
shift_left = _shift("shl")
shift_right = _shift("ashr")
shift_right_unsigned = _shift("lshr")


@intrinsic
def wide_vectors(typing_context):  # type: ignore[no-untyped-def]
    """Let the compiler use 512-bit vectors in the function that calls this.

    LLVM prefers 256 bits on processors with AVX-512, which costs these kernels a third of their speed. Elsewhere the
    attribute has no effect.
    """

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        # llvmlite admits only the attributes it knows; a quoted one is valid in LLVM's text form.
        set.add(builder.function.attributes, '"prefer-vector-width"="512"')
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def load(typing_context, array, index):  # type: ignore[no-untyped-def]
    """Return element `index` (not negative) of a contiguous array.

    Indexing with brackets tests for a negative index, which keeps short inner loops from becoming vector code, and
    slicing counts references.
    """

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        return builder.load(builder.gep(data, [arguments[1]], inbounds=True), align=array.dtype.bitwidth // 8)

    return array.dtype(array, index), generate


@intrinsic
def store(typing_context, array, index, value):  # type: ignore[no-untyped-def]
    """Store ``array[index] = value`` (same type) into a contiguous array, index not negative; see `load`."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        place = builder.gep(data, [arguments[1]], inbounds=True)
        builder.store(arguments[2], place, align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, index, value), generate


@intrinsic(prefer_literal=True)
def largest_magnitude_bits(typing_context, array, index, count):  # type: ignore[no-untyped-def]
    """Return the bits of the largest magnitude among `count` floats from `index` on (NaN above infinity).

    `count` is a compile-time constant; LLVM does not make vector code of so short a reduction by itself.
    """
    if not isinstance(count, types.IntegerLiteral):
        return None
    kind, llvm_kind = _FLOAT_TO_BITS[array.dtype]
    lanes, width = count.literal_value, kind.bitwidth

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        vector = ir.VectorType(llvm_kind, lanes)
        place = builder.bitcast(builder.gep(data, [arguments[1]], inbounds=True), vector.as_pointer())
        magnitudes = builder.and_(
            builder.load(place, align=width // 8), ir.Constant(vector, [(1 << (width - 1)) - 1] * lanes)
        )
        reduce_type = ir.FunctionType(llvm_kind, [vector])
        name = f"llvm.vector.reduce.smax.v{lanes}i{width}"
        return builder.call(cgutils.get_or_insert_function(builder.module, reduce_type, name), [magnitudes])

    return kind(array, index, count), generate


@intrinsic(prefer_literal=True)
def fill(typing_context, array, index, count, value):  # type: ignore[no-untyped-def]
    """Store `value` into `count` places of a contiguous array from `index` on; `count` is a compile-time constant.

    A loop over so few places becomes single stores.
    """
    if not isinstance(count, types.IntegerLiteral):
        return None
    lanes = count.literal_value

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        vector = ir.VectorType(arguments[3].type, lanes)
        place = builder.bitcast(builder.gep(data, [arguments[1]], inbounds=True), vector.as_pointer())
        undefined, first = ir.Constant(vector, ir.Undefined), ir.Constant(ir.IntType(32), 0)
        one = builder.insert_element(undefined, arguments[3], first)
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes)
        builder.store(builder.shuffle_vector(one, undefined, zeros), place, align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, index, count, array.dtype), generate


STREAM_ALIGNMENT = 64


@intrinsic
def store_streaming(typing_context, array, index, value):  # type: ignore[no-untyped-def]
    """Store ``array[index] = value`` past the caches (no read of the line it overwrites).

    Only for a loop over a whole contiguous array whose data starts at a multiple of `STREAM_ALIGNMENT` bytes: the
    vectorized store takes that alignment for granted.
    """

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        place = builder.gep(data, [arguments[1]], inbounds=True)
        written = builder.store(arguments[2], place, align=STREAM_ALIGNMENT)
        written.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)]))
        return context.get_dummy_value()

    return types.void(array, index, value), generate
