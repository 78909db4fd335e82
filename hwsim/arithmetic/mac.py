"""How products are accumulated: the accumulator, its rounding, the product, and the order of the sum.

`MacSpec` says what one dot product of a GEMM results in, bit for bit; `hwsim.kernels` computes it. Orders are small
frozen types with a text form, so that a YAML file and Python say the same thing::

    MacSpec("bfloat16", "stochastic8", order="chunked(64, float32)")
    parse_mac("bfloat16 stochastic8, order=chunked(64, float32)")
    parse_mac("h200.float8_e4m3fn.float32.wgmma")
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Literal

from hwsim.arithmetic.named import parse_format
from hwsim.arithmetic.number import BlockScaled, FloatingPoint, NumberFormat
from hwsim.arithmetic.rounding import Overflow, Rounding
from hwsim.arithmetic.storage import Cast
from hwsim.errors import SpecError


@dataclass(frozen=True, slots=True)
class Sequential:
    """k ascending, starting from c, one rounding each step."""

    def __str__(self) -> str:
        return "sequential"


@dataclass(frozen=True, slots=True)
class Chunked:
    """Chunks of `size` positions summed from 0 in the accumulator; each result joins an outer sum with cast `outer`.

    The outer sum starts from c. `outer` None means the accumulator's own cast. The last chunk may be short.
    """

    size: int
    outer: Cast | None = None

    def __post_init__(self) -> None:
        if self.size < 1:
            raise SpecError(f"order chunked: got a size of {self.size}, expected 1 or more")

    def __str__(self) -> str:
        return f"chunked({self.size})" if self.outer is None else f"chunked({self.size}, {self.outer})"


@dataclass(frozen=True, slots=True)
class Pairwise:
    """The balanced tree over positions, split at the largest power of two below the length; c is added last."""

    def __str__(self) -> str:
        return "pairwise"


@dataclass(frozen=True, slots=True)
class Exact:
    """All products and c summed exactly, one rounding at the end (a Kulisch accumulator)."""

    def __str__(self) -> str:
        return "exact"


@dataclass(frozen=True, slots=True)
class Kahan:
    """Classical compensated summation, each of its four operations rounded in the accumulator's format."""

    def __str__(self) -> str:
        return "kahan"


@dataclass(frozen=True, slots=True)
class Accelerator:
    """The order that the mapping of the simulated accelerator implies; resolved before any kernel runs."""

    def __str__(self) -> str:
        return "accelerator"


@dataclass(frozen=True, slots=True)
class Native:
    """Whatever order this machine's BLAS takes: float32 only, NOT promised bit for bit (the float32 baseline)."""

    def __str__(self) -> str:
        return "native"


@dataclass(frozen=True, slots=True)
class Fused:
    """Tensor-core steps: `terms` products and the addend aligned, truncated, summed as integers, normalized once.

    Args:
        terms: products per step (L).
        fraction_bits: fraction bits kept when terms are aligned to the largest exponent (F).
        output: cast of each step's result, which is the next step's addend.
        groups: 1, or 2 where a block of 2 x `terms` positions is taken as two steps: k mod 4 in {0, 1} first, then
            {2, 3} (mma.sync FP8 on Hopper and B200).
        addend: "first" puts c into the first step; "last" starts each instruction (groups x terms positions) from 0 and
            adds what came before by one ordinary nearest-even addition in the output format.
        inputs: format in which the operands are decoded: its subnormals keep the smallest exponent, unnormalized,
            and bits beyond its mantissa are ignored (tf32). None decodes float32.
    """

    terms: int
    fraction_bits: int
    output: Cast = field(default_factory=lambda: Cast("float32", "toward_zero"))
    groups: int = 1
    addend: Literal["first", "last"] = "first"
    inputs: FloatingPoint | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.terms <= 1024:
            raise SpecError(f"order fused: got {self.terms} terms, expected 1 to 1024")
        if not 1 <= self.fraction_bits <= 40:
            raise SpecError(f"order fused: got {self.fraction_bits} fraction bits, expected 1 to 40")
        if not isinstance(self.output.format, FloatingPoint):
            raise SpecError(f"order fused: got output {self.output}, expected a float format")
        if self.groups not in (1, 2) or self.addend not in ("first", "last"):
            got = f"groups {self.groups}, addend {self.addend!r}"
            raise SpecError(f"order fused: got {got}, expected groups 1 or 2, addend first or last")

    def __str__(self) -> str:
        text = f"fused({self.terms}, {self.fraction_bits}, {self.output}"
        if self.groups != 1:
            text += f", groups={self.groups}"
        if self.addend != "first":
            text += f", addend={self.addend}"
        if self.inputs is not None:
            text += f", inputs={self.inputs}"
        return text + ")"


Order = Sequential | Chunked | Pairwise | Exact | Kahan | Accelerator | Native | Fused
_PLAIN_ORDERS: dict[str, Order] = {
    str(o): o for o in (Sequential(), Pairwise(), Exact(), Kahan(), Accelerator(), Native())
}
ORDER_NAMES = [*_PLAIN_ORDERS, "chunked(size, outer cast)", "fused(terms, fraction bits, output cast)"]


def parse_order(text: str | Order) -> Order:
    """Read an order from its text form.

    Raises:
        SpecError: no such order, or wrong arguments.
    """
    if isinstance(text, Order):
        return text
    if not isinstance(text, str):
        raise SpecError(f"order: got {text!r}, expected one of {', '.join(ORDER_NAMES)}")
    text = text.strip()
    if text in _PLAIN_ORDERS:
        return _PLAIN_ORDERS[text]
    match = re.fullmatch(r"(chunked|fused)\s*\((.*)\)", text)
    if not match:
        near = get_close_matches(text.split("(")[0], [*_PLAIN_ORDERS, "chunked", "fused"], n=1)
        hint = f". Did you mean {near[0]}?" if near else ""
        raise SpecError(f"order: got {text!r}, expected one of {', '.join(ORDER_NAMES)}{hint}")
    parts = split_commas(match[2])
    if match[1] == "chunked":
        if not 1 <= len(parts) <= 2:
            raise SpecError(f"order: got {text!r}, expected chunked(size) or chunked(size, outer cast)")
        return Chunked(_integer(parts[0], text), Cast.parse(parts[1]) if len(parts) == 2 else None)
    plain = [p for p in parts if "=" not in p]
    named = dict(p.split("=", 1) for p in parts if "=" in p)
    if not 2 <= len(plain) <= 3 or set(named) - {"groups", "addend", "inputs"}:
        form = "fused(terms, fraction bits, output cast, groups=1, addend=first, inputs=float32)"
        raise SpecError(f"order: got {text!r}, expected {form}")
    output = Cast.parse(plain[2]) if len(plain) == 3 else Cast("float32", "toward_zero")
    return Fused(
        _integer(plain[0], text),
        _integer(plain[1], text),
        output,
        _integer(named.get("groups", "1"), text),
        named.get("addend", "first"),  # type: ignore[arg-type]
        _inputs(named["inputs"]) if "inputs" in named else None,
    )


@dataclass(frozen=True, slots=True)
class ProductTable:
    """A product by lookup, for approximate multipliers: entry [code of a, code of b] is the product.

    Args:
        name: shown in provenance (with the hash of the values).
        left, right: formats of the operands, 10 bits each at most.
        values: float64, little-endian, row-major, 2**left.bits x 2**right.bits entries.
    """

    name: str
    left: NumberFormat
    right: NumberFormat
    values: bytes = field(repr=False)

    def __post_init__(self) -> None:
        for side in (self.left, self.right):
            if isinstance(side, BlockScaled) or side.bits > 10:
                raise SpecError(f"product table {self.name}: got operands of {side}, expected codes of 10 bits at most")
        expected = 8 << (self.left.bits + self.right.bits)
        if len(self.values) != expected:
            raise SpecError(f"product table {self.name}: got {len(self.values)} bytes, expected {expected}")

    def __str__(self) -> str:
        return f"table({self.name})"


@dataclass(frozen=True, slots=True)
class MacSpec:
    """One GEMM's arithmetic. Every field accepts its text form; `str()` and `parse_mac` round-trip.

    Args:
        accumulator: format in which the sum is held.
        rounding, overflow: of each accumulation.
        product: "exact", a `Cast` that rounds each product first, or a `ProductTable`.
        order: in which order terms are added.

    Raises:
        SpecError: an unknown name or a combination that means nothing.
    """

    accumulator: NumberFormat
    rounding: Rounding
    overflow: Overflow
    product: Literal["exact"] | Cast | ProductTable
    order: Order

    def __init__(
        self,
        accumulator: str | NumberFormat = "float32",
        rounding: str | Rounding = "nearest_even",
        overflow: str | Overflow = "native",
        product: str | Cast | NumberFormat | ProductTable = "exact",
        order: str | Order = "sequential",
    ) -> None:
        cast = Cast(accumulator, rounding, overflow)
        object.__setattr__(self, "accumulator", cast.format)
        object.__setattr__(self, "rounding", cast.rounding)
        object.__setattr__(self, "overflow", cast.overflow)
        kept = product if isinstance(product, ProductTable) or product == "exact" else Cast.parse(product)
        object.__setattr__(self, "product", kept)
        object.__setattr__(self, "order", parse_order(order))
        self._check()

    def _check(self) -> None:
        if isinstance(self.accumulator, BlockScaled):
            raise SpecError(f"accumulator: got {self.accumulator}, expected a float or fixed-point format")
        if isinstance(self.product, Cast) and isinstance(self.product.format, BlockScaled):
            raise SpecError(f"product: got {self.product}, expected a float or fixed-point format")
        if isinstance(self.order, Native) and str(self.cast) != "float32":
            raise SpecError(f"order: native goes with a float32 accumulator rounded to nearest even, got {self.cast}")
        if isinstance(self.order, Native | Fused) and self.product != "exact":
            raise SpecError(f"product: got {self.product}, expected exact with order {self.order}")

    @property
    def cast(self) -> Cast:
        """The accumulator's cast: how each sum is rounded."""
        return Cast(self.accumulator, self.rounding, self.overflow)

    def __str__(self) -> str:
        parts = [str(self.cast)]
        if self.product != "exact":
            parts.append(f"product={self.product}")
        if not isinstance(self.order, Sequential):
            parts.append(f"order={self.order}")
        return ", ".join(parts)


def parse_mac(text: str | MacSpec) -> MacSpec:
    """Read a MacSpec from its text form, or by the name of real hardware (see `named_mac`).

    >>> str(parse_mac("bfloat16 stochastic8, order=chunked(64, float32)"))
    'bfloat16 stochastic8, order=chunked(64, float32)'

    Raises:
        SpecError: a part that cannot be read.
    """
    if isinstance(text, MacSpec):
        return text
    if not isinstance(text, str) or not text.strip():
        raise SpecError(f"mac: got {text!r}, expected an accumulator such as 'bfloat16, order=chunked(64)'")
    if text.split(".")[0] in {name.split(".")[0] for name in named_macs()}:
        return named_mac(text)
    first, *rest = split_commas(text)
    given = {key: value for key, _, value in (p.partition("=") for p in rest)}
    unknown = [k for k in given if k not in ("product", "order")]
    if unknown:
        raise SpecError(f"mac {text!r}: got {unknown[0]!r}, expected product=... or order=... after the accumulator")
    cast = Cast.parse(first)
    return MacSpec(cast.format, cast.rounding, cast.overflow, **given)


# One row per generation: chips, then (input formats, output, instruction, order). Sources: ../docs/formats.md names
# them; parameters were checked against vectors read off real V100, A100, Ada and H200 chips, B200 is from literature.
_F32, _F16, _FP8_13 = "float32 toward_zero", "float16", "e8m13 toward_zero"
_WIDE = ("float16", "bfloat16")
_FP8 = ("float8_e4m3fn", "float8_e5m2")
_HARDWARE: tuple[tuple[tuple[str, ...], tuple[str, ...], str, str, str], ...] = (
    (("v100",), ("float16",), "float32", "mma", f"fused(4, 23, {_F32})"),
    (("v100",), ("float16",), "float16", "mma", f"fused(4, 23, {_F16})"),
    (("a100", "a2", "a30", "ada", "l40s"), _WIDE, "float32", "mma", f"fused(8, 24, {_F32})"),
    (("a100", "a2", "a30", "ada", "l40s"), ("float16",), "float16", "mma", f"fused(8, 24, {_F16})"),
    (("a100", "a2", "a30", "ada", "l40s"), ("tf32",), "float32", "mma", f"fused(4, 24, {_F32})"),
    (("ada", "l40s"), _FP8, "float32", "mma", f"fused(16, 13, {_FP8_13})"),
    (("ada", "l40s"), _FP8, "float16", "mma", f"fused(16, 13, {_F16})"),
    (("h100", "h200", "b200"), _WIDE, "float32", "mma", f"fused(16, 25, {_F32})"),
    (("h100", "h200", "b200"), ("float16",), "float16", "mma", f"fused(16, 25, {_F16})"),
    (("h100", "h200", "b200"), ("tf32",), "float32", "mma", f"fused(8, 25, {_F32})"),
    (("h100", "h200", "b200"), _FP8, "float32", "mma", f"fused(16, 25, {_F32}, groups=2, addend=last)"),
    (("h100", "h200", "b200"), _FP8, "float16", "mma", f"fused(16, 25, {_F16}, groups=2, addend=last)"),
    (("h100", "h200"), _WIDE, "float32", "wgmma", f"fused(16, 25, {_F32})"),
    (("h100", "h200"), ("float16",), "float16", "wgmma", f"fused(16, 25, {_F16})"),
    (("h100", "h200"), ("tf32",), "float32", "wgmma", f"fused(8, 25, {_F32})"),
    (("h100", "h200"), _FP8, "float32", "wgmma", f"fused(32, 13, {_FP8_13})"),
    (("h100", "h200"), _FP8, "float16", "wgmma", f"fused(32, 13, {_F16})"),
    (("b200",), _WIDE, "float32", "tcgen05", f"fused(16, 25, {_F32})"),
    (("b200",), ("float16",), "float16", "tcgen05", f"fused(16, 25, {_F16})"),
    (("b200",), ("tf32",), "float32", "tcgen05", f"fused(8, 25, {_F32})"),
    (("b200",), _FP8, "float32", "tcgen05", f"fused(32, 25, {_F32})"),
    (("b200",), _FP8, "float16", "tcgen05", f"fused(32, 25, {_F16})"),
)


def named_macs() -> dict[str, str]:
    """Return the text form of every hardware MAC by name CHIP.INPUT.OUTPUT.INSTRUCTION."""
    return {
        f"{chip}.{source}.{output}.{instruction}": f"{output}, order={order[:-1]}, inputs={source})"
        for chips, inputs, output, instruction, order in _HARDWARE
        for chip in chips
        for source in inputs
    }


def named_mac(name: str) -> MacSpec:
    """Return the arithmetic of a real tensor-core instruction, e.g. ``h200.float8_e4m3fn.float32.wgmma``.

    Raises:
        SpecError: no such chip, format or instruction; says the near names.
    """
    table = named_macs()
    if name not in table:
        near = get_close_matches(name, table, n=3, cutoff=0.4)
        hint = f". Did you mean {' or '.join(near)}?" if near else ""
        raise SpecError(f"mac: got {name!r}, expected CHIP.INPUT.OUTPUT.INSTRUCTION (`hwsim list macs`){hint}")
    return parse_mac(table[name])


def split_commas(text: str) -> list[str]:
    """Split at commas outside parentheses and strip each part."""
    parts, depth, start = [], 0, 0
    for position, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if letter == "," and depth == 0:
            parts.append(text[start:position].strip())
            start = position + 1
    return [*parts, text[start:].strip()]


def _inputs(name: str) -> FloatingPoint:
    fmt = parse_format(name.strip())
    if not isinstance(fmt, FloatingPoint):
        raise SpecError(f"order fused: got inputs {fmt}, expected a float format")
    return fmt


def _integer(text: str, whole: str) -> int:
    if not re.fullmatch(r"\d{1,9}", text.strip()):
        raise SpecError(f"order: got {text!r} in {whole!r}, expected a positive integer")
    return int(text)
