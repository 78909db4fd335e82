"""What happened inside the accumulators of GEMMs, counted on a fixed sample of the rows.

Off by default. Every 16th row (0, 16, 32, ...) is summed a second time with counting steps; the sample is part of
the definition, so counts of two runs can be compared.
"""

from __future__ import annotations

from dataclasses import dataclass

SAMPLE = 16  # one row in so many is counted


@dataclass
class Counters:
    """Totals over all GEMMs that were given this object.

    A term is a product, after its cast, that is finite and not zero. A term is swamped if the accumulator is finite,
    stays in range and does not change. A sum overflows if a finite accumulator and a finite term give one at or
    beyond the format's largest (lowest) value, or NaN. Sums with stochastic rounding are counted apart, since there a
    small term counts on average.

    Kahan's sum counts as the running sum it is, without its compensation. In a tree (pairwise), a node is swamped if
    it equals one of its branches although neither is zero. In fused steps, a product is swamped if alignment truncates
    it to 0, and what overflows is a step; adding a whole instruction's sum to the addend counts nothing. An exact sum
    swamps nothing and can overflow once, at its one rounding.
    """

    rows: int = 0  # rows counted
    terms: int = 0
    swamped: int = 0
    swamped_stochastic: int = 0
    overflowed: int = 0

    def add(self, rows: int, swamped: float, overflowed: float, terms: float, stochastic: bool) -> None:
        """Add the counts of one GEMM."""
        self.rows += rows
        self.terms += round(terms)
        self.overflowed += round(overflowed)
        if stochastic:
            self.swamped_stochastic += round(swamped)
        else:
            self.swamped += round(swamped)

    @property
    def swamped_share(self) -> float:
        """Share of the terms that changed nothing."""
        return (self.swamped + self.swamped_stochastic) / self.terms if self.terms else 0.0
