"""A register-blocked inner loop over 32 lanes of 16 bits: float16 or integers, k ascending, accumulators in registers.

Two kinds of step, each exactly one step of the specified arithmetic and of the processor:

- "half": float16 with subnormals, infinities and NaN. A fused multiply-add rounds the exact sum once, in the mode that
  the instruction itself names (AVX-512 FP16; nothing else may run these).
- "whole": 16-bit integers; the low half of the product, then an addition that saturates, is clamped to a narrower
  range, or wraps. LLVM has these everywhere.

A step is a text: "half near", "half up+saturate", "whole saturated", "whole clamped", "whole wrapped".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba import types
from numba.extending import intrinsic

from hwsim.kernels.numba_cpu.vector_ir import INT32, INT64, counted_loop

LANES = 32
HALF_LANES = bool(get_host_cpu_features().get("avx512fp16"))  # whether this processor computes in float16
KIND_HALF, KIND_WHOLE, KIND_FLOAT32 = 0, 1, 2  # literals of compiled code
DIRECTIONS = {"near": 8, "down": 9, "up": 10, "zero": 11}  # the instruction's rounding operand, exceptions silent
HALF = ir.HalfType()
INT16 = ir.IntType(16)


@dataclass(frozen=True)
class Recipe16:
    """What one multiply-accumulate does; the text form is a literal of the compiled kernel.

    Args:
        step: how sums are rounded or kept in range (see the module's text).
        product: the rounding of the product alone ("near", "up+saturate", ...), "exact" where it has none.
        order: "sequential" or "kahan".
        outer: the step by which chunks join the outer sum, "float32" for an outer sum in float32, "none" without.
    """

    step: str
    product: str = "exact"
    order: str = "sequential"
    outer: str = "none"

    def __str__(self) -> str:
        return "/".join((self.step, self.product, self.order, self.outer))

    @classmethod
    def parse(cls, text: str) -> Recipe16:
        """Read the text form."""
        return cls(*text.split("/"))

    @property
    def kind(self) -> int:
        """KIND_HALF or KIND_WHOLE."""
        return KIND_HALF if self.step.startswith("half") else KIND_WHOLE

    @property
    def states(self) -> int:
        """Vectors kept for each vector of outputs."""
        return 2 if self.order == "kahan" else 1


class Lanes16:
    """Emits operations on 32 lanes of one kind; limits are run-time numbers, in every lane."""

    def __init__(self, builder: ir.IRBuilder, kind: int, low: Any = None, high: Any = None) -> None:
        self.builder = builder
        self.scalar = HALF if kind == KIND_HALF else INT16
        self.vector = ir.VectorType(self.scalar, LANES)
        self.low, self.high = (None if x is None else self.spread(self._number(x)) for x in (low, high))

    def _number(self, x: Any) -> Any:
        b = self.builder
        return b.sitofp(x, self.scalar) if self.scalar is HALF else b.trunc(x, self.scalar)

    def spread(self, scalar: Any) -> Any:
        """Return a vector with `scalar` in every lane."""
        nothing = ir.Constant(self.vector, ir.Undefined)
        one = self.builder.insert_element(nothing, scalar, ir.Constant(INT32, 0))
        return self.builder.shuffle_vector(one, nothing, ir.Constant(ir.VectorType(INT32, LANES), [0] * LANES))

    def load(self, address: Any, kind: Any = None) -> Any:
        """Load a vector (or a scalar, by `kind`) from an address."""
        kind = kind or self.vector
        value = self.builder.load(self.builder.inttoptr(address, ir.PointerType(kind)), typ=kind)
        value.align = 2
        return value

    def store(self, value: Any, address: Any) -> None:
        """Store a vector."""
        self.builder.store(value, self.builder.inttoptr(address, ir.PointerType(value.type))).align = 2

    def call(self, name: str, *values: Any) -> Any:
        """Call an LLVM intrinsic."""
        module = self.builder.module
        kind = ir.FunctionType(self.vector, [value.type for value in values])
        return self.builder.call(module.globals.get(name) or ir.Function(module, kind, name), values)

    # ---------------------------------------------------------------------------------------------- steps
    def multiply_add(self, step: str, x: Any, y: Any, z: Any) -> Any:
        """Return x * y + z by one step."""
        kind, rule = step.split()
        if kind == "half":
            return self._limited(rule, self._directed(rule, "fma", "vfmadd", x, y, z))
        return self._add_whole(rule, z, self.builder.mul(x, y))

    def multiply(self, rule: str, x: Any, y: Any) -> Any:
        """Return the rounded product of halves."""
        return self._limited(rule, self._directed(rule, self.builder.fmul, "mul", x, y))

    def add(self, step: str, x: Any, y: Any) -> Any:
        """Return x + y by one step."""
        kind, rule = step.split()
        if kind == "half":
            return self._limited(rule, self._directed(rule, self.builder.fadd, "add", x, y))
        return self._add_whole(rule, x, y)

    def _directed(self, rule: str, nearest: str | Callable[..., Any], name: str, *values: Any) -> Any:
        direction = rule.partition("+")[0]
        if direction != "near":
            operand = INT32(DIRECTIONS[direction])
            return self.call(f"llvm.x86.avx512fp16.{name}.ph.512", *values, operand)
        return self.call(f"llvm.{nearest}.v32f16", *values) if isinstance(nearest, str) else nearest(*values)

    def _limited(self, rule: str, x: Any) -> Any:
        """Keep halves within +-largest; NaN stays."""
        b = self.builder
        if not rule.endswith("+saturate"):
            return x
        x = b.select(b.fcmp_ordered("<", self.high, x), self.high, x)
        return b.select(b.fcmp_ordered(">", self.low, x), self.low, x)

    def _add_whole(self, rule: str, x: Any, y: Any) -> Any:
        if rule == "saturated":
            return self.call("llvm.sadd.sat.v32i16", x, y)
        total = self.builder.add(x, y)
        if rule == "wrapped":
            return total
        return self.call("llvm.smin.v32i16", self.call("llvm.smax.v32i16", total, self.low), self.high)


@intrinsic(prefer_literal=True)
def tile16(_typing, recipe, rows, vectors, a, a_row, b, b_k, state, length, low, high):  # type: ignore[no-untyped-def]
    """Accumulate `length` products into the rows x (vectors x 32) tile whose state stands at address `state`.

    Args:
        recipe, rows, vectors: literals; recipe is the text of a `Recipe16`.
        a, a_row: address and row stride of the left operand, consecutive in k. b, b_k: right operand, stride in k.
        low, high: the limits of steps that clamp or saturate, whole numbers.
    """
    if not all(isinstance(x, types.Literal) for x in (recipe, rows, vectors)):
        return None
    text, shape = recipe.literal_value, (rows.literal_value, vectors.literal_value)

    def generate(context: Any, builder: ir.IRBuilder, _signature: Any, values: Any) -> Any:
        _emit_tile(builder, Recipe16.parse(text), *shape, *values[3:])
        return context.get_dummy_value()

    return types.void(recipe, rows, vectors, *([types.int64] * 8)), generate


def _emit_tile(
    b: ir.IRBuilder, recipe: Recipe16, rows: int, vectors: int,
    a: Any, a_row: Any, right: Any, b_k: Any, state: Any, length: Any, low: Any, high: Any,
) -> None:  # fmt: skip
    lanes = Lanes16(b, recipe.kind, low, high)
    places = [(s, r, v) for s in range(recipe.states) for r in range(rows) for v in range(vectors)]
    addresses = [b.add(state, INT64(64 * i)) for i in range(len(places))]
    lines = [b.add(a, b.mul(a_row, INT64(r))) for r in range(rows)]
    start = [lanes.load(address) for address in addresses]

    def add(k: Any, at: Any, *values: Any) -> list[Any]:
        columns = [lanes.load(b.add(at, INT64(64 * v))) for v in range(vectors)]
        new: dict[tuple[int, int, int], Any] = {}
        held = dict(zip(places, values, strict=True))
        offset = b.mul(k, INT64(2))
        for r in range(rows):
            x = lanes.spread(lanes.load(b.add(lines[r], offset), lanes.scalar))
            for v in range(vectors):
                states = [held[s, r, v] for s in range(recipe.states)]
                for s, value in enumerate(_advance(lanes, recipe, x, columns[v], states)):
                    new[s, r, v] = value
        return [b.add(at, b_k), *(new[place] for place in places)]

    _, *sums = counted_loop(b, "tile16", length, [right, *start], add)
    for value, address in zip(sums, addresses, strict=True):
        lanes.store(value, address)


def _advance(v: Lanes16, recipe: Recipe16, x: Any, y: Any, old: list[Any]) -> list[Any]:
    """Return the new state after one product x * y."""
    step = recipe.step

    def term_plus(other: Any) -> Any:
        if recipe.product == "exact":
            return v.multiply_add(step, x, y, other)
        return v.add(step, v.multiply(recipe.product, x, y), other)

    if recipe.order != "kahan":
        return [term_plus(old[0])]
    negative = v.builder.fneg
    total, lost = old
    term = term_plus(negative(lost))
    new = v.add(step, total, term)
    gained = v.add(step, new, negative(total))
    return [new, v.add(step, gained, negative(term))]


@intrinsic(prefer_literal=True)
def join16(_typing, recipe, count, total, inner, mask, low, high):  # type: ignore[no-untyped-def]
    """total = total + inner over `count` vectors of 32, by the recipe's outer step.

    Args:
        mask: what is kept of each integer of `inner`. The outer sum is 16 bits wide, or float32 where the recipe says.
    """
    if not isinstance(recipe, types.Literal):
        return None
    text = recipe.literal_value

    def generate(context: Any, b: ir.IRBuilder, _signature: Any, values: Any) -> Any:
        rule = Recipe16.parse(text)
        if rule.outer == "none":
            return context.get_dummy_value()
        _, count, total, inner, mask, low, high = values
        lanes = Lanes16(b, rule.kind, low, high)
        kept = lanes.spread(b.trunc(mask, INT16)) if rule.kind == KIND_WHOLE else None

        def join(i: Any) -> list[Any]:
            more = lanes.load(b.add(inner, b.mul(i, INT64(64))))
            if kept is not None:
                more = b.and_(more, kept)
            if rule.outer == "float32":
                floats = ir.VectorType(ir.FloatType(), LANES)
                place = b.add(total, b.mul(i, INT64(128)))
                lanes.store(b.fadd(lanes.load(place, floats), b.fpext(more, floats)), place)
            else:
                place = b.add(total, b.mul(i, INT64(64)))
                lanes.store(lanes.add(rule.outer, lanes.load(place), more), place)
            return []

        counted_loop(b, "join16", count, [], join)
        return context.get_dummy_value()

    return types.void(recipe, *([types.int64] * 6)), generate


@intrinsic
def part(_typing, source, first, second):  # type: ignore[no-untyped-def]
    """Store the first ones of 16 pairs of 16-bit integers at one address, the second ones at another."""

    def generate(context: Any, b: ir.IRBuilder, _signature: Any, values: Any) -> Any:
        lanes = Lanes16(b, KIND_WHOLE)
        pairs = lanes.load(values[0])
        for start, address in enumerate(values[1:]):
            places = ir.Constant(ir.VectorType(INT32, 16), list(range(start, 32, 2)))
            lanes.store(b.shuffle_vector(pairs, pairs, places), address)
        return context.get_dummy_value()

    return types.void(*([types.int64] * 3)), generate


# ------------------------------------------------------------------------------------- to and from float32
@intrinsic(prefer_literal=True)
def narrow32(_typing, kind, source, target, scale):  # type: ignore[no-untyped-def]
    """Store 32 float32 as halves (exact for values of float16), or as the integers x * scale (which must fit)."""
    if not isinstance(kind, types.Literal):
        return None
    number = kind.literal_value

    def generate(context: Any, b: ir.IRBuilder, _signature: Any, values: Any) -> Any:
        if number == KIND_HALF and not HALF_LANES:
            return context.get_dummy_value()  # never called here, and other processors may lack the conversion
        lanes = Lanes16(b, number)
        floats = ir.VectorType(ir.FloatType(), LANES)
        x = lanes.load(values[1], floats)
        if number == KIND_HALF:
            lanes.store(b.fptrunc(x, lanes.vector), values[2])
        else:
            factor = b.fptrunc(values[3], ir.FloatType())
            nothing = ir.Constant(floats, ir.Undefined)
            one = b.insert_element(nothing, factor, ir.Constant(INT32, 0))
            factors = b.shuffle_vector(one, nothing, ir.Constant(ir.VectorType(INT32, LANES), [0] * LANES))
            whole = b.fptosi(b.fmul(x, factors), ir.VectorType(INT32, LANES))
            lanes.store(b.trunc(whole, lanes.vector), values[2])
        return context.get_dummy_value()

    return types.void(kind, types.int64, types.int64, types.float64), generate


@intrinsic(prefer_literal=True)
def widen32(_typing, kind, source, target, offset, shift, step):  # type: ignore[no-untyped-def]
    """Store 32 results as float32: floats with NaN as the canonical one, integers as ((x + offset) >> shift) * step."""
    if not isinstance(kind, types.Literal):
        return None
    number = kind.literal_value

    def generate(context: Any, b: ir.IRBuilder, _signature: Any, values: Any) -> Any:
        if number == KIND_HALF and not HALF_LANES:
            return context.get_dummy_value()
        _, source, target, offset, shift, step = values
        lanes = Lanes16(b, number)
        floats, wholes = ir.VectorType(ir.FloatType(), LANES), ir.VectorType(INT32, LANES)

        def spread(scalar: Any, kind: Any) -> Any:
            nothing = ir.Constant(kind, ir.Undefined)
            one = b.insert_element(nothing, scalar, ir.Constant(INT32, 0))
            return b.shuffle_vector(one, nothing, ir.Constant(ir.VectorType(INT32, LANES), [0] * LANES))

        if number == KIND_WHOLE:
            x = b.add(b.sext(lanes.load(source), wholes), spread(b.trunc(offset, INT32), wholes))
            x = b.ashr(x, spread(b.trunc(shift, INT32), wholes))
            x = b.fmul(b.sitofp(x, floats), spread(b.fptrunc(step, ir.FloatType()), floats))
        else:
            x = lanes.load(source, floats) if number == KIND_FLOAT32 else b.fpext(lanes.load(source), floats)
            x = b.select(b.fcmp_unordered("uno", x, x), ir.Constant(floats, [float("nan")] * LANES), x)
        lanes.store(x, target)
        return context.get_dummy_value()

    signature = types.void(kind, types.int64, types.int64, types.int64, types.int64, types.float64)
    return signature, generate


@intrinsic(prefer_literal=True)
def write16(_typing, kind, address, value):  # type: ignore[no-untyped-def]
    """Write one number (float64, a value of the kind) at an address."""
    if not isinstance(kind, types.Literal):
        return None
    number = kind.literal_value

    def generate(context: Any, b: ir.IRBuilder, _signature: Any, values: Any) -> Any:
        if number == KIND_HALF and not HALF_LANES:
            return context.get_dummy_value()
        lanes = Lanes16(b, number)
        if number == KIND_HALF:
            # by way of float32: exact for values of float16, and LLVM needs no library function for it
            x = b.fptrunc(b.fptrunc(values[2], ir.FloatType()), HALF)
        else:
            x = b.trunc(b.fptosi(values[2], INT32), INT16)
        lanes.store(x, values[1])
        return context.get_dummy_value()

    return types.void(kind, types.int64, types.float64), generate
