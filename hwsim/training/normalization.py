"""Normalizations whose means and variances are the plan's `statistics`, forward and backward.

Over the n elements x of one group, each value computed in float64 from the stored values before it and rounded once:

    mean = statistics(sum x / n)      variance = statistics(sum (x - mean)^2 / n)
    scale = statistics(1 / sqrt(variance + eps))      y = (x - mean) scale, in float32
    a = statistics(sum g / n)         b = statistics(sum g y / n)      dL/dx = scale (g - a - y b), in float32

Sums are by `reduce`, elements in the order of memory, of float32 squares and products. Running averages are one
expression, stored as `statistics`. Weights and biases multiply and add in one float32 expression; their gradients are
sums by `reduce`, stored as `weight_gradient`.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import Tensor

from hwsim.errors import UnsupportedError
from hwsim.training.gemm import store
from hwsim.training.linear import refuse_double_backward
from hwsim.training.step import Site
from hwsim.training.sums import rounded, sum_last


def _statistic(x: Tensor, site: Site, stage: str) -> Tensor:
    """Return float64 values as stored statistics, in float64 again."""
    return rounded(x, site.precision.cast("statistics"), site, "statistics", stage).double()


def _mean(x: Tensor, site: Site, stage: str) -> Tensor:
    """Return the mean over the last axis (kept) of float64 values whose float32 roundings are added up."""
    return _statistic(sum_last(x.float(), site, stage).double() / x.shape[-1], site, stage)


class Normalize(torch.autograd.Function):
    """Each row of x (groups, n) less its mean, divided by its standard deviation."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, eps: float, centered: bool, known: tuple[Tensor, Tensor] | None, site: Site
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return y, the means and the variances; `known` (groups,) are taken instead of those of x."""
        wide = x.double()
        if known is not None:
            mean, variance = (k.double().unsqueeze(-1) for k in known)
        else:
            mean = _mean(wide, site, "mean") if centered else torch.zeros_like(wide[:, :1])
            variance = _mean((wide - mean).square(), site, "variance")
        scale = _statistic((variance + eps).rsqrt(), site, "scale")
        y = ((wide - mean) * scale).float()
        ctx.save_for_backward(y, scale)
        ctx.site, ctx.centered, ctx.known = site, centered, known is not None
        statistics = mean.float().squeeze(-1), variance.float().squeeze(-1)
        ctx.mark_non_differentiable(*statistics)
        return y, *statistics

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient at x."""
        refuse_double_backward()
        (y, scale), site, g = ctx.saved_tensors, ctx.site, gradients[0].double()
        if not ctx.known:
            along = _mean(g * y, site, "grad_variance")
            g = (g - _mean(g, site, "grad_mean") if ctx.centered else g) - y.double() * along
        return (g * scale).float(), None, None, None, None


class Affine(torch.autograd.Function):
    """y w + b for y (channels, n): one float32 expression."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, weight: Tensor | None, bias: Tensor | None, site: Site) -> Tensor:
        """Scale and shift each row."""
        ctx.save_for_backward(y, weight)
        ctx.site = site
        result = y.double() if weight is None else y.double() * weight.double().unsqueeze(-1)
        return (result if bias is None else result + bias.double().unsqueeze(-1)).float()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of y, weight and bias."""
        refuse_double_backward()
        (y, weight), site, g = ctx.saved_tensors, ctx.site, gradients[0]
        at_y = g if weight is None else g * weight.unsqueeze(-1)
        at_weight = at_bias = None
        if ctx.needs_input_grad[1]:
            at_weight = store(sum_last(g * y, site, "grad_weight").squeeze(-1), site.part("weight"), "weight_gradient")
        if ctx.needs_input_grad[2]:
            total = sum_last(g, site, "grad_bias").squeeze(-1)
            at_bias = store(total, site.part("bias"), "weight_gradient", "reduce")
        return at_y, at_weight, at_bias, None


def batch_norm(
    site: Site, input: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None = None,
    bias: Tensor | None = None, training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    """Emulate `torch.nn.functional.batch_norm`: a group is a channel."""
    channels_first = input.transpose(0, 1)
    rows = channels_first.reshape(input.shape[1], -1)
    known = None
    if not training:
        assert running_mean is not None and running_var is not None  # torch refuses it before us
        known = running_mean, running_var
    y, mean, variance = Normalize.apply(rows, eps, True, known, site)
    if training and running_mean is not None and running_var is not None:
        unbiased = variance.double() * (rows.shape[1] / (rows.shape[1] - 1))
        for name, running, new in (("mean", running_mean, mean), ("variance", running_var, unbiased)):
            moved = (1 - momentum) * running.double() + momentum * new.double()
            running.copy_(_statistic(moved, site, f"running_{name}"))
    return Affine.apply(y, weight, bias, site).reshape(channels_first.shape).transpose(0, 1)


def layer_norm(
    site: Site, input: Tensor, normalized_shape: Any, weight: Tensor | None = None, bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    """Emulate `torch.nn.functional.layer_norm`: a group is an example's last axes."""
    return _by_element(site, input, tuple(normalized_shape), weight, bias, eps, True)


def rms_norm(
    site: Site, input: Tensor, normalized_shape: Any, weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    """Emulate `torch.nn.functional.rms_norm`: the mean of squares alone."""
    given = torch.finfo(input.dtype).eps if eps is None else eps
    return _by_element(site, input, tuple(normalized_shape), weight, None, given, False)


def group_norm(
    site: Site, input: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    """Emulate `torch.nn.functional.group_norm`: a group is some channels of an example."""
    y, _, _ = Normalize.apply(input.reshape(len(input) * num_groups, -1), eps, True, None, site)
    channels_first = y.reshape(input.shape).transpose(0, 1)
    rows = channels_first.reshape(input.shape[1], -1)
    return Affine.apply(rows, weight, bias, site).reshape(channels_first.shape).transpose(0, 1)


def instance_norm(
    site: Site, input: Tensor, running_mean: Tensor | None = None, running_var: Tensor | None = None,
    weight: Tensor | None = None, bias: Tensor | None = None, use_input_stats: bool = True, momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    """Emulate `torch.nn.functional.instance_norm` without running statistics: a group is a channel of an example."""
    if running_mean is not None or not use_input_stats:
        raise UnsupportedError(f"layer {site.layer!r}: instance_norm with running statistics is not emulated")
    return group_norm(site, input, input.shape[1], weight, bias, eps)


def _by_element(
    site: Site, x: Tensor, shape: tuple[int, ...], weight: Tensor | None, bias: Tensor | None, eps: float,
    centered: bool,
) -> Tensor:  # fmt: skip
    """Normalize each example's last axes, `shape`; every position there has a weight and bias of its own."""
    y, _, _ = Normalize.apply(x.reshape(-1, prod(shape)), eps, centered, None, site)
    flat = (None if p is None else p.reshape(-1) for p in (weight, bias))
    return Affine.apply(y.t(), *flat, site).t().reshape(x.shape)


EMULATED: dict[str, Callable[..., Tensor]] = {
    "batch_norm": batch_norm,
    "layer_norm": layer_norm,
    "rms_norm": rms_norm,
    "group_norm": group_norm,
    "instance_norm": instance_norm,
}
