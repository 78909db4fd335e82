"""What training costs by the measures of Sakr & Shanbhag: bits kept, full adders at work, bits sent.

For weights |W|, multiply-accumulates MAC of an example's forward pass, and widths B of a layer:

- representational, C_R = sum |W| (B_W + B_GW + B_acc)
- computational,    C_C = sum MAC (B_W B_A + B_GA B_A + B_GA B_W), one-bit full adders of the three products
- communication,    C_M = sum |W| B_GW, gradients sent to or from another machine

The formulas are our reconstruction; with the authors' network and widths they give their published totals. Float is
counted with 32 bits kept and 23-bit multipliers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

FLOAT_BITS, FLOAT_MANTISSA = 32, 23


@dataclass(frozen=True, slots=True)
class LayerWork:
    """Weights of a layer (biases left out) and the multiply-accumulates of one example's forward pass."""

    weights: int
    macs: int


@dataclass(frozen=True, slots=True)
class LayerBits:
    """Widths of a layer's tensors: B_W, B_A (of what it reads), B_GW, B_GA (at its output) and B_acc."""

    weight: int
    activation: int
    weight_gradient: int
    activation_gradient: int
    accumulator: int


@dataclass(frozen=True, slots=True)
class Cost:
    """The three measures: bits, one-bit full adders an example, bits."""

    representational: int
    computational: int
    communication: int


def fixed_point_cost(work: Sequence[LayerWork], bits: Sequence[LayerBits]) -> Cost:
    """Return the cost of training with these widths."""
    layers = list(zip(work, bits, strict=True))
    return Cost(
        sum(w.weights * (b.weight + b.weight_gradient + b.accumulator) for w, b in layers),
        sum(w.macs * full_adders(b) for w, b in layers),
        sum(w.weights * b.weight_gradient for w, b in layers),
    )


def float_cost(work: Sequence[LayerWork]) -> Cost:
    """Return the cost of training in float32."""
    weights, macs = sum(w.weights for w in work), sum(w.macs for w in work)
    return Cost(3 * FLOAT_BITS * weights, 3 * FLOAT_MANTISSA**2 * macs, FLOAT_BITS * weights)


def full_adders(bits: LayerBits, input_gradient: bool = True) -> int:
    """Return the full adders of one multiply-accumulate in each of the three products.

    Each layer counts the gradient at its own output. The first layer needs no input gradient; the totals of
    `fixed_point_cost` and `float_cost` count it all the same, in both columns alike.
    """
    products = bits.weight * bits.activation + bits.activation_gradient * bits.activation
    return products + (bits.activation_gradient * bits.weight if input_gradient else 0)
