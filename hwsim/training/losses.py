"""Losses that compare two tensors element by element, in the plan's `loss` formats, forward and backward.

With x an input, t its target and w its weight, each value is computed in float64 from the stored values before it:

    term = w f(x, t), rounded to float32      loss = loss(sum of terms by `reduce`, in memory order / their weight)
    gradient = gradient(w f'(x, t) g)         g: what arrives, divided by the same weight; negated at t

    mse_loss (x - t)^2         l1_loss |x - t|         smooth_l1_loss, huber_loss  a square near 0, straight beyond
    binary_cross_entropy              -t logarithm(log x) - (1 - t) logarithm(log(1 - x)), logarithms from -100 up
    binary_cross_entropy_with_logits  the same of sigmoid(x); f' = p - t with p = probability(sigmoid(x))
    kl_div                            t (logarithm(log t) - x), or p (t - x) with p = probability(exp(t)); f' = -t or -p

The casts are named as those of `softmax`. Reduction ``none`` stores each term as `loss`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hwsim.errors import SpecError, UnsupportedError
from hwsim.training.linear import refuse_double_backward
from hwsim.training.softmax import EMULATED as BY_CLASS
from hwsim.training.softmax import refuse_old, refuse_target_gradient, value
from hwsim.training.step import Site
from hwsim.training.sums import rounded, sum_last

LEAST_LOGARITHM = -100.0  # torch's own floor, below which the logarithm of a probability does not go
LEAST_VARIANCE = 1e-12  # of p (1 - p) in the gradient of binary_cross_entropy; torch's too


class _Compared(torch.autograd.Function):
    """The loss of terms that are worked out already; `slope` is what a term gains by a unit of its input."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, t: Tensor, term: Tensor, slope: Tensor, weight: Tensor | None, site: Site
    ) -> Tensor:
        """Return the loss; `weight` divides the sum over terms, and None keeps them apart. All but x, t are float64."""
        ctx.save_for_backward(slope)
        ctx.weight, ctx.site = weight, site
        if weight is not None:
            flat = term.float().reshape(-1)  # one sum, in the order of memory
            term = sum_last(flat, site, "loss").squeeze(-1).double() / weight
        return rounded(term, site.precision.cast("loss"), site, "", "loss")

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients at the input and at the target."""
        refuse_double_backward()
        (slope,), site = ctx.saved_tensors, ctx.site
        arrives = gradients[0].double() if ctx.weight is None else gradients[0].double() / ctx.weight
        at_input, at_target = ctx.needs_input_grad[:2]
        x = value(slope * arrives, site, "gradient") if at_input else None
        t = rounded(-slope * arrives, site.precision.cast("gradient", "loss"), site, "loss", "target_gradient")
        return x, t if at_target else None, None, None, None, None


def mse_loss(
    site: Site, input: Tensor, target: Tensor, size_average: Any = None, reduce: Any = None, reduction: str = "mean",
    weight: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Emulate `torch.nn.functional.mse_loss`."""
    refuse_old(site, size_average, reduce)
    return _of_distance(site, _square, input, target, reduction, weight)


def l1_loss(
    site: Site, input: Tensor, target: Tensor, size_average: Any = None, reduce: Any = None, reduction: str = "mean",
    weight: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Emulate `torch.nn.functional.l1_loss`."""
    refuse_old(site, size_average, reduce)
    return _of_distance(site, _magnitude, input, target, reduction, weight)


def smooth_l1_loss(
    site: Site, input: Tensor, target: Tensor, size_average: Any = None, reduce: Any = None, reduction: str = "mean",
    beta: float = 1.0,
) -> Tensor:  # fmt: skip
    """Emulate `torch.nn.functional.smooth_l1_loss`."""
    refuse_old(site, size_average, reduce)
    return _of_distance(site, partial(_smooth, beta) if beta else _magnitude, input, target, reduction, None)


def huber_loss(
    site: Site, input: Tensor, target: Tensor, reduction: str = "mean", delta: float = 1.0, weight: Tensor | None = None
) -> Tensor:
    """Emulate `torch.nn.functional.huber_loss`, whose mean divides by the number of terms, weighted or not."""
    return _of_distance(site, partial(_huber, delta), input, target, reduction, weight, mean_of_weights=False)


def _square(d: Tensor) -> tuple[Tensor, Tensor]:
    return d * d, 2 * d


def _magnitude(d: Tensor) -> tuple[Tensor, Tensor]:
    return d.abs(), d.sign()


def _smooth(beta: float, d: Tensor) -> tuple[Tensor, Tensor]:
    near = d.abs() < beta
    return torch.where(near, 0.5 * d * d / beta, d.abs() - 0.5 * beta), torch.where(near, d / beta, d.sign())


def _huber(delta: float, d: Tensor) -> tuple[Tensor, Tensor]:
    near = d.abs() < delta
    return torch.where(near, 0.5 * d * d, delta * (d.abs() - 0.5 * delta)), torch.where(near, d, delta * d.sign())


def _of_distance(
    site: Site, function: Callable[[Tensor], tuple[Tensor, Tensor]], input: Tensor, target: Tensor, reduction: str,
    weight: Tensor | None, mean_of_weights: bool = True,
) -> Tensor:  # fmt: skip
    x, t = torch.broadcast_tensors(input, target)
    if weight is not None and weight.shape != input.shape:
        raise SpecError(f"layer {site.layer!r}: got weights {tuple(weight.shape)}, expected {tuple(input.shape)}")
    with torch.no_grad():
        term, slope = function(x.double() - t.double())
    return _reduced(site, x, t, term, slope, reduction, weight, mean_of_weights)


def binary_cross_entropy(
    site: Site, input: Tensor, target: Tensor, weight: Tensor | None = None, size_average: Any = None,
    reduce: Any = None, reduction: str = "mean",
) -> Tensor:  # fmt: skip
    """Emulate `torch.nn.functional.binary_cross_entropy`. Raises SpecError for inputs that are no probabilities."""
    refuse_old(site, size_average, reduce)
    _check_pair(site, input, target)
    with torch.no_grad():
        x, t = input.double(), target.double()
        if ((x < 0) | (x > 1)).any():
            raise SpecError(
                f"layer {site.layer!r}: binary_cross_entropy got inputs from {float(x.min()):.6g} to "
                f"{float(x.max()):.6g}, expected probabilities in [0, 1]"
            )
        yes = value(x.log().clamp_min(LEAST_LOGARITHM), site, "logarithm").double()
        no = rounded((-x).log1p().clamp_min(LEAST_LOGARITHM), *_second_logarithm(site)).double()
        slope = (x - t) / (x * (1 - x)).clamp_min(LEAST_VARIANCE)
    return _reduced(site, input, target, -(t * yes) - (1 - t) * no, slope, reduction, weight, False)


def binary_cross_entropy_with_logits(
    site: Site, input: Tensor, target: Tensor, weight: Tensor | None = None, size_average: Any = None,
    reduce: Any = None, reduction: str = "mean", pos_weight: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Emulate `torch.nn.functional.binary_cross_entropy_with_logits`."""
    refuse_old(site, size_average, reduce)
    _check_pair(site, input, target)
    with torch.no_grad():
        x, t = input.double(), target.double()
        rest = x.abs().neg().exp().log1p()
        yes = value(x.clamp_max(0) - rest, site, "logarithm").double()
        no = rounded(-x.clamp_min(0) - rest, *_second_logarithm(site)).double()
        p = value(x.sigmoid(), site, "probability").double()
        wanted = t if pos_weight is None else t * pos_weight.double()
        term, slope = -(wanted * yes) - (1 - t) * no, p * (wanted + (1 - t)) - wanted
    return _reduced(site, input, target, term, slope, reduction, weight, False)


def kl_div(
    site: Site, input: Tensor, target: Tensor, size_average: Any = None, reduce: Any = None, reduction: str = "mean",
    log_target: bool = False,
) -> Tensor:  # fmt: skip
    """Emulate `torch.nn.functional.kl_div`: logarithms as input, probabilities or their logarithms as target."""
    refuse_old(site, size_average, reduce)
    x, t = torch.broadcast_tensors(input, target)
    _check_pair(site, x, t)
    with torch.no_grad():
        if log_target:
            p, logarithm = value(t.double().exp(), site, "probability").double(), t.double()
        else:
            p = t.double()
            logarithm = value(torch.where(p == 0, 1.0, p).log(), site, "logarithm").double()
        term = torch.where(p == 0, 0.0, p * (logarithm - x.double()))
    if reduction == "batchmean":
        rows = torch.tensor(float(x.shape[0] if x.ndim else 1), dtype=torch.float64, device=x.device)
        batch: Tensor = _Compared.apply(x, t, term, -p, rows, site)
        return batch
    return _reduced(site, x, t, term, -p, reduction, None, False)


def _second_logarithm(site: Site) -> tuple[Any, ...]:
    """How log(1 - p) is stored: as log p, with random bits of its own."""
    return site.precision.cast("logarithm", "loss"), site, "loss", "logarithm_of_the_rest"


def _check_pair(site: Site, input: Tensor, target: Tensor) -> None:
    if input.shape != target.shape:
        raise SpecError(f"layer {site.layer!r}: got a target {tuple(target.shape)}, expected {tuple(input.shape)}")
    refuse_target_gradient(site, target)


def _reduced(
    site: Site, x: Tensor, t: Tensor, term: Tensor, slope: Tensor, reduction: str, weight: Tensor | None,
    mean_of_weights: bool,
) -> Tensor:  # fmt: skip
    """Return the loss of terms and slopes in float64; a mean divides by the number of terms, or by their weights."""
    if x.dtype != torch.float32:
        raise UnsupportedError(f"layer {site.layer!r}: a loss of {x.dtype}; emulation carries float32")
    if reduction not in ("none", "mean", "sum"):
        raise UnsupportedError(f"layer {site.layer!r}: got reduction {reduction!r}, expected none, mean or sum")
    divisor = torch.tensor(float(term.numel()) if reduction == "mean" else 1.0, dtype=torch.float64, device=x.device)
    if weight is not None:
        if weight.requires_grad and torch.is_grad_enabled():
            raise UnsupportedError(f"layer {site.layer!r}: the gradient at a loss's weights is not emulated")
        w = weight.double().expand_as(term)
        term, slope = w * term, w * slope
        if mean_of_weights and reduction == "mean":
            divisor = w.sum()
    result: Tensor = _Compared.apply(x, t, term, slope, None if reduction == "none" else divisor, site)
    return result


EMULATED: dict[str, Callable[..., Tensor]] = BY_CLASS | {
    "mse_loss": mse_loss,
    "l1_loss": l1_loss,
    "smooth_l1_loss": smooth_l1_loss,
    "huber_loss": huber_loss,
    "binary_cross_entropy": binary_cross_entropy,
    "binary_cross_entropy_with_logits": binary_cross_entropy_with_logits,
    "kl_div": kl_div,
}
