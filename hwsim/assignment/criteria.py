"""The five criteria of Sakr & Shanbhag as formulas: statistics of a float run in, fixed-point grids out.

"Per-Tensor Fixed-Point Quantization of the Back-Propagation Algorithm", ICLR 2019, arXiv 1812.11732; constants as in
the authors' published code. A tensor of range r and width B (sign included) has the step D = r 2^(1-B).

1. Feed-forward noise: each weight and activation tensor adds equally to the noise at the scores.
2. Clipping of weight gradients: their range covers two deviations.
3. Bias of weight gradients: their step is at most a quarter of the smallest deviation.
4. Activation gradients: seen at the weight gradients, their noise is at most what those add themselves.
5. Accumulator: it starts below the weight's step and reaches down to the smallest learning rate times the smallest
   gradient.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, floor, log2, sqrt

from hwsim.arithmetic.named import parse_format
from hwsim.arithmetic.number import FixedPoint
from hwsim.errors import SpecError

RUNNING = 0.9  # weight of the past in running averages: v <- 0.9 v + 0.1 (variance of this step)
# A running average shows a single outlier at 0.1 of its variance; the largest deviation is corrected by that.
CORRECTION = 1 / sqrt(1 - RUNNING)
WEIGHT_GRADIENT_DEVIATIONS = 2  # covered by the range: a normal distribution is clipped in 4.6 % of the cases
ACTIVATION_GRADIENT_DEVIATIONS = 8
STEPS_IN_DEVIATION = 4
INPUT_BITS = 8  # of the network's own input, which is not among the tensors that criterion 1 balances


@dataclass(frozen=True, slots=True)
class Grid:
    """A fixed-point tensor with a predefined dynamic range: multiples of 2^step below 2^range.

    Signed ones reach down to -2^range, unsigned ones start at 0. Both fields are exponents of two.
    """

    range: int
    step: int
    signed: bool = True

    @property
    def bits(self) -> int:
        """Width: B = log2(r / D) + 1 with a sign, one less without."""
        return self.range - self.step + self.signed

    @property
    def format(self) -> FixedPoint:
        """The number format. Raises SpecError for a width that no format has."""
        number = parse_format(f"{'' if self.signed else 'u'}fixed{self.bits}.{-self.step}")
        assert isinstance(number, FixedPoint)
        return number

    def coarser(self, bits: int = 1) -> Grid:
        """Return the grid with the same range and so many bits less."""
        return Grid(self.range, self.step + bits, self.signed)


def power_above(value: float) -> int:
    """Return the exponent of the smallest power of two that is at least `value`."""
    return ceil(log2(value))


def power_below(value: float) -> int:
    """Return the exponent of the largest power of two that is at most `value`."""
    return floor(log2(value))


def with_bits(bits: int, range: int, signed: bool = True) -> Grid:
    """Return the grid of this width over a range 2^range."""
    return Grid(range, range + signed - bits, signed)


def noise_offsets(gains: Mapping[str, float]) -> dict[str, int]:
    """Return how many bits more than the least demanding one each tensor needs (criterion 1).

    `gains` are noise gains E of weights AND activations together, each for a step of 2^(1-B); one minimum for all.
    A tensor without any influence (E = 0) gets 0.
    """
    positive = [gain for gain in gains.values() if gain > 0]
    if not positive:
        raise SpecError("noise gains: got 0 for every tensor; the network's scores depend on none of them")
    least = min(positive)
    return {name: round(log2(sqrt(gain / least))) if gain > 0 else 0 for name, gain in gains.items()}


def weight_gradient(largest_deviation: float, smallest_deviation: float) -> Grid:
    """Return the grid of a layer's weight gradient (criteria 2 and 3) from its running deviation's extremes."""
    return Grid(
        power_above(WEIGHT_GRADIENT_DEVIATIONS * CORRECTION * largest_deviation),
        power_below(smallest_deviation / STEPS_IN_DEVIATION),
    )


def activation_gradient(largest_deviation: float, weight_gradient_step: int, jacobian_norm: float) -> Grid:
    """Return the grid of the gradient at a layer's output (criterion 4).

    `jacobian_norm` is the largest singular value of the layer's squared Jacobian: what a variance there becomes at the
    weight gradient.
    """
    step = power_below(2.0**weight_gradient_step / sqrt(jacobian_norm)) if jacobian_norm > 0 else weight_gradient_step
    reach = power_above(ACTIVATION_GRADIENT_DEVIATIONS * CORRECTION * largest_deviation)
    return Grid(max(reach, step), step)


def accumulator(weight: Grid, gradient: Grid, smallest_learning_rate: float) -> Grid | None:
    """Return the grid of what is left below the weight's last bit (criterion 5).

    None if the weight's own step is as fine as the smallest update, so that nothing is ever left.
    """
    grid = Grid(weight.step - 1, power_below(smallest_learning_rate * 2.0**gradient.step))
    return grid if grid.bits > 1 else None
