"""The sums of a convolution as GEMMs of its im2col form, for the profiler: the kernels that train never write it out.

Rows are output positions (output), input positions (grad_input) and output channels (grad_weight). Of the images,
every 16th is looked at for output and grad_input; grad_weight sums over all of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from hwsim.kernels.counters import SAMPLE
from hwsim.training.step import Site

if TYPE_CHECKING:
    from hwsim.training.convolution import Window


def note_output(x: Tensor, weight: Tensor, window: Window, site: Site) -> None:
    """Note the sums of y = conv2d(x, weight); operands as they were read."""
    columns = _columns(x[::SAMPLE], weight.shape[2:], window)
    for w, part in zip(weight.flatten(1).chunk(window.groups), columns.chunk(window.groups, 2), strict=True):
        _note(part.flatten(0, 1), w.t(), site, "output")


def note_grad_input(spread: Tensor, weight: Tensor, turned: Window, site: Site) -> None:
    """Note the sums of dL/dx: `spread` is the gradient with the stride's zeros and padding, `turned` moves over it."""
    groups = turned.groups
    columns = _columns(spread[::SAMPLE], weight.shape[2:], turned)
    columns = columns.unflatten(2, (len(weight), *weight.shape[2:])).flip(3, 4).flatten(2)
    for w, part in zip(weight.chunk(groups), columns.chunk(groups, 2), strict=True):
        _note(part.flatten(0, 1), w.transpose(0, 1).flatten(1).t(), site, "grad_input")


def note_grad_weight(gradient: Tensor, x: Tensor, shape: torch.Size, window: Window, site: Site) -> None:
    """Note the sums of dL/dW (c_out, c / groups, kh, kw) = `shape`."""
    columns = _columns(x, shape[2:], window).flatten(0, 1)
    rows = gradient.transpose(0, 1).flatten(1)
    for a, b in zip(rows.chunk(window.groups), columns.chunk(window.groups, 1), strict=True):
        _note(a, b, site, "grad_weight")


def _columns(x: Tensor, kernel: torch.Size | tuple[int, ...], window: Window) -> Tensor:
    """Return im2col with positions as rows: (n, oh ow, c kh kw)."""
    return functional.unfold(x, tuple(kernel), window.dilation, window.padding, window.stride).transpose(1, 2)


def _note(a: Tensor, b: Tensor, site: Site, gemm: str) -> None:
    assert site.step.profiler is not None
    mac = site.precision.mac(gemm)
    stream = site.stream(gemm, "sum") if mac.rounding.stochastic else 0
    site.step.profiler.sums(a.contiguous(), b.contiguous(), mac, site, gemm, stream)
