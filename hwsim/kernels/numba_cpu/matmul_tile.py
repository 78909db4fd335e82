"""The register-blocked inner loop: a tile of output rows x columns, k ascending, all accumulators in registers.

`tile` is a numba intrinsic: its first arguments are literals that choose the recipe, the rest are run-time values
(addresses and strides in bytes). Rows of a are read element by element, b as vectors of consecutive columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from hwsim.kernels.numba_cpu.matmul_once import TOGETHER
from hwsim.kernels.numba_cpu.matmul_random import TileWords, random_word
from hwsim.kernels.numba_cpu.matmul_steps import BLOCK, LOW_WORDS, NUMBERS, WHOLES, Step
from hwsim.kernels.numba_cpu.matmul_tree import Tree
from hwsim.kernels.numba_cpu.vector_ir import INT32, INT64, Lanes, counted_loop
from hwsim.kernels.reference.matmul import Stage

# Rules to nearest without overflow, under which Kahan's last difference is exact: if |total| >= |y|, back is what y
# really added, and the error of a sum rounded to nearest has p bits; else back is y give or take one unit in its last
# place, and the difference of numbers so close has p bits too.
LAST_IS_EXACT = ("split", "magic")


@dataclass(frozen=True)
class Recipe:
    """What one step does, as text fields (the text is a literal of the compiled kernel and part of its cache key).

    Args:
        bits: width of the lanes, 32 or 64.
        sums: how sums are formed, a key of `matmul_steps.SUMS`.
        rule: rounding of the accumulator (see `Step.round`).
        product: rounding of the product, "none" for exact.
        order: "sequential", "kahan" or "pairwise" (which starts from nothing and counts nothing).
        counts: whether swamped, overflowed and added terms are counted.
        aligned: whether the output index of every vector's first lane is a multiple of 16 (random words come cheaper).
    """

    bits: int
    sums: str
    rule: str
    product: str = "none"
    order: str = "sequential"
    counts: bool = False
    aligned: bool = False

    def __str__(self) -> str:
        return f"{self.bits} {self.sums} {self.rule} {self.product} {self.order} {int(self.counts)} {int(self.aligned)}"

    @classmethod
    def parse(cls, text: str) -> Recipe:
        """Read the text form."""
        bits, sums, rule, product, order, counts, aligned = text.split()
        return cls(int(bits), sums, rule, product, order, counts == "1", aligned == "1")

    @property
    def states(self) -> int:
        """Vectors kept for each vector of outputs."""
        return self.sums_kept + self.planes

    @property
    def sums_kept(self) -> int:
        """Vectors of sums: the running sum, and Kahan's compensation."""
        return 2 if self.order == "kahan" else 1

    @property
    def planes(self) -> int:
        """Vectors of counts: swamped, overflowed, terms; or only the sums that stayed the same (`counts_same`)."""
        return 0 if not self.counts else 1 if self.counts_same else 3

    @property
    def counts_same(self) -> bool:
        """Whether no sum can leave the range and every zero term leaves its sum alone."""
        return self.counts and (self.rule, self.product, self.order) == ("split", "none", "sequential")

    @property
    def proves_nothing(self) -> bool:
        """Whether this is the way for values of any size, where knowing more of them may save half the work."""
        return self.rule.startswith(("scaled", "half", "magic_", "bits_nearest_even"))

    @property
    def draws(self) -> tuple[Stage, ...]:
        """The roundings of a step that each draw a random word."""
        sums: tuple[Stage, ...] = (Stage.ACCUMULATE,)
        if self.order == "kahan":
            sums = (Stage.TERM, Stage.ACCUMULATE, Stage.DIFFERENCE, Stage.LOST)
        product = (Stage.PRODUCT,) if "stochastic" in self.product else ()
        return (*(sums if "stochastic" in self.rule else ()), *product)

    @property
    def random(self) -> bool:
        """Whether steps draw random words."""
        return bool(self.draws)


@intrinsic(prefer_literal=True)
def tile(  # type: ignore[no-untyped-def]
    _typing, recipe, rows, vectors, a, a_row, a_k, b, b_k, state, length, blocks, keys, index
):
    """Accumulate `length` products into the tile whose state stands at address `state`.

    Args:
        recipe, rows, vectors: literals; the tile is rows x (vectors x lanes).
        a, a_row, a_k: address and strides of the left operand. b, b_k: of the right one (columns contiguous).
        state: address of Recipe.states planes of the tile.
        blocks: address of the accumulator's parameter block; the product's block follows it.
        keys: address of random keys (u64), for each k one for each of Recipe.draws.
        index: address of one u32 for each row: the row-major index of the tile's first column.
    """
    if not all(isinstance(x, types.Literal) for x in (recipe, rows, vectors)):
        return None
    shape = (recipe.literal_value, rows.literal_value, vectors.literal_value)

    def generate(context: Any, builder: ir.IRBuilder, _signature: Any, values: Any) -> Any:
        _Tile(builder, Recipe.parse(shape[0]), shape[1], shape[2], values[3:]).emit()
        return context.get_dummy_value()

    return types.void(recipe, rows, vectors, *([types.int64] * 10)), generate


class _Tile:
    def __init__(self, builder: ir.IRBuilder, recipe: Recipe, rows: int, vectors: int, values: Any) -> None:
        self.builder, self.recipe, self.rows, self.vectors = builder, recipe, rows, vectors
        self.a, self.a_row, self.a_k, self.b, self.b_k, self.state, self.length, blocks, self.keys, index = values
        self.lanes = Lanes(builder, recipe.bits)
        self.step = Step(self.lanes, blocks)
        self.product_step = Step(self.lanes, builder.add(blocks, INT64(BLOCK * self.lanes.bytes)))
        self.words: dict[Stage, TileWords] = {}
        for place, stage in enumerate(recipe.draws):
            rule, own = (recipe.product, self.product_step) if stage is Stage.PRODUCT else (recipe.rule, self.step)
            mask = own.whole("random_mask") if LOW_WORDS in rule else None
            keys = (builder.add(self.keys, INT64(8 * place)), 8 * len(recipe.draws))
            self.words[stage] = TileWords(self.lanes, rows, vectors, *keys, index, recipe.aligned, mask)

    def _places(self) -> list[tuple[int, int, int]]:
        return [(s, r, v) for s in range(self.recipe.states) for r in range(self.rows) for v in range(self.vectors)]

    def _address(self, place: tuple[int, int, int]) -> Any:
        s, r, v = place
        offset = ((s * self.rows + r) * self.vectors + v) * 64
        return self.builder.add(self.state, INT64(offset))

    def emit(self) -> None:
        b, lanes = self.builder, self.lanes
        if self.recipe.order == "pairwise":
            recipe = self.recipe
            tree = Tree(b, lanes, self.vectors, recipe.sums, recipe.rule, recipe.product, self.step, self.product_step)
            for row in range(self.rows):
                line = b.add(self.a, b.mul(self.a_row, INT64(row)))
                tree.emit(line, self.a_k, self.b, self.b_k, self.length, self._address((0, row, 0)))
            return
        places = self._places()
        start = [lanes.load(self._address(place)) for place in places]
        self._warm_parameters()

        def add(k: Any, a: Any, right: Any, *values: Any) -> list[Any]:
            held = dict(zip(places, values, strict=True))
            columns = [lanes.load(b.add(right, INT64(64 * v))) for v in range(self.vectors)]
            for words in self.words.values():
                words.start(k)
            new = {}
            for row in range(self.rows):
                factor = lanes.spread(lanes.load_scalar(b.add(a, b.mul(self.a_row, INT64(row)))))
                for v in range(self.vectors):
                    old = [held[s, row, v] for s in range(self.recipe.states)]
                    drawn = {stage: words.word(row, v) for stage, words in self.words.items()}
                    for s, value in enumerate(self._advance(factor, columns[v], old, drawn)):
                        new[s, row, v] = value
            return [b.add(a, self.a_k), b.add(right, self.b_k), *(new[place] for place in places)]

        _, _, *sums = counted_loop(b, "tile", self.length, [self.a, self.b, *start], add)
        for place, value in zip(places, sums, strict=True):
            lanes.store(value, self._address(place))

    def _warm_parameters(self) -> None:
        """Read every parameter before the loop, by emitting one step whose results nobody uses (LLVM drops it)."""
        zero = self.lanes.number(0.0)
        word = ir.Constant(ir.VectorType(INT32, self.lanes.count), [0] * self.lanes.count)
        self._advance(zero, zero, [zero] * self.recipe.states, dict.fromkeys(self.recipe.draws, word))

    def _advance(self, a: Any, b: Any, old: list[Any], drawn: dict[Stage, Any]) -> list[Any]:
        recipe, step, v = self.recipe, self.step, self.lanes
        if v.bits == 64:
            drawn = {stage: self.builder.zext(word, v.integers) for stage, word in drawn.items()}
        product = None
        if recipe.product != "none":
            product = self.product_step.round(recipe.product, v.mul(a, b), drawn.get(Stage.PRODUCT))

        def rounded(x: Any, stage: Stage) -> Any:
            return step.round(recipe.rule, x, drawn.get(stage))

        def term_plus(other: Any, stage: Stage) -> Any:
            x, y = (a, b) if product is None else (product, step.number("one"))
            if recipe.sums in TOGETHER:
                return TOGETHER[recipe.sums](step, x, y, other)
            return rounded(step.sum_product(recipe.sums, x, y, other), stage)

        if recipe.order == "kahan":
            total, lost = old[:2]
            sums = "near" if recipe.sums in TOGETHER else recipe.sums  # both addends have p bits
            y = term_plus(v.neg(lost), Stage.TERM)
            t = rounded(step.sum_two(sums, total, y), Stage.ACCUMULATE)
            back = rounded(step.sum_two(sums, t, v.neg(total)), Stage.DIFFERENCE)
            lost = step.sum_two(sums, back, v.neg(y))
            new = [t, lost if recipe.rule in LAST_IS_EXACT else rounded(lost, Stage.LOST)]
        else:
            new = [term_plus(old[0], Stage.ACCUMULATE)]
        if not recipe.counts:
            return new
        return [*new, *self._count((a, b) if product is None else (product,), old[0], new[0], old[recipe.sums_kept :])]

    def _count(self, factors: tuple[Any, ...], old: Any, new: Any, counts: list[Any]) -> list[Any]:
        """Count swamped terms, overflows and terms that are not zero (as floats, in the lanes)."""
        v, b = self.lanes, self.builder
        one, zero = v.number(1.0), v.number(0.0)
        infinity = v.number(float("inf"))

        def finite(x: Any) -> Any:
            return b.fcmp_ordered("<", v.abs(x), infinity)

        same = b.fcmp_ordered("==", new, old)
        if self.recipe.counts_same:
            return [v.add(counts[0], b.select(same, one, zero))]
        real = ir.Constant(ir.VectorType(ir.IntType(1), v.count), [1] * v.count)
        for factor in factors:  # a float32 product may itself be 0 or infinite although the true one is not
            real = b.and_(real, b.and_(b.fcmp_unordered("!=", factor, zero), finite(factor)))
        largest, lowest = self.step.number("largest"), self.step.number("lowest")
        edge = b.or_(b.fcmp_unordered(">=", new, largest), b.fcmp_unordered("<=", new, lowest))
        within = b.and_(finite(old), b.not_(edge))
        swamped = b.and_(b.and_(real, same), within)
        overflowed = b.and_(b.and_(edge, finite(old)), real)
        adds = [b.select(x, one, zero) for x in (swamped, overflowed, real)]
        return [v.add(count, more) for count, more in zip(counts, adds, strict=True)]


def _address_intrinsic(kind: Any, number: Any) -> tuple[Any, Any]:
    """Make the pair (read, write) of one element type at a raw address."""

    @intrinsic
    def read(_typing, address):  # type: ignore[no-untyped-def]
        """Read one number at an address."""

        def generate(_context: Any, builder: ir.IRBuilder, _signature: Any, values: Any) -> Any:
            return builder.load(builder.inttoptr(values[0], ir.PointerType(kind)), typ=kind)

        return number(types.int64), generate

    @intrinsic
    def write(_typing, address, value):  # type: ignore[no-untyped-def]
        """Write one number at an address."""

        def generate(context: Any, builder: ir.IRBuilder, _signature: Any, values: Any) -> Any:
            builder.store(values[1], builder.inttoptr(values[0], ir.PointerType(kind)))
            return context.get_dummy_value()

        return types.void(types.int64, number), generate

    return read, write


read32, write32 = _address_intrinsic(ir.FloatType(), types.float32)
read_whole, write_whole = _address_intrinsic(INT64, types.int64)
read64, write64 = _address_intrinsic(ir.DoubleType(), types.float64)


@intrinsic(prefer_literal=True)
def transpose_block(_typing, bits, source, source_row, target, target_row):  # type: ignore[no-untyped-def]
    """Transpose one lanes x lanes block: vectors are read along the source's rows and written along the target's."""
    if not isinstance(bits, types.Literal):
        return None
    width = bits.literal_value

    def generate(context: Any, builder: ir.IRBuilder, _signature: Any, values: Any) -> Any:
        _, source, source_row, target, target_row = values
        lanes = Lanes(builder, width)
        n = lanes.count
        rows = [lanes.load(builder.add(source, builder.mul(source_row, INT64(i)))) for i in range(n)]
        span = n // 2
        while span:  # swap the off-diagonal quarters of ever smaller squares
            for i in range(n):
                if i & span:
                    continue
                low = [j if not j & span else n + (j ^ span) for j in range(n)]
                high = [j ^ span if not j & span else n + j for j in range(n)]
                pair = rows[i], rows[i | span]
                mask = ir.VectorType(INT32, n)
                rows[i] = builder.shuffle_vector(*pair, ir.Constant(mask, low))
                rows[i | span] = builder.shuffle_vector(*pair, ir.Constant(mask, high))
            span //= 2
        for i in range(n):
            lanes.store(rows[i], builder.add(target, builder.mul(target_row, INT64(i))))
        return context.get_dummy_value()

    return types.void(bits, *([types.int64] * 4)), generate


@intrinsic(prefer_literal=True)
def copy_vectors(_typing, bits, count, source, target):  # type: ignore[no-untyped-def]
    """Copy `count` (a literal) vectors."""
    if not isinstance(bits, types.Literal) or not isinstance(count, types.Literal):
        return None
    width, number = bits.literal_value, count.literal_value

    def generate(context: Any, builder: ir.IRBuilder, _signature: Any, values: Any) -> Any:
        lanes = Lanes(builder, width)
        for i in range(number):
            lanes.store(lanes.load(builder.add(values[2], INT64(64 * i))), builder.add(values[3], INT64(64 * i)))
        return context.get_dummy_value()

    return types.void(bits, count, types.int64, types.int64), generate


@intrinsic(prefer_literal=True)
def join(_typing, recipe, bits, count, total, addend, blocks, keys, index):  # type: ignore[no-untyped-def]
    """total = round(total + addend) over `count` x 16 values: float64 at `total`, lanes of `bits` at `addend`.

    Args:
        recipe, bits: literals; recipe is the text of a 64-bit `Recipe`, or "" to do nothing.
        count: groups of 16 values. blocks: address of a parameter block.
        keys: address of ONE random key (u64). index: address of one u32 for each group: the index of its first value.
    """
    if not isinstance(recipe, types.Literal) or not isinstance(bits, types.Literal):
        return None
    text, width = recipe.literal_value, bits.literal_value

    def generate(context: Any, builder: ir.IRBuilder, _signature: Any, values: Any) -> Any:
        if text:
            _emit_join(builder, Recipe.parse(text), width, *values[2:])
        return context.get_dummy_value()

    return types.void(recipe, bits, *([types.int64] * 6)), generate


def _emit_join(
    b: ir.IRBuilder, recipe: Recipe, width: int, count: Any, total: Any, addend: Any, blocks: Any, keys: Any, index: Any
) -> None:
    lanes, narrow = Lanes(b, 64), Lanes(b, 32)
    step = Step(lanes, blocks)
    key = None
    words = ir.VectorType(INT32, 8)
    if recipe.random:
        whole_key = lanes.load_scalar(keys, INT64)
        key = [lanes.spread(b.trunc(half, INT32)) for half in (whole_key, b.lshr(whole_key, INT64(32)))]
    for name in (*NUMBERS, *WHOLES):
        step.preload((name,))

    def join(group: Any) -> list[Any]:
        word = None
        for half in range(2):
            place = b.add(total, b.add(b.mul(group, INT64(128)), INT64(64 * half)))
            other = b.add(addend, b.add(b.mul(group, INT64(2 * width)), INT64(width * half)))
            if width == 64:
                more = lanes.load(other)
            else:
                kind = ir.VectorType(narrow.scalar, 8)
                loaded = b.load(b.inttoptr(other, ir.PointerType(kind)), typ=kind)
                loaded.align = 4
                more = b.fpext(loaded, lanes.floats)
            if key is not None:
                base = lanes.spread(lanes.load_scalar(b.add(index, b.mul(group, INT64(4))), INT32))
                places = b.add(base, ir.Constant(words, [8 * half + j for j in range(8)]))
                word = b.zext(random_word(b, places, key), lanes.integers)
            lanes.store(step.round(recipe.rule, step.sum_two(recipe.sums, lanes.load(place), more), word), place)
        return []

    counted_loop(b, "join", count, [], join)


@intrinsic(prefer_literal=True)
def store_vectors(_typing, bits, store_bits, count, source, target):  # type: ignore[no-untyped-def]
    """Store `count` x 16 floats of `bits` as floats of `store_bits`, NaN as the canonical one; return how many NaN.

    bits, store_bits and count are literals.
    """
    if not all(isinstance(x, types.Literal) for x in (bits, store_bits, count)):
        return None
    width, store_width, number = bits.literal_value, store_bits.literal_value, count.literal_value

    def generate(_context: Any, b: ir.IRBuilder, _signature: Any, values: Any) -> Any:
        lanes = Lanes(b, width)
        nans = INT64(0)
        step = lanes.count * store_width // 8
        for i in range(number * 16 // lanes.count):
            x = lanes.load(b.add(values[3], INT64(64 * i)))
            nan = b.fcmp_unordered("uno", x, x)
            mask = b.zext(b.bitcast(nan, ir.IntType(lanes.count)), INT64)
            nans = b.add(nans, b.ctpop(mask))
            x = b.select(nan, lanes.number(float("nan")), x)
            if store_width != width:
                kind = ir.VectorType(ir.FloatType() if store_width == 32 else ir.DoubleType(), lanes.count)
                x = b.fptrunc(x, kind) if store_width < width else b.fpext(x, kind)
            place = b.inttoptr(b.add(values[4], INT64(step * i)), ir.PointerType(x.type))
            b.store(x, place).align = store_width // 8
        return nans

    return types.int64(bits, store_bits, count, types.int64, types.int64), generate


@intrinsic
def look_vectors(_typing, state, address, count):  # type: ignore[no-untyped-def]
    """Take `count` vectors of 16 float32 into three running vectors of integers at `state`.

    They are: the union of all significands' bits; the lowest last bit, as the code of the power of two 2**23 times
    the last bit's place, minus 1, unsigned (zeros count as the highest); the highest magnitude's code.
    """

    def generate(context: Any, b: ir.IRBuilder, _signature: Any, values: Any) -> Any:
        state, address, count = values
        lanes = Lanes(b, 32)
        places = [b.add(state, INT64(64 * i)) for i in range(3)]
        start = [lanes.bits_of(lanes.load(place)) for place in places]

        def look(i: Any, union: Any, lowest: Any, highest: Any) -> list[Any]:
            x = lanes.bits_of(lanes.load(b.add(address, b.mul(i, INT64(64)))))
            code = b.and_(x, lanes.whole(0x7FFFFFFF))
            exponent = b.and_(code, lanes.whole(0x7F800000))
            # a subnormal gets a hidden bit it does not have, which only makes the answer more cautious
            significand = b.or_(b.and_(code, lanes.whole(0x7FFFFF)), lanes.whole(0x800000))
            last = b.and_(significand, b.neg(significand))
            last_place = b.add(lanes.bits_of(b.sitofp(last, lanes.floats)), exponent)
            zero = b.icmp_signed("==", code, lanes.whole(0))
            last_place = b.select(zero, lanes.whole(-1), b.sub(last_place, lanes.whole(1)))
            significand = b.select(zero, lanes.whole(0), significand)
            return [
                b.or_(union, significand),
                b.select(b.icmp_unsigned("<", last_place, lowest), last_place, lowest),
                b.select(b.icmp_signed(">", code, highest), code, highest),
            ]

        for place, result in zip(places, counted_loop(b, "look", count, start, look), strict=True):
            lanes.store(result, place)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate
