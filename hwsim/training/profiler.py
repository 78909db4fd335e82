"""Watching one training step: what casts, sums and updates did to the numbers.

A profiler only looks. Everything that it counts is computed a second time beside the step, so that a profiled run
ends with the same bits as one that is not profiled, and steps that are not profiled do nothing at all for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import log10
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hwsim import kernels
from hwsim.arithmetic.mac import MacSpec, Native
from hwsim.arithmetic.number import BlockScaled
from hwsim.arithmetic.storage import Cast
from hwsim.errors import UnsupportedError
from hwsim.kernels.counters import Counters
from hwsim.training.profile import GradientRow, Profile, SumRow, TensorRow, UpdateRow

if TYPE_CHECKING:
    from hwsim.training.step import Site

STEPS = 8
"""How many steps of a run are profiled, spread evenly, the first and the last among them."""

_FORWARD = ("activation", "statistics", "loss")
_NO_GEMM = {"weight": "every GEMM", "activation_gradient": "backward", **dict.fromkeys(_FORWARD, "forward")}


@dataclass
class _Seen:
    """What was seen of one tensor so far in this step."""

    cast: Cast
    count: int = 0
    nonzero: int = 0
    saturated: int = 0
    underflowed: int = 0
    not_finite: int = 0
    signal: float = 0.0
    noise: float = 0.0
    exponents: dict[int, int] = field(default_factory=dict)

    def add(self, came: Tensor, stored: Tensor) -> None:
        """Add one tensor, before and after its cast."""
        finite, kept = came.isfinite(), stored.isfinite()
        present = finite & (came != 0)
        self.count += came.numel()
        self.nonzero += int(present.sum())
        self.underflowed += int((present & (stored == 0)).sum())
        self.not_finite += int((~kept).sum())
        if not isinstance(self.cast.format, BlockScaled):
            beyond = (came > self.cast.format.largest) | (came < self.cast.format.lowest)
            self.saturated += int((finite & beyond).sum())
        both = finite & kept
        values, after = came[both].double(), stored[both].double()
        self.signal += float(values.square().sum())
        self.noise += float((after - values).square().sum())
        if present.any():
            powers = came[present].frexp().exponent.long() - 1  # frexp's mantissa lies in [0.5, 1)
            lowest = int(powers.min())
            for place, number in enumerate(torch.bincount(powers - lowest).tolist()):
                if number:
                    self.exponents[lowest + place] = self.exponents.get(lowest + place, 0) + number

    def row(self, step: int, layer: str, gemm: str, role: str) -> TensorRow:
        """Return all that was seen as one row."""
        lowest = min(self.exponents, default=0)
        highest = max(self.exponents, default=-1)
        return TensorRow(
            step=step,
            layer=layer,
            gemm=gemm,
            role=role,
            cast=str(self.cast),
            count=self.count,
            nonzero=self.nonzero,
            saturated=None if isinstance(self.cast.format, BlockScaled) else self.saturated,
            underflowed=self.underflowed,
            not_finite=self.not_finite,
            snr_db=10 * log10(self.signal / self.noise) if self.signal > 0 and self.noise > 0 else None,
            lowest_exponent=lowest,
            exponents=tuple(self.exponents.get(e, 0) for e in range(lowest, highest + 1)),
        )


class Profiler:
    """Collects the rows of one step; `Step.profiler` and the optimizer hold it while the step runs."""

    def __init__(self, step: int) -> None:
        self.step = step
        self._tensors: dict[tuple[str, str, str], _Seen] = {}
        self._sums: dict[tuple[str, str, str, int, bool], Counters] = {}
        self._uncounted: dict[str, str] = {}
        self._updates: list[UpdateRow] = []
        self._gradients: list[GradientRow] = []

    def cast(self, came: Tensor, stored: Tensor, cast: Cast, layer: str, gemm: str, role: str) -> None:
        """Note a tensor before and after its cast."""
        key = (layer, gemm or _NO_GEMM.get(role, "forward"), role)
        self._tensors.setdefault(key, _Seen(cast)).add(came.detach(), stored.detach())

    def sums(
        self, a: Tensor, b: Tensor, mac: MacSpec, site: Site, gemm: str, stream: int = 0,
        formats: tuple[Any, Any] = (None, None), k_positions: Any = None,
    ) -> None:  # fmt: skip
        """Note what the accumulators of a @ b do, on a sample of the rows; float32 in BLAS's order is not counted."""
        if isinstance(mac.order, Native):
            return
        counters = Counters()
        try:
            site.step.auditor.run(
                kernels.matmul, a.detach(), b.detach(), mac, stream=stream, counters=counters, formats=formats,
                k_positions=k_positions,
            )  # fmt: skip
        except UnsupportedError:
            self._uncounted[f"{site.layer} {gemm}"] = str(mac)
            return
        key = (site.layer, gemm, str(mac), int(a.shape[-1]), mac.rounding.stochastic)
        found = self._sums.setdefault(key, Counters())
        for name, value in vars(counters).items():
            setattr(found, name, getattr(found, name) + value)

    def update(
        self, parameter: str, before: Tensor, step: Tensor, after: Tensor, cast: Cast | None, kept: bool
    ) -> None:
        """Note how many elements an update that was to change them left as they were; `kept` with compensation."""
        moved = step != 0
        self._updates.append(
            UpdateRow(
                step=self.step,
                parameter=parameter,
                cast="float32" if cast is None else str(cast),
                updates=int(moved.sum()),
                lost=int((moved & (before == after)).sum()),
                compensated=kept,
            )
        )

    def gradients(self, ours: dict[str, Tensor], reference: dict[str, Tensor]) -> None:
        """Note our weight gradients beside those of float32, by parameter; both carry the same loss scale."""
        layers: dict[str, list[str]] = {}
        for name in ours:
            if name in reference:
                layers.setdefault(name.rpartition(".")[0], []).append(name)
        layers[""] = [name for names in layers.values() for name in names]  # a root parameter's layer has no name too
        for layer, names in layers.items():
            if not names:
                continue
            mine = torch.cat([ours[name].detach().double().flatten() for name in names])
            theirs = torch.cat([reference[name].detach().double().flatten() for name in names])
            size, other, both = float(mine.norm()), float(theirs.norm()), float(mine @ theirs)
            known = 0 < size < float("inf") and 0 < other < float("inf")
            ratio = size / other if 0 < other < float("inf") and size < float("inf") else None
            cosine = min(1.0, max(-1.0, both / (size * other))) if known else None
            self._gradients.append(GradientRow(step=self.step, layer=layer, cosine=cosine, norm_ratio=ratio))

    def profile(self) -> Profile:
        """Return what this step left behind."""
        return Profile(
            steps=(self.step,),
            tensors=tuple(seen.row(self.step, *place) for place, seen in self._tensors.items()),
            sums=tuple(
                SumRow(
                    step=self.step,
                    layer=layer,
                    gemm=gemm,
                    mac=mac,
                    length=length,
                    terms=found.terms,
                    swamped=found.swamped_stochastic if stochastic else found.swamped,
                    overflowed=found.overflowed,
                    stochastic=stochastic,
                )
                for (layer, gemm, mac, length, stochastic), found in self._sums.items()
            ),
            updates=tuple(self._updates),
            gradients=tuple(self._gradients),
            uncounted=dict(self._uncounted),
        )


class Comparison:
    """The same step in float32: made before the step, which leaves its marks on the model; run after it.

    Buffers of the model (running statistics), its gradients and torch's random state are left as the step left them.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        self._random = torch.get_rng_state()

    def run(self, backward: Callable[[], float]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Call `backward`, which fills the gradients; return what they held before, and what it put there."""
        ours = self._take_gradients()
        after = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        self._put_buffers(self._buffers)
        with torch.random.fork_rng(devices=sorted({p.device for p in self.model.parameters() if p.is_cuda}, key=str)):
            torch.set_rng_state(self._random)
            backward()
        reference = self._take_gradients()
        self._put_buffers(after)
        for name, parameter in self.model.named_parameters():
            parameter.grad = ours.get(name)
        return ours, reference

    def _take_gradients(self) -> dict[str, Tensor]:
        taken = {name: p.grad for name, p in self.model.named_parameters() if p.grad is not None}
        for parameter in self.model.parameters():
            parameter.grad = None
        return taken

    def _put_buffers(self, values: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, buffer in self.model.named_buffers():
                buffer.copy_(values[name])
