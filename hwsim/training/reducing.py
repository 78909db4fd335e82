"""Functions built on sums: ours where the plan names their formats or their sums, else torch's in float32."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from hwsim.errors import UnsupportedError
from hwsim.training import losses, normalization
from hwsim.training.elementwise import computed
from hwsim.training.step import Site
from hwsim.training.sums import add_up, embedding_bag


def reduced(site: Site, name: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run one function of `functions.REDUCING`.

    Raises UnsupportedError for a loss that is not emulated where the plan names `loss`, unless the plan allows float32.
    """
    precision = site.precision
    if precision.emulates_loss and name in losses.EMULATED:
        ours = partial(losses.EMULATED[name], site)
        return ours(*args, **kwargs) if precision.names_loss else computed(site, ours, args, kwargs)
    if precision.emulates_statistics and name in normalization.EMULATED:
        return computed(site, partial(normalization.EMULATED[name], site), args, kwargs)
    if precision.emulates_sums and name in ("sum", "mean") and args[0].dtype == torch.float32 and "dtype" not in kwargs:
        return computed(site, partial(add_up, site, name), args, kwargs)
    if name == "embedding_bag":  # torch's own would multiply in a GEMM that the plan knows nothing of
        return computed(site, partial(embedding_bag, site), args, kwargs)
    if precision.names_loss and is_loss(name):
        _refuse_unless_allowed(site, name, "loss")
    return computed(site, function, args, kwargs)


def is_loss(name: str) -> bool:
    """Return whether a torch function of this name is a loss."""
    return name.endswith("_loss") or "entropy" in name or name in ("kl_div", "nll_loss_nd")


def _refuse_unless_allowed(site: Site, name: str, setting: str) -> None:
    if site.step.plan.uncovered == "error":
        raise UnsupportedError(
            f"layer {site.layer!r}: torch function {name!r} is not emulated in the plan's {setting}; leave {setting} "
            "out of this layer's rule, or set uncovered: float32 in the plan to run it as torch does"
        )
    site.step.uncovered.add(name)
