"""Softmax and cross-entropy in the plan's `loss` formats, forward and backward.

With z a row of scores, each value below is computed in float64 from the stored values before it and rounded once:

    e_i = exponential(exp(z_i - max z))        s = sum of e by `reduce`, classes in ascending order
    p_i = probability(e_i / s)                 l_i = logarithm(z_i - max z - log s)
    loss of a row = -l_y                       loss = loss(sum of rows by `reduce` / their weight)
    gradient_i = gradient((p_i - [i = y]) g)   g: what arrives, divided by the same weight

`exponential`, `probability`, `logarithm` and `gradient` are the casts ``loss.exponential`` and so on of the plan, each
the plan's `loss` unless it is named. They take the place of `activation` and `activation_gradient` here. A rule that
names only `reduce` leaves the values in float32 and takes the sums as it says.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from hwsim.errors import UnsupportedError
from hwsim.training.linear import refuse_double_backward
from hwsim.training.step import Site
from hwsim.training.sums import rounded, sum_last


def value(x: Tensor, site: Site, part: str) -> Tensor:
    """Return float64 values rounded once, as the plan stores this part of a loss."""
    return rounded(x, site.precision.cast(part, "loss"), site, "loss", part)


def _normalized(z: Tensor, site: Site) -> tuple[Tensor, Tensor, Tensor]:
    """Return z - max z and e, both in float64, and s (..., 1) in float64."""
    shifted = z.double()
    shifted = shifted - shifted.amax(-1, keepdim=True)
    e = value(shifted.exp(), site, "exponential")
    return shifted, e.double(), sum_last(e, site, "softmax").double()


class Softmax(torch.autograd.Function):
    """p of the scores along the last axis."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, site: Site) -> Tensor:
        """Return the probabilities as stored."""
        _, e, s = _normalized(z, site)
        p = value(e / s, site, "probability")
        ctx.save_for_backward(p)
        ctx.site = site
        return p

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return p (g - sum of p g); the products are float32."""
        refuse_double_backward()
        (p,), g, site = ctx.saved_tensors, gradients[0], ctx.site
        inner = sum_last(p * g, site, "softmax_backward").double()
        return value(p.double() * (g.double() - inner), site, "gradient"), None


class LogSoftmax(torch.autograd.Function):
    """l of the scores along the last axis."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, site: Site) -> Tensor:
        """Return the logarithms as stored."""
        shifted, e, s = _normalized(z, site)
        ctx.save_for_backward(value(e / s, site, "probability"))
        ctx.site = site
        return value(shifted - s.log(), site, "logarithm")

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return g - p sum of g."""
        refuse_double_backward()
        (p,), g, site = ctx.saved_tensors, gradients[0], ctx.site
        total = sum_last(g, site, "softmax_backward").double()
        return value(g.double() - p.double() * total, site, "gradient"), None


class NegativeLogLikelihood(torch.autograd.Function):
    """The loss of rows of logarithms (rows, classes) for target weights of that shape (float64), summed as asked."""

    @staticmethod
    def forward(ctx: Any, l: Tensor, wanted: Tensor, weight: Tensor | None, site: Site) -> Tensor:  # noqa: E741
        """Return the loss; `weight` divides the sum over rows, and None keeps the rows apart."""
        ctx.save_for_backward(wanted)
        ctx.site, ctx.weight = site, weight
        return _loss(l, wanted, weight, site)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient at the logarithms."""
        refuse_double_backward()
        (wanted,), site = ctx.saved_tensors, ctx.site
        return value(-wanted * _per_row(gradients[0], ctx.weight), site, "gradient"), None, None, None


class CrossEntropy(torch.autograd.Function):
    """Softmax and its loss at once: the gradient at the scores is rounded once."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, wanted: Tensor, weight: Tensor | None, site: Site) -> Tensor:
        """Return the loss; arguments as in NegativeLogLikelihood, scores in place of logarithms."""
        shifted, e, s = _normalized(z, site)
        ctx.save_for_backward(value(e / s, site, "probability"), wanted)
        ctx.site, ctx.weight = site, weight
        return _loss(value(shifted - s.log(), site, "logarithm"), wanted, weight, site)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient at the scores."""
        refuse_double_backward()
        (p, wanted), site = ctx.saved_tensors, ctx.site
        at_row = p.double() * wanted.sum(-1, keepdim=True) - wanted
        return value(at_row * _per_row(gradients[0], ctx.weight), site, "gradient"), None, None, None


def _loss(l: Tensor, wanted: Tensor, weight: Tensor | None, site: Site) -> Tensor:  # noqa: E741
    """Return -sum of wanted * l, by rows or divided by `weight`; terms that are not wanted do not exist."""
    terms = torch.where(wanted != 0, -wanted * l.double(), 0.0).float()
    rows = terms.sum(-1) if _one_target(wanted) else sum_last(terms, site, "row").squeeze(-1)
    if weight is None:
        return rounded(rows.double(), site.precision.cast("loss"), site, "", "loss")
    total = sum_last(rows, site, "loss").squeeze(-1).double()
    return rounded(total / weight, site.precision.cast("loss"), site, "", "loss")


def _one_target(wanted: Tensor) -> bool:
    """Return whether each row wants one class at most, so that there is nothing to add up."""
    return bool(((wanted != 0).sum(-1) <= 1).all())


def _per_row(gradient: Tensor, weight: Tensor | None) -> Tensor:
    """Return what arrives at each row, as float64 that broadcasts against (rows, classes)."""
    return gradient.double().unsqueeze(-1) if weight is None else gradient.double() / weight


def softmax(site: Site, input: Tensor, dim: int | None = None, *rest: Any, **named: Any) -> Tensor:
    """Emulate `torch.softmax` and `torch.nn.functional.softmax`."""
    return _along(Softmax, site, input, dim, rest, named)


def softmin(site: Site, input: Tensor, dim: int | None = None, *rest: Any, **named: Any) -> Tensor:
    """Emulate `torch.nn.functional.softmin`."""
    return _along(Softmax, site, -input, dim, rest, named)


def log_softmax(site: Site, input: Tensor, dim: int | None = None, *rest: Any, **named: Any) -> Tensor:
    """Emulate `torch.log_softmax` and `torch.nn.functional.log_softmax`."""
    return _along(LogSoftmax, site, input, dim, rest, named)


def _along(
    function: Any, site: Site, x: Tensor, dim: int | None, rest: tuple[Any, ...], named: dict[str, Any]
) -> Tensor:
    given = next((r for r in (*rest, *named.values()) if isinstance(r, torch.dtype)), None)
    if given not in (None, torch.float32) or x.dtype != torch.float32:
        raise UnsupportedError(f"layer {site.layer!r}: softmax of {given or x.dtype}; emulation carries float32")
    if dim is None:  # torch's own choice
        dim = 0 if x.ndim in (0, 1, 3) else 1
    if x.ndim == 0:
        return _along(function, site, x.reshape(1), 0, (), {}).reshape(())
    y: Tensor = function.apply(x.movedim(dim, -1), site)
    return y.movedim(-1, dim)


def nll_loss(
    site: Site, input: Tensor, target: Tensor, weight: Tensor | None = None, size_average: Any = None,
    ignore_index: int = -100, reduce: Any = None, reduction: str = "mean",
) -> Tensor:  # fmt: skip
    """Emulate `torch.nn.functional.nll_loss`."""
    refuse_old(site, size_average, reduce)
    rows, shape = _rows(input)
    wanted, total = _wanted(target.reshape(-1), rows, weight, ignore_index, 0.0)
    return _reduced(NegativeLogLikelihood, site, rows, wanted, total, reduction, shape)


def cross_entropy(
    site: Site, input: Tensor, target: Tensor, weight: Tensor | None = None, size_average: Any = None,
    ignore_index: int = -100, reduce: Any = None, reduction: str = "mean", label_smoothing: float = 0.0,
) -> Tensor:  # fmt: skip
    """Emulate `torch.nn.functional.cross_entropy`: class numbers or probabilities as targets, weights, smoothing."""
    refuse_old(site, size_average, reduce)
    refuse_target_gradient(site, target)
    rows, shape = _rows(input)
    given = target.reshape(-1) if not target.is_floating_point() else _rows(target)[0]
    wanted, total = _wanted(given, rows, weight, ignore_index, label_smoothing)
    return _reduced(CrossEntropy, site, rows, wanted, total, reduction, shape)


def _rows(x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """Return (batch, classes, ...) or (classes,) as (rows, classes), and the shape of the rows."""
    x = x if x.ndim == 1 else x.movedim(1, -1)
    return x.reshape(-1, x.shape[-1]), tuple(x.shape[:-1])


def _wanted(
    target: Tensor, rows: Tensor, weight: Tensor | None, ignore_index: int, smoothing: float
) -> tuple[Tensor, Tensor]:
    """Return the weight of each class in each row's loss, in float64, and what a mean divides by.

    As torch defines it: class weights times the target, smoothed towards the uniform distribution; a mean over class
    numbers divides by the weights of the targets, one over probabilities by the number of rows.
    """
    classes = rows.shape[-1]
    by_class = torch.ones(classes, dtype=torch.float64, device=rows.device) if weight is None else weight.double()
    if target.is_floating_point():
        wanted, total = target.double(), torch.tensor(float(len(rows)), dtype=torch.float64, device=rows.device)
        counted = None
    else:
        counted = target != ignore_index
        kept = torch.where(counted, target, 0)
        wanted = functional.one_hot(kept, classes).double()
        total = (by_class[kept] * counted).sum()
    if smoothing:
        wanted = wanted * (1 - smoothing) + smoothing / classes
    wanted = wanted * by_class
    return (wanted if counted is None else wanted * counted.unsqueeze(-1)), total


def _reduced(
    function: Any, site: Site, rows: Tensor, wanted: Tensor, total: Tensor, reduction: str, shape: tuple[int, ...]
) -> Tensor:
    if reduction == "none":
        loss: Tensor = function.apply(rows, wanted, None, site)
        return loss.reshape(shape)
    if reduction not in ("mean", "sum"):
        raise UnsupportedError(f"layer {site.layer!r}: got reduction {reduction!r}, expected none, mean or sum")
    divisor = total if reduction == "mean" else torch.ones_like(total)
    result: Tensor = function.apply(rows, wanted, divisor, site)
    return result


def refuse_old(site: Site, size_average: Any, reduce: Any) -> None:
    """Raise UnsupportedError for the two arguments that `reduction` has replaced in torch."""
    if size_average is not None or reduce is not None:
        raise UnsupportedError(f"layer {site.layer!r}: size_average and reduce are not emulated; use reduction")


def refuse_target_gradient(site: Site, target: Tensor) -> None:
    """Raise UnsupportedError for a target of probabilities that wants a gradient."""
    if target.requires_grad and torch.is_grad_enabled():
        raise UnsupportedError(
            f"layer {site.layer!r}: the gradient at a target that holds probabilities is not emulated; detach it"
        )


EMULATED: dict[str, Callable[..., Tensor]] = {
    "softmax": softmax,
    "softmin": softmin,
    "log_softmax": log_softmax,
    "nll_loss": nll_loss,
    "cross_entropy": cross_entropy,
}
