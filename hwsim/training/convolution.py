"""Convolutions as the GEMMs of their im2col form (definitions A8), with top-k on the gradient of their output.

k runs over (c, kh, kw) for output, (c_out, kh, kw) for grad_input and (n, oh, ow) for grad_weight; padded zeros, and
the zeros between the gradients of a strided convolution, take positions. Groups are separate GEMMs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.grad import conv2d_input, conv2d_weight

from hwsim import kernels
from hwsim.arithmetic.mac import Native
from hwsim.arithmetic.number import BlockScaled
from hwsim.errors import UnsupportedError
from hwsim.training.conv_selection import ThinnedMaps, thin_maps
from hwsim.training.convolution_sums import note_grad_input, note_grad_weight, note_output
from hwsim.training.gemm import add_bias, is_random, multiply, read, read_along, same_reading, store, sum_rows
from hwsim.training.linear import refuse_double_backward
from hwsim.training.step import Site
from hwsim.workload import ConvGeometry

Pair = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Window:
    """How a convolution's window moves; pairs are (height, width)."""

    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int


class Convolution(torch.autograd.Function):
    """y = conv2d(x, W) + b for x (n, c, h, w), W (c_out, c / groups, kh, kw), b (c_out)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, window: Window, site: Site) -> Tensor:
        """Compute the output GEMMs."""
        y, x_read, weight_read = output(x, weight, bias, window, site)
        keep_x = same_reading(site, "input", "output", "grad_weight")
        keep_weight = same_reading(site, "weight", "output", "grad_input")
        ctx.save_for_backward(x_read if keep_x else x, weight_read if keep_weight else weight)
        ctx.site, ctx.window, ctx.read, ctx.recorder = site, window, (keep_x, keep_weight), site.step.recorder
        return store(y, site, "activation", "output", site.precision.mac("output"))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Compute grad_input and grad_weight, from what top-k kept where there is sparse backprop."""
        refuse_double_backward()
        site, window, (x_is_read, weight_is_read) = ctx.site, ctx.window, ctx.read
        x, weight = ctx.saved_tensors
        gradient = gradients[0].contiguous()
        bias_gradient = None
        if ctx.needs_input_grad[2]:
            rows = gradient.permute(0, 2, 3, 1).reshape(-1, gradient.shape[1])
            bias_gradient = store(sum_rows(rows, site), site, "weight_gradient", "reduce")
        thinned = thin_maps(gradient, site, window.groups)
        if ctx.recorder is not None:
            ctx.recorder.backward(site, thinned.ranked, thinned.kept, ctx.needs_input_grad)
        x_gradient = weight_gradient = None
        if ctx.needs_input_grad[0]:
            x_gradient = grad_input(thinned, weight, weight_is_read, x.shape, window, site)
        if ctx.needs_input_grad[1]:
            weight_gradient = grad_weight(thinned, x, x_is_read, weight.shape, window, site)
        return x_gradient, weight_gradient, bias_gradient, None, None


def output(x: Tensor, weight: Tensor, bias: Tensor | None, window: Window, site: Site) -> tuple[Tensor, Tensor, Tensor]:
    """Return the sums (n, c_out, oh, ow) with the bias added, and the operands as they were read."""
    gemm, blocks = "output", in_blocks(site, "input", "output")
    x_read = x if blocks else read(x, site, "input", gemm)
    kernel = weight.shape[2:]
    weight_read = read(weight.flatten(1), site, "weight", gemm)
    if isinstance(site.precision.mac(gemm).order, Native) and not blocks:
        weight_read = weight_read.reshape(weight.shape)
        options = (bias, window.stride, window.padding, window.dilation, window.groups)
        y = site.step.auditor.run(lambda a, b: functional.conv2d(a, b, *options), x_read, weight_read)
        return y, x_read, weight_read
    if not blocks and has_kernels(x):
        weight_read = weight_read.reshape(weight.shape)
        bias_read = None if bias is None else read(bias, site, "bias", gemm)
        if site.step.profiler is not None:
            note_output(x_read, weight_read, window, site)
        y = site.step.auditor.run(
            kernels.conv_output, x_read, weight_read, bias=bias_read, **settings(window, site, gemm)
        )
        return y.float(), x_read, weight_read
    columns = unfold(x_read, kernel, window)  # n, c kh kw, oh ow
    sums = []
    for w, part in zip(weight_read.chunk(window.groups), columns.chunk(window.groups, 1), strict=True):
        operand = read_along(part, 1, site, "input", gemm) if blocks else part
        sums.append(multiply(w.expand(len(x), *w.shape), operand, site, gemm, roles=("weight", "input")))
    size = output_size(x.shape, kernel, window)
    y = (sums[0] if len(sums) == 1 else torch.cat(sums, 1)).reshape(len(x), len(weight), *size)
    if bias is not None:
        y = add_bias(y, bias.reshape(1, -1, 1, 1), site)
    return y, x_read, weight_read.reshape(weight.shape)


def grad_input(
    thinned: ThinnedMaps, weight: Tensor, is_read: bool, shape: torch.Size, window: Window, site: Site
) -> Tensor:
    """Return dL/dx (n, c, h, w): the gradient, spread by the stride, under each kernel element that it came through."""
    gemm, mac = "grad_input", site.precision.mac("grad_input")
    gradient, weight = thinned.gradient, weight if thinned.channels is None else weight[thinned.channels]
    blocks = in_blocks(site, "gradient", gemm) or in_blocks(site, "weight", gemm)
    g = gradient if blocks else read(gradient, site, "gradient", gemm)
    w = weight if is_read or blocks else read(weight, site, "weight", gemm)
    if isinstance(mac.order, Native) and not blocks:
        options = (window.stride, window.padding, window.dilation, window.groups)
        product = site.step.auditor.run(lambda a, b: conv2d_input(shape, a, b, *options), w, g)
        return store(product, site, "activation_gradient", gemm, mac)
    if not blocks and has_kernels(g):
        arguments = settings(window, site, gemm)
        if site.step.profiler is not None:
            spread, turned = spread_out(g, shape, w.shape[2:], window)
            note_grad_input(spread, w, turned, site)
        product = site.step.auditor.run(kernels.conv_grad_input, g, w, tuple(shape), **arguments).float()
        return store(product, site, "activation_gradient", gemm, mac)
    spread, turned = spread_out(g, shape, w.shape[2:], window)
    columns = unfold(spread, w.shape[2:], turned).unflatten(1, (len(w), *w.shape[2:]))
    columns = columns.flip(2, 3).flatten(1, 3)  # n, c_out kh kw, h w: what kernel element (kh, kw) is multiplied with
    parts = []
    for part_weight, part in zip(w.chunk(window.groups), columns.chunk(window.groups, 1), strict=True):
        rows = part_weight.transpose(0, 1).flatten(1)  # c, c_out kh kw
        if blocks:
            rows = rows if is_read else read(rows, site, "weight", gemm)
            part = read_along(part, 1, site, "gradient", gemm)  # noqa: PLW2901
        rows = rows.contiguous().expand(shape[0], *rows.shape)
        parts.append(multiply(rows, part, site, gemm, roles=("weight", "gradient")))
    product = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
    return store(product.reshape(shape), site, "activation_gradient", gemm, mac)


def grad_weight(
    thinned: ThinnedMaps, x: Tensor, is_read: bool, shape: torch.Size, window: Window, site: Site
) -> Tensor:
    """Return dL/dW (c_out, c / groups, kh, kw); channels that nobody kept are 0."""
    gemm, mac = "grad_weight", site.precision.mac("grad_weight")
    blocks = in_blocks(site, "gradient", gemm) or in_blocks(site, "input", gemm)
    gradient = thinned.gradient
    g = gradient if blocks else read(gradient, site, "gradient", gemm)
    source = x if is_read or blocks else read(x, site, "input", gemm)
    kept_shape = torch.Size((gradient.shape[1], *shape[1:]))
    if isinstance(mac.order, Native) and not blocks:
        options = (window.stride, window.padding, window.dilation, window.groups)
        product = site.step.auditor.run(lambda a, b: conv2d_weight(a, kept_shape, b, *options), source, g)
    elif not blocks and has_kernels(g):
        arguments = settings(window, site, gemm)
        if site.step.profiler is not None:
            note_grad_weight(g, source, kept_shape, window, site)
        product = site.step.auditor.run(kernels.conv_grad_weight, g, source, tuple(kept_shape), **arguments).float()
    else:
        columns = unfold(source, shape[2:], window).transpose(1, 2).flatten(0, 1)  # n oh ow, c kh kw
        rows = g.transpose(0, 1).flatten(1)  # c_out, n oh ow
        parts = []
        for a, b in zip(rows.chunk(window.groups), columns.chunk(window.groups, 1), strict=True):
            if blocks:
                a = read(a, site, "gradient", gemm)  # noqa: PLW2901
                b = b if is_read else read_along(b, 0, site, "input", gemm)  # noqa: PLW2901
            parts.append(multiply(a, b, site, gemm))
        product = torch.cat(parts).reshape(kept_shape)
    product = store(product, site, "weight_gradient", gemm, mac)
    if thinned.channels is None:
        return product
    whole = torch.zeros(shape, dtype=product.dtype, device=product.device)
    whole[thinned.channels] = product
    return whole


def has_kernels(x: Tensor) -> bool:
    """Return whether convolution kernels work where the tensor is; if not, and for blocks, im2col is written out.

    Both give the same bits: the order of the sum is the same.
    """
    return x.device.type == "cpu"


def settings(window: Window, site: Site, gemm: str) -> dict[str, Any]:
    """Return the arguments that all three convolution kernels share."""
    mac = site.precision.mac(gemm)
    return {
        "mac": mac,
        "stride": window.stride,
        "padding": window.padding,
        "dilation": window.dilation,
        "groups": window.groups,
        "stream": site.stream(gemm, "sum") if is_random(mac) else 0,
    }


def unfold(x: Tensor, kernel: Any, window: Window) -> Tensor:
    """Return im2col: (n, c kh kw, oh ow), the values under the window at each output position."""
    return functional.unfold(x, tuple(kernel), window.dilation, window.padding, window.stride)


def spread_out(g: Tensor, shape: torch.Size, kernel: Any, window: Window) -> tuple[Tensor, Window]:
    """Return the gradient with stride - 1 zeros between its elements and padded, and the window that moves over it.

    A window moved over it with stride 1 sees, turned by 180 degrees, the gradients that an input element gets.
    """
    pads: list[int] = []
    for axis in (1, 0):  # functional.pad starts with the last axis
        reach = window.dilation[axis] * (int(kernel[axis]) - 1)
        before = reach - window.padding[axis]
        spread = (g.shape[2 + axis] - 1) * window.stride[axis] + 1
        pads += [before, shape[2 + axis] + reach - spread - before]
    size = tuple((g.shape[2 + axis] - 1) * window.stride[axis] + 1 for axis in (0, 1))
    spread_gradient = g
    if window.stride != (1, 1):
        spread_gradient = torch.zeros(*g.shape[:2], *size, dtype=g.dtype, device=g.device)
        spread_gradient[:, :, :: window.stride[0], :: window.stride[1]] = g
    return functional.pad(spread_gradient, pads), Window((1, 1), (0, 0), window.dilation, window.groups)


def in_blocks(site: Site, role: str, gemm: str) -> bool:
    """Return whether this GEMM reads an operand in a block format, whose blocks run along its reduced axis."""
    cast = site.precision.cast(role, gemm)
    return site.precision.tiled or (cast is not None and isinstance(cast.format, BlockScaled))


def output_size(shape: torch.Size, kernel: Any, window: Window) -> Pair:
    """Return height and width of a convolution's output."""
    height, width = (
        (shape[2 + axis] + 2 * window.padding[axis] - window.dilation[axis] * (int(kernel[axis]) - 1) - 1)
        // window.stride[axis]
        + 1
        for axis in (0, 1)
    )
    return height, width


def conv2d(
    site: Site,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """Emulate `torch.nn.functional.conv2d`."""
    site.step.output_layer = site.layer
    x = input if input.ndim == 4 else input.unsqueeze(0)
    dilation = _pair(dilation)
    if isinstance(padding, str):
        x, padding = _same_padding(x, weight, dilation, padding)
    window = Window(_pair(stride), _pair(padding), dilation, groups)
    y = Convolution.apply(x, weight, bias, window, site)
    if site.step.recorder is not None:
        sizes = (len(x) * y.shape[2] * y.shape[3], len(weight) // groups, weight[0].numel())
        geometry = ConvGeometry(
            len(x),
            x.shape[1] // groups,
            (x.shape[2], x.shape[3]),
            len(weight) // groups,
            (y.shape[2], y.shape[3]),
            (weight.shape[2], weight.shape[3]),
            window.stride,
            window.padding,
            window.dilation,
            groups,
        )
        site.step.recorder.gemm(site, (input, weight, bias), y, sizes, groups, geometry)
    return y if input.ndim == 4 else y.squeeze(0)


def conv1d(
    site: Site,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """Emulate `torch.nn.functional.conv1d` as a convolution over images of height 1."""
    stride, dilation = (1, _one(stride)), (1, _one(dilation))
    padding = padding if isinstance(padding, str) else (0, _one(padding))
    x, w = input.unsqueeze(-2), weight.unsqueeze(-2)
    if site.step.recorder is not None:
        site.step.recorder.alias(x, (input,))
        site.step.recorder.alias(w, (weight,))
    image = conv2d(site, x, w, bias, stride, padding, dilation, groups)
    y = image.squeeze(-2)
    if site.step.recorder is not None:
        site.step.recorder.alias(y, (image,))
    return y


def refuse(name: str, reason: str) -> Any:
    """Return a treatment that raises UnsupportedError with the reason."""

    def refused(site: Site, *args: Any, **kwargs: Any) -> Any:
        raise UnsupportedError(f"layer {site.layer!r}: {name} is not emulated: {reason}")

    return refused


def _same_padding(x: Tensor, weight: Tensor, dilation: Pair, padding: str) -> tuple[Tensor, Pair]:
    if padding == "valid":
        return x, (0, 0)
    totals = [dilation[axis] * (weight.shape[2 + axis] - 1) for axis in (0, 1)]
    if all(total % 2 == 0 for total in totals):
        return x, (totals[0] // 2, totals[1] // 2)
    top, left = totals[0] // 2, totals[1] // 2
    return functional.pad(x, (left, totals[1] - left, top, totals[0] - top)), (0, 0)


def _one(value: Any) -> int:
    return int(value[0]) if isinstance(value, list | tuple) else int(value)


def _pair(value: Any) -> Pair:
    if isinstance(value, list | tuple):
        return (int(value[0]), int(value[-1]))
    return (int(value), int(value))
