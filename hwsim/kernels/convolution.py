"""The three GEMMs of a convolution, in the arithmetic of a MacSpec and in the order that im2col would give.

k runs over (c, kh, kw) for the output, (c_out, kh, kw) for grad_input and (n, oh, ow) for grad_weight; padded zeros
take positions; groups are GEMMs of their own. Patches are gathered panel by panel, never written out as a whole. A
random word's index is the row-major index in the result tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hwsim.arithmetic.mac import Accelerator, MacSpec, Native, parse_mac
from hwsim.errors import SpecError, UnsupportedError
from hwsim.kernels import backends, gemm
from hwsim.kernels.reference.matmul import result_carrier

Pair = int | Sequence[int]


@dataclass(frozen=True)
class _Geometry:
    """Sizes of a two-dimensional convolution; pairs are (height, width)."""

    batch: int
    channels: int  # of the input
    size: tuple[int, int]
    out_channels: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int

    @property
    def out_size(self) -> tuple[int, int]:
        """Height and width of the output."""
        height, width = (
            (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, p, d, k, s in zip(self.size, self.padding, self.dilation, self.kernel, self.stride, strict=True)
        )
        return height, width


def conv_output(
    x: Any, weight: Any, mac: str | MacSpec = "float32", *, bias: Any = None, stride: Pair = 1, padding: Pair = 0,
    dilation: Pair = 1, groups: int = 1, stream: int = 0,
) -> Any:  # fmt: skip
    """Return the convolution of x with weight.

    Args:
        x: (n, c, h, w), or (n, c, w) in one dimension: numpy array or torch tensor, float32.
        weight: (c_out, c / groups, kh, kw), or (c_out, c / groups, kw).
        mac: the arithmetic of the GEMM. bias: c_out values, added last in the accumulator.
        stride, padding, dilation: a number or one for each dimension. stream: random stream.

    Returns:
        (n, c_out, oh, ow) or (n, c_out, ow), like x.

    Raises:
        SpecError: shapes that do not fit. UnsupportedError: the back end cannot do this case.
    """
    x2, w2, flat = _two_dimensional(x, weight)
    g = _geometry(x2.shape, w2.shape, stride, padding, dilation, groups, flat)
    spec = parse_mac(mac)
    if isinstance(spec.order, Native):
        return _native(x, lambda f, t: (f.conv1d if flat else f.conv2d)(
            t(x), t(weight), None if bias is None else t(bias), _cut(g.stride, flat), _cut(g.padding, flat),
            _cut(g.dilation, flat), groups))  # fmt: skip
    (oh, ow), (kh, kw) = g.out_size, g.kernel
    padded = _pad(x2, g.padding, g.padding)
    n_places = _places((oh, ow), (g.stride[0] * padded.shape[3], g.stride[1]))
    plane = padded.shape[2] * padded.shape[3]
    per_group, out_per_group = g.channels // groups, g.out_channels // groups
    k_places = _places((per_group, kh, kw), (plane, g.dilation[0] * padded.shape[3], g.dilation[1]))
    out = np.empty((g.batch, g.out_channels, oh * ow), result_carrier(spec))
    for group in range(groups):
        rows = slice(group * out_per_group, (group + 1) * out_per_group)
        items = []
        for i in range(g.batch):
            image = padded[i, group * per_group :].reshape(-1)
            first = (i * g.out_channels + rows.start) * oh * ow
            items.append((image, k_places, n_places, out[i, rows], first))
        _run(w2[rows].reshape(out_per_group, -1), items, spec, stream, None if bias is None else _array(bias)[rows])
    return _like(x, out.reshape((g.batch, g.out_channels, ow) if flat else (g.batch, g.out_channels, oh, ow)))


def conv_grad_input(
    grad: Any, weight: Any, input_size: Sequence[int], mac: str | MacSpec = "float32", *, stride: Pair = 1,
    padding: Pair = 0, dilation: Pair = 1, groups: int = 1, stream: int = 0,
) -> Any:  # fmt: skip
    """Return the gradient of the input, of shape `input_size`; arguments as `conv_output`, grad is the output's."""
    grad2, w2, flat = _two_dimensional(grad, weight)
    size = tuple(int(v) for v in input_size)
    g = _geometry((*size[:2], 1, size[2]) if flat else size, w2.shape, stride, padding, dilation, groups, flat)
    _check_grad(grad2.shape, g)
    spec = parse_mac(mac)
    if isinstance(spec.order, Native):
        import torch.nn.grad as torch_grad

        call = torch_grad.conv1d_input if flat else torch_grad.conv2d_input
        return _native(grad, lambda _f, t: call(
            list(size), t(weight), t(grad), _cut(g.stride, flat), _cut(g.padding, flat), _cut(g.dilation, flat),
            groups))  # fmt: skip
    (ih, iw), (kh, kw) = g.size, g.kernel
    spread, origin = _spread(grad2, g)
    line = spread.shape[3]
    plane = spread.shape[2] * line
    per_group, out_per_group = g.channels // groups, g.out_channels // groups
    k_places = _places((out_per_group, kh, kw), (plane, -g.dilation[0] * line, -g.dilation[1]))
    n_places = _places((ih, iw), (line, 1)) + origin[0] * line + origin[1]
    out = np.empty((g.batch, g.channels, ih * iw), result_carrier(spec))
    for group in range(groups):
        rows = slice(group * per_group, (group + 1) * per_group)
        kernel = w2[group * out_per_group : (group + 1) * out_per_group]
        left = np.ascontiguousarray(kernel.transpose(1, 0, 2, 3)).reshape(per_group, -1)
        items = []
        for i in range(g.batch):
            image = spread[i, group * out_per_group :].reshape(-1)
            items.append((image, k_places, n_places, out[i, rows], (i * g.channels + rows.start) * ih * iw))
        _run(left, items, spec, stream, None)
    return _like(grad, out.reshape(size))


def conv_grad_weight(
    grad: Any, x: Any, weight_size: Sequence[int], mac: str | MacSpec = "float32", *, stride: Pair = 1,
    padding: Pair = 0, dilation: Pair = 1, groups: int = 1, stream: int = 0,
) -> Any:  # fmt: skip
    """Return the gradient of the weight, of shape `weight_size`; arguments as `conv_output`, grad is the output's."""
    grad2, x2, flat = _two_dimensional(grad, x)
    size = tuple(int(v) for v in weight_size)
    g = _geometry(x2.shape, (*size[:2], 1, size[2]) if flat else size, stride, padding, dilation, groups, flat)
    _check_grad(grad2.shape, g)
    spec = parse_mac(mac)
    if isinstance(spec.order, Native):
        import torch.nn.grad as torch_grad

        call = torch_grad.conv1d_weight if flat else torch_grad.conv2d_weight
        return _native(grad, lambda _f, t: call(
            t(x), list(size), t(grad), _cut(g.stride, flat), _cut(g.padding, flat), _cut(g.dilation, flat),
            groups))  # fmt: skip
    (oh, ow), (kh, kw) = g.out_size, g.kernel
    padded = _pad(x2, g.padding, g.padding)
    line = padded.shape[3]
    plane = padded.shape[2] * line
    per_group, out_per_group = g.channels // groups, g.out_channels // groups
    k_places = _places((g.batch, oh, ow), (g.channels * plane, g.stride[0] * line, g.stride[1]))
    out = np.empty((g.out_channels, per_group * kh * kw), result_carrier(spec))
    for group in range(groups):
        rows = slice(group * out_per_group, (group + 1) * out_per_group)
        n_places = _places((per_group, kh, kw), (plane, g.dilation[0] * line, g.dilation[1]))
        n_places = n_places + group * per_group * plane
        left = np.ascontiguousarray(grad2[:, rows].transpose(1, 0, 2, 3)).reshape(out_per_group, -1)
        first = rows.start * out.shape[1]
        _run(left, [(padded.reshape(-1), k_places, n_places, out[rows], first)], spec, stream, None)
    return _like(grad, out.reshape(size))


def _run(
    left: np.ndarray, items: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, int]], mac: MacSpec,
    stream: int, bias: np.ndarray | None,
) -> None:  # fmt: skip
    """Multiply `left` with the patches of each item (values, k places, n places) into its `out`."""
    if isinstance(mac.order, Accelerator):
        raise SpecError("convolution: order 'accelerator' must be resolved by a mapping first (docs/definitions.md A6)")
    name = backends.choose("cpu")
    if name not in ("reference", "numba"):
        raise UnsupportedError(f"convolution: back end {name} has no accumulators of its own; use numba")
    if bias is not None:
        # added last, in the accumulator: one more position of k whose patch value is 1
        _with_bias(left, items, mac, stream, bias, name)
        return
    if name == "numba" and _by_patches(left, items, mac, stream):
        return
    from hwsim.kernels.numba_cpu.matmul import Patches

    for values, k_places, n_places, out, first in items:
        right = Patches(values, k_places, n_places).matrix()
        _one(left, right, mac, out, None, stream, first, name)


def _by_patches(left: np.ndarray, items: list[Any], mac: MacSpec, stream: int) -> bool:
    """Try the compiled kernel over patches; False where it has no such case."""
    from hwsim.kernels.numba_cpu.matmul import Patches, facts, matrix, multiply_patches

    try:
        whole = [facts(matrix(v.reshape(1, -1))) for v in {id(item[0]): item[0] for item in items}.values()]
        known = type(whole[0])(
            max(f.precision for f in whole), min(f.lsb for f in whole), max(f.top for f in whole),
            any(f.special for f in whole), any(f.wide for f in whole),
        )  # fmt: skip
        multiply_patches(left, [(Patches(v, k, n), out, None, at) for v, k, n, out, at in items], mac, stream, known)
    except UnsupportedError:
        return False
    return True


def _with_bias(
    left: np.ndarray, items: list[Any], mac: MacSpec, stream: int, bias: np.ndarray, name: str
) -> None:
    """The sums without bias, then one addition to each row of the result."""
    _run(left, items, mac, stream, None)
    last, stage = gemm.bias_mac(mac), gemm.bias_stream(stream)
    for _values, _k, _n, out, first in items:
        ones = np.ones((1, out.shape[1]), np.float32)
        start = np.array(out, np.float64)
        column = np.ascontiguousarray(bias, np.float32).reshape(-1, 1)
        _one(column, ones, last, out, start, stage, first, name, np.array([left.shape[1]]))


def _one(
    left: np.ndarray, right: np.ndarray, mac: MacSpec, out: np.ndarray, start: np.ndarray | None, stream: int,
    first: int, name: str, k_positions: np.ndarray | None = None,
) -> None:  # fmt: skip
    indices = first + np.arange(out.shape[0], dtype=np.int64) * out.shape[1]
    gemm.Job(left, right, mac, out, start, None, stream, k_positions, indices, (None, None), None).run(name)


# ------------------------------------------------------------------------------------------------------- geometry
def _two_dimensional(x: Any, other: Any) -> tuple[np.ndarray, np.ndarray, bool]:
    """Return both operands with four axes, and whether they had three (one dimension)."""
    a, b = _array(x), _array(other)
    if a.ndim != b.ndim or a.ndim not in (3, 4):
        expected = "both (n, c, h, w) or both (n, c, w)"
        raise SpecError(f"convolution: got shapes {a.shape} and {b.shape}, expected {expected}")
    if a.ndim == 3:
        return a[:, :, None, :], b[:, :, None, :], True
    return a, b, False


def _geometry(
    x: Sequence[int], weight: Sequence[int], stride: Pair, padding: Pair, dilation: Pair, groups: int, flat: bool
) -> _Geometry:
    steps, pads, gaps = (_pair(v, rest, flat) for v, rest in ((stride, 1), (padding, 0), (dilation, 1)))
    batch, channels, height, width = (int(v) for v in x)
    out_channels, per_group, kh, kw = (int(v) for v in weight)
    if groups < 1 or channels % groups or out_channels % groups or per_group != channels // groups:
        raise SpecError(
            f"convolution: got {channels} channels, weights of {tuple(weight)} and {groups} groups, "
            f"expected weights of (c_out, {channels} / groups, ...)"
        )
    g = _Geometry(batch, channels, (height, width), out_channels, (kh, kw), steps, pads, gaps, groups)
    if min(g.out_size) < 1 or min(*g.stride, *g.dilation) < 1 or min(g.padding) < 0:
        raise SpecError(f"convolution: got input of {g.size} and {g}, expected an output of 1 x 1 or more")
    return g


def _pair(value: Pair, rest: int, flat: bool) -> tuple[int, int]:
    if isinstance(value, str):
        raise SpecError(f"convolution: got padding {value!r}, expected numbers")
    values = (int(value),) * (1 if flat else 2) if isinstance(value, int) else tuple(int(v) for v in value)
    if len(values) != (1 if flat else 2):
        raise SpecError(f"convolution: got {value!r}, expected one number or one for each dimension")
    return (rest, values[0]) if flat else (values[0], values[1])


def _check_grad(shape: Sequence[int], g: _Geometry) -> None:
    expected = (g.batch, g.out_channels, *g.out_size)
    if tuple(shape) != expected:
        raise SpecError(f"convolution: got an output gradient of {tuple(shape)}, expected {expected}")


def _pad(x: np.ndarray, before: tuple[int, int], after: tuple[int, int]) -> np.ndarray:
    if not any((*before, *after)):
        return np.ascontiguousarray(x)
    return np.pad(x, ((0, 0), (0, 0), (before[0], after[0]), (before[1], after[1])))


def _spread(grad: np.ndarray, g: _Geometry) -> tuple[np.ndarray, tuple[int, int]]:
    """Put zeros between the rows and columns of grad (stride) and around it; return it and the place of ih = kh = 0."""
    sizes, origin = [], []
    for axis in range(2):
        reach = g.dilation[axis] * (g.kernel[axis] - 1)
        before = max(reach - g.padding[axis], 0)
        used = (g.out_size[axis] - 1) * g.stride[axis] + 1
        after = max(g.size[axis] - 1 + g.padding[axis] - (used - 1), 0)
        sizes.append((before, used, after))
        origin.append(before + g.padding[axis])
    (top, height, bottom), (left, width, right) = sizes
    spread = np.zeros((*grad.shape[:2], top + height + bottom, left + width + right), grad.dtype)
    spread[:, :, top : top + height : g.stride[0], left : left + width : g.stride[1]] = grad
    return spread, (origin[0], origin[1])


def _places(sizes: Sequence[int], steps: Sequence[int]) -> np.ndarray:
    """Return sum(index * step) over all indices, row-major."""
    places = np.zeros(1, np.int64)
    for size, step in zip(sizes, steps, strict=True):
        places = (places[:, None] + np.arange(size, dtype=np.int64) * step).reshape(-1)
    return places


def _cut(pair: tuple[int, int], flat: bool) -> tuple[int, ...]:
    return pair[1:] if flat else pair


def _array(x: Any) -> np.ndarray:
    array = x.detach().cpu().numpy() if backends.is_tensor(x) else np.asarray(x)
    if array.dtype not in (np.float32, np.float64):
        raise SpecError(f"convolution: got {array.dtype}, expected float32 or float64")
    return array


def _like(x: Any, result: np.ndarray) -> Any:
    if not backends.is_tensor(x):
        return result
    import torch

    return torch.from_numpy(result)


def _native(like: Any, call: Any) -> Any:
    """float32 by torch, in whatever order this machine takes."""
    import torch

    def tensor(x: Any) -> Any:
        return x.detach() if backends.is_tensor(x) else torch.from_numpy(np.ascontiguousarray(x))

    result = call(torch.nn.functional, tensor)
    return result if backends.is_tensor(like) else result.numpy()
