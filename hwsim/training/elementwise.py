"""Everything that is no GEMM: torch computes it in float32, we store its result and its gradient by role."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hwsim.training.gemm import cast_tensor
from hwsim.training.step import Site


class StoreActivation(torch.autograd.Function):
    """Forward: the result is stored as an activation. Backward: the gradient passes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, site: Site, in_place: bool) -> Tensor:
        """Cast the result of a function."""
        cast = site.precision.cast("activation")
        assert cast is not None
        stored = cast_tensor(x, cast, site, "", "activation")
        if in_place:
            ctx.mark_dirty(x)
            return x.copy_(stored)
        return stored

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Pass the gradient on."""
        return gradients[0], None, None


class StoreGradient(torch.autograd.Function):
    """Forward: passes. Backward: the gradient that a function made for its input is stored by its role."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, site: Site) -> Tensor:
        """Pass the input on."""
        ctx.site = site
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Cast the gradient."""
        cast = ctx.site.precision.cast("activation_gradient")
        return cast_tensor(gradients[0], cast, ctx.site, "", "activation_gradient"), None


def computed(site: Site, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run a function that makes new values: inputs' gradients and its result are stored by role."""
    in_place = writes_in_place(function, kwargs)
    if not in_place:
        args, kwargs = gradients_stored(site, args, kwargs)
    result = function(*args, **kwargs)
    if site.precision.cast("activation") is None:
        return result
    if isinstance(result, tuple):
        return tuple(_stored(r, site, in_place) for r in result)
    return _stored(result, site, in_place)


def selected(site: Site, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run a function that copies values but whose backward may add some up: inputs' gradients are stored by role."""
    if not writes_in_place(function, kwargs):
        args, kwargs = gradients_stored(site, args, kwargs)
    return function(*args, **kwargs)


def gradients_stored(
    site: Site, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments such that the gradients that a function makes for them are stored by role."""
    if site.precision.cast("activation_gradient") is None or not torch.is_grad_enabled():
        return args, kwargs
    stored = {key: _store_gradients(value, site) for key, value in kwargs.items()}
    return tuple(_store_gradients(arg, site) for arg in args), stored


def dropout(site: Site, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Emulate dropout with a mask of our own bits, so that it is the same on every machine (definitions A16)."""
    return _dropped(site, input, input.shape, p, training, inplace)


def channel_dropout(axes: int) -> Callable[..., Tensor]:
    """Return the treatment of `dropout1d`, `dropout2d` or `dropout3d`, which drop whole channels of so many axes."""

    def run(site: Site, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        alone = axes != 2 and input.ndim == axes + 1  # torch takes dropout2d's first two axes for batch and channels
        shown = 1 if alone else 2
        return _dropped(site, input, (*input.shape[:shown], *(1,) * (input.ndim - shown)), p, training, inplace)

    return run


def _dropped(site: Site, input: Tensor, shape: Sequence[int], p: float, training: bool, inplace: bool) -> Tensor:
    """Drop with a mask of this shape, which broadcasts against the input."""
    if not training or p == 0.0:
        return input
    count = prod(shape)
    words = np.random.Philox(key=site.stream("", "dropout")).random_raw((count + 1) // 2).view(np.uint32)[:count]
    keep = torch.from_numpy(words >= np.uint64(round(p * 2**32))).to(input.device).reshape(tuple(shape))
    scale = 0.0 if p == 1.0 else float(np.float32(1.0 / (1.0 - p)))
    factor = torch.where(keep, scale, 0.0)
    result = computed(site, Tensor.mul_ if inplace else Tensor.mul, (input, factor), {})
    if site.step.recorder is not None:
        site.step.recorder.function(site, "dropout", "elementwise", False, (input,), result)
    return result


def writes_in_place(function: Callable[..., Any], kwargs: dict[str, Any]) -> bool:
    """Return whether this call of a torch function writes into one of its arguments."""
    name = getattr(function, "__name__", "")
    marked = (name.endswith("_") and not name.endswith("__")) or (name.startswith("__i") and name != "__invert__")
    return marked or bool(kwargs.get("inplace")) or kwargs.get("out") is not None


def _stored(result: Any, site: Site, in_place: bool) -> Any:
    if isinstance(result, Tensor) and result.dtype == torch.float32:
        return StoreActivation.apply(result, site, in_place)
    return result


def _store_gradients(arg: Any, site: Site) -> Any:
    if isinstance(arg, Tensor):
        wanted = arg.requires_grad and arg.dtype == torch.float32 and not isinstance(arg, torch.nn.Parameter)
        return StoreGradient.apply(arg, site) if wanted else arg
    if isinstance(arg, list | tuple) and any(isinstance(a, Tensor) for a in arg):
        return type(arg)(_store_gradients(a, site) for a in arg)
    return arg
