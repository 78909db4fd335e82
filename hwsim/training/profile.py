"""What the numbers did at some steps of a training run, as plain data (no torch).

One row stands for one place at one step. A place is a layer, a pass (one of the three GEMMs, ``reduce``, ``forward``,
``backward``, ``update``, or ``every GEMM`` for a weight that is cast once for all of them) and the role of the tensor.
Functions that run several times a step, such as the time steps of a recurrent layer, are added up.
"""

from __future__ import annotations

from pydantic import Field

from hwsim.spec import Spec


class TensorRow(Spec):
    """One cast at one step: what was written into the format against what came."""

    step: int
    layer: str
    gemm: str
    """The pass."""
    role: str
    cast: str
    """Format, rounding and overflow rule, as a plan writes them."""
    count: int
    """Elements."""
    nonzero: int
    """Finite elements that were not 0."""
    saturated: int | None = None
    """Finite elements beyond the format's range; None for block formats, whose scales follow the data."""
    underflowed: int
    """Finite elements that were not 0 and became 0."""
    not_finite: int
    """Elements that are NaN or infinite after the cast."""
    snr_db: float | None = None
    """Power of the tensor over power of the cast's error, in dB; None where there is no error, or nothing finite."""
    lowest_exponent: int = 0
    exponents: tuple[int, ...] = ()
    """How many of the non-zero elements lie in [2^e, 2^(e+1)), for e from `lowest_exponent` on."""


class SumRow(Spec):
    """The sums of one GEMM at one step, counted on a sample of its rows (docs/definitions.md A15)."""

    step: int
    layer: str
    gemm: str
    mac: str
    """Accumulator, product and order, as a plan writes them."""
    length: int
    """Products in each sum."""
    terms: int
    """Products counted that are finite and not 0."""
    swamped: int
    """Terms that left the accumulator as it was."""
    overflowed: int
    """Terms that took a sum to the end of the accumulator's range or beyond."""
    stochastic: bool = False
    """Whether the sum rounds stochastically: then a small term counts on average, and swamping loses nothing."""


class UpdateRow(Spec):
    """One parameter's update at one step."""

    step: int
    parameter: str
    cast: str
    """How the weight is stored."""
    updates: int
    """Elements that were to change."""
    lost: int
    """Elements among them that stayed as they were."""
    compensated: bool = False
    """Whether what was lost is kept for the next step (Kahan)."""


class GradientRow(Spec):
    """A layer's weight gradients beside those of the same step in float32: same weights, batch and dropout."""

    step: int
    layer: str
    """Empty for the whole network."""
    cosine: float | None = None
    """Cosine of the angle between them; None where one of them is 0 or not finite."""
    norm_ratio: float | None = None
    """Norm of ours over that of float32."""


class Profile(Spec):
    """Everything that was recorded of one run, in the order in which it happened."""

    steps: tuple[int, ...] = ()
    """The profiled updates, counted from 0."""
    tensors: tuple[TensorRow, ...] = ()
    sums: tuple[SumRow, ...] = ()
    updates: tuple[UpdateRow, ...] = ()
    gradients: tuple[GradientRow, ...] = ()
    uncounted: dict[str, str] = Field(default_factory=dict)
    """GEMMs whose sums no kernel can count, and their MAC."""

    def and_then(self, later: Profile) -> Profile:
        """Return both in one."""
        return Profile(
            steps=self.steps + later.steps,
            tensors=self.tensors + later.tensors,
            sums=self.sums + later.sums,
            updates=self.updates + later.updates,
            gradients=self.gradients + later.gradients,
            uncounted={**self.uncounted, **later.uncounted},
        )
