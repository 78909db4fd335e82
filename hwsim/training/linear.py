"""The linear layer: three GEMMs, each with its own casts and sum, and top-k between them in the backward pass."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from hwsim.arithmetic.mac import Exact, Native, Sequential
from hwsim.arithmetic.number import BlockScaled
from hwsim.errors import UnsupportedError
from hwsim.training.gemm import multiply, read, read_along, same_reading, store
from hwsim.training.native import (
    bias_gradient,
    is_native,
    native_gradients,
    small_layer_gradients,
    unwatched_gradients,
)
from hwsim.training.selection import KeptRows, thin
from hwsim.training.step import Site

NEARLY_ALL = 0.5  # of the columns: from there on, gathering costs more than the products that it saves


class Linear(torch.autograd.Function):
    """y = x Wᵀ + b for a matrix x (rows x in), W (out x in), b (out)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, site: Site, gates: int) -> Tensor:
        """Compute the output GEMM; its columns are those of `gates` gates side by side (1: not a recurrent layer)."""
        if site.precision.plain_output and site.precision.plain_gradients:  # the rest of this, without its questions
            ctx.save_for_backward(x, weight)
            ctx.call = site, True, True, site.step.recorder, gates
            y = site.step.auditor.run(torch.mm, x, weight.t())
            return y if bias is None else y.add_(bias)
        x_read, weight_read = read(x, site, "input", "output"), read(weight, site, "weight", "output")
        y = multiply(x_read, weight_read.t(), site, "output", bias)
        keep_x = same_reading(site, "input", "output", "grad_weight")
        keep_weight = same_reading(site, "weight", "output", "grad_input")
        ctx.save_for_backward(x_read if keep_x else x, weight_read if keep_weight else weight)
        ctx.call = site, keep_x, keep_weight, site.step.recorder, gates
        return store(y, site, "activation", "output", site.precision.mac("output"))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Compute grad_input and grad_weight, from the kept slices only where there is sparse backprop."""
        refuse_double_backward()
        site, x_is_read, weight_is_read, recorder, gates = ctx.call
        x, weight = ctx.saved_tensors
        gradient = gradients[0].contiguous()
        unwatched = recorder is None and is_native(gradient, site)
        if unwatched:
            whole = small_layer_gradients(gradient, x, weight, site, gates, ctx.needs_input_grad)
            if whole is not None:
                return *whole, None, None
        bias = None
        if ctx.needs_input_grad[2]:  # from the full gradient, in both code bases of meProp
            bias = store(bias_gradient(gradient, weight, site, gates), site, "weight_gradient", "reduce")
        if unwatched:
            found = unwatched_gradients(gradient, x, weight, site, gates, ctx.needs_input_grad)
            if found is not None:
                return *found, bias, None, None
        gradient, kept = thin(gradient, site, gates)
        if recorder is not None:
            recorder.backward(site, gradient, kept, ctx.needs_input_grad)
        if is_native(gradient, site):
            found = native_gradients(gradient, x, weight, kept, site, ctx.needs_input_grad)
            return *found, bias, None, None
        if kept is not None and kept.rank_over == "example":
            gradient = kept.mask(gradient)
            if covers_nearly_all(kept, site):
                kept = None
        x_gradient = weight_gradient = None
        if ctx.needs_input_grad[0]:
            x_gradient = grad_input(gradient, weight, weight_is_read, kept, site)
        if ctx.needs_input_grad[1]:
            weight_gradient = grad_weight(gradient, x, x_is_read, kept, site)
        return x_gradient, weight_gradient, bias, None, None


def grad_input(gradient: Tensor, weight: Tensor, is_read: bool, kept: KeptRows | None, site: Site) -> Tensor:
    """Return dL/dx = g W (rows x in), reduced over the kept outputs only."""
    if kept is not None and kept.rank_over == "example" and not skips_zeros(site):
        return grad_input_by_row(gradient, weight, is_read, kept, site)
    if kept is not None:
        gradient, weight = kept_columns(gradient, kept), weight[kept.columns]
    g = read(gradient, site, "gradient", "grad_input")
    w = weight if is_read else read_along(weight, 0, site, "weight", "grad_input")
    positions = None if kept is None else kept.columns
    product = multiply(g, w, site, "grad_input", k_positions=positions)
    return store(product, site, "activation_gradient", "grad_input", site.precision.mac("grad_input"))


def grad_input_by_row(gradient: Tensor, weight: Tensor, is_read: bool, kept: KeptRows, site: Site) -> Tensor:
    """Return dL/dx row by row, each from its own gathered columns.

    For sums and blocks that depend on positions: they are those of the gathered operands (definitions A7).
    """
    assert kept.offsets is not None
    rows = []
    for row in range(kept.rows):
        columns = torch.from_numpy(kept.indices[kept.offsets[row] : kept.offsets[row + 1]]).long().to(weight.device)
        g = read(gradient[row : row + 1, columns], site, "gradient", "grad_input")
        w = weight[columns] if is_read else read_along(weight[columns], 0, site, "weight", "grad_input")
        rows.append(multiply(g, w, site, "grad_input", k_positions=columns))
    return store(torch.cat(rows), site, "activation_gradient", "grad_input", site.precision.mac("grad_input"))


def grad_weight(gradient: Tensor, x: Tensor, is_read: bool, kept: KeptRows | None, site: Site) -> Tensor:
    """Return dL/dW = gᵀ x (out x in); rows of outputs that nobody kept are 0."""
    compact = gradient if kept is None else kept_columns(gradient, kept)
    g = read_along(compact, 0, site, "gradient", "grad_weight")
    rows = x if is_read else read_along(x, 0, site, "input", "grad_weight")
    mac = site.precision.mac("grad_weight")
    product = store(multiply(g.t(), rows, site, "grad_weight"), site, "weight_gradient", "grad_weight", mac)
    if kept is None:
        return product
    return scatter_rows(product, kept)


def kept_columns(gradient: Tensor, kept: KeptRows) -> Tensor:
    """Return the kept columns side by side; by example the gradient has 0 already where a row kept nothing."""
    return gradient[:, kept.columns]


def scatter_rows(compact: Tensor, kept: KeptRows) -> Tensor:
    """Return a matrix with the compact one's rows at the kept positions, and 0 elsewhere.

    On the CPU the zeros come from the system as untouched pages: filling them would take longer than the products.
    """
    shape = (kept.extent, compact.shape[1])
    if compact.device.type == "cpu":
        whole = torch.from_numpy(np.zeros(shape, np.float32))
    else:
        whole = torch.zeros(shape, device=compact.device)
    return whole.index_copy_(0, kept.columns, compact)


def covers_nearly_all(kept: KeptRows, site: Site) -> bool:
    """Return whether multiplying the whole masked gradient is faster than gathering what some row kept.

    Only for sums in no promised order: an order that we define is that of the gathered operands (definitions A7).
    """
    orders = [site.precision.mac(gemm).order for gemm in ("grad_input", "grad_weight")]
    casts = [site.precision.cast("gradient", gemm) for gemm in ("grad_input", "grad_weight")]
    free = all(isinstance(order, Native) for order in orders) and not any(casts)
    return free and len(kept.columns) > NEARLY_ALL * kept.extent


def skips_zeros(site: Site) -> bool:
    """Return whether zeros between the kept elements leave grad_input's result as it is.

    So that all rows can be multiplied at once, over the columns that at least one row kept.
    """
    order = site.precision.mac("grad_input").order
    cast = site.precision.cast("gradient", "grad_input")
    in_blocks = site.precision.tiled or (cast is not None and isinstance(cast.format, BlockScaled))
    return isinstance(order, Sequential | Exact | Native) and not in_blocks


def refuse_double_backward() -> None:
    """Raise UnsupportedError inside a backward pass that is itself to be differentiated."""
    if torch.is_grad_enabled():
        raise UnsupportedError(
            "double backward (create_graph=True) under emulation: hwsim defines the arithmetic of a first backward "
            "pass only"
        )


def linear(site: Site, input: Tensor, weight: Tensor, bias: Tensor | None = None, gates: int = 1) -> Tensor:
    """Emulate `torch.nn.functional.linear`: leading axes of the input are rows of one GEMM.

    `gates`: how many gates of a recurrent layer stand side by side in the output; top-k may rank each by itself.
    """
    site.step.output_layer = site.layer
    rows = input if input.ndim == 2 else input.reshape(-1, input.shape[-1])
    y = Linear.apply(rows, weight, bias, site, gates)
    if input.ndim != 2:
        y = y.reshape(*input.shape[:-1], len(weight))
    if site.step.recorder is not None:
        site.step.recorder.gemm(site, (input, weight, bias), y, (len(rows), len(weight), rows.shape[1]))
    return y
