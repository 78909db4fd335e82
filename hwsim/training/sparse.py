"""Top-k backpropagation: which part of a gradient is passed on.

Sun et al., "meProp", ICML 2017 (arXiv 1706.06197): of the gradient at the output of a linear map only the k entries
of largest magnitude are kept, so grad_input and grad_weight shrink; the bias gradient and every element-wise function
keep the full one. Zhang et al., arXiv 1905.10194, remember what was dropped and add it to the next gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

from hwsim.errors import SpecError


@dataclass(frozen=True)
class SparseBackprop:
    """How the gradient at each layer's output is thinned before the two backward GEMMs.

    Give `k` (how many slices are kept) or `fraction` (the share kept, at least one), never both. ``rank_over``:
    ``example`` ranks each row by itself, ``batch`` keeps one set of columns for all rows, ranked by the sum of
    magnitudes. ``unit``: an ``element``, or for convolutions a whole ``channel``. ``score``: ``magnitude``, or
    ``random`` as the papers' control. ``rank``: magnitudes ``before_cast`` or ``after_cast`` of the gradient to its
    GEMM format. ``memory``: eta of memorized backprop, 0 for none. ``layers``: patterns of the layers it acts on;
    ``output_layer``: whether the last layer is among them (the authors' code leaves it out). ``schedule`` replaces k
    or fraction from given epochs on, for example ``((0, 0.5), (3, 0.05))``. ``per_layer`` gives layers an amount of
    their own, of the kind that stands in k or fraction, for example ``(("fc1", 20), ("conv*", 100))``: the first
    pattern that matches decides, and the schedule leaves those layers alone. ``gates``: the gates of an LSTM or GRU are
    ranked ``together``, k of all their outputs, or ``apart``, k of each gate's.
    """

    k: int | None = None
    fraction: float | None = None
    rank_over: str = "example"
    unit: str = "element"
    score: str = "magnitude"
    memory: float = 0.0
    layers: tuple[str, ...] = ("*",)
    output_layer: bool = False
    rank: str = "before_cast"
    schedule: tuple[tuple[int, float], ...] = ()
    per_layer: tuple[tuple[str, float], ...] = ()
    gates: str = "together"

    def __post_init__(self) -> None:
        layers = (self.layers,) if isinstance(self.layers, str) else tuple(self.layers)
        object.__setattr__(self, "layers", layers)
        object.__setattr__(self, "schedule", tuple((int(epoch), value) for epoch, value in self.schedule))
        object.__setattr__(self, "per_layer", tuple((pattern, amount) for pattern, amount in self.per_layer))
        problems = []
        if (self.k is None) == (self.fraction is None):
            came = "both" if self.k is not None else "neither"
            problems.append(f"sparse: got {came} k and fraction, expected exactly one of them")
        if self.k is not None and (isinstance(self.k, bool) or not isinstance(self.k, int) or self.k < 1):
            problems.append(f"sparse.k: got {self.k!r}, expected a whole number of 1 or more")
        if self.fraction is not None and not 0 < self.fraction <= 1:
            problems.append(f"sparse.fraction: got {self.fraction!r}, expected a share in (0, 1]")
        for pattern, own in self.per_layer:
            if self.k is not None and (own != int(own) or own < 1):
                problems.append(f"sparse.per_layer: got {own!r} for {pattern!r}, expected a whole number of 1 or more")
            if self.fraction is not None and not 0 < own <= 1:
                problems.append(f"sparse.per_layer: got {own!r} for {pattern!r}, expected a share in (0, 1]")
        if not 0 <= self.memory < 1:
            problems.append(f"sparse.memory: got {self.memory!r}, expected 0 (no memory) up to but not including 1")
        if self.memory and self.unit == "channel":
            problems.append("sparse.memory: got unit channel with it, expected unit element: memory is of elements")
        for field_name, allowed in CHOICES.items():
            if getattr(self, field_name) not in allowed:
                expected = " or ".join(repr(a) for a in allowed)
                problems.append(f"sparse.{field_name}: got {getattr(self, field_name)!r}, expected {expected}")
        if problems:
            raise SpecError(*problems)

    def covers(self, layer: str) -> bool:
        """Return whether the layer path matches one of the patterns (the output layer is the caller's matter)."""
        return any(fnmatchcase(layer, pattern) for pattern in self.layers)

    def kept(self, extent: int, epoch: int = 0, layer: str = "") -> int:
        """Return how many of a layer's `extent` slices are kept in this epoch; `extent` itself: no selection at all."""
        amount: float | None = self.k if self.fraction is None else self.fraction
        for start, value in self.schedule:
            if epoch >= start:
                amount = value
        amount = next((own for pattern, own in self.per_layer if fnmatchcase(layer, pattern)), amount)
        assert amount is not None  # checked when made
        count = int(amount) if self.fraction is None else max(1, round(amount * extent))
        return min(count, extent)

    def __str__(self) -> str:
        amount = f"k={self.k}" if self.fraction is None else f"{self.fraction:.2%}"
        extras = [amount, f"over {self.rank_over}"]
        extras += [self.unit] if self.unit != "element" else []
        extras += [self.score] if self.score != "magnitude" else []
        extras += [f"memory {self.memory}"] if self.memory else []
        extras += [f"{pattern}: {own:g}" for pattern, own in self.per_layer]
        extras += ["gates apart"] if self.gates == "apart" else []
        return f"top-k ({', '.join(extras)})"


CHOICES = {
    "rank_over": ("example", "batch"),
    "unit": ("element", "channel"),
    "score": ("magnitude", "random"),
    "rank": ("before_cast", "after_cast"),
    "gates": ("together", "apart"),
}
