"""Which back end does the work: the choice rule, how to force one, and a record of those used.

CUDA tensor: triton. CPU array or tensor: numba. Anything else: torch. ``with hwsim.backend("reference")`` forces one; a
forced back end that cannot do a case raises `UnsupportedError` and never hands the case to another.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from difflib import get_close_matches
from functools import cache
from typing import Any

from hwsim.errors import SpecError, UnsupportedError

NAMES = ("reference", "numba", "torch", "triton")

_forced: ContextVar[str | None] = ContextVar("hwsim_backend", default=None)
_used: set[str] = set()


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Force one back end inside a ``with`` block.

    Raises:
        SpecError: no such back end. UnsupportedError: it cannot run here.
    """
    if name not in NAMES:
        near = get_close_matches(str(name), NAMES, n=1)
        hint = f". Did you mean {near[0]}?" if near else ""
        raise SpecError(f"backend: got {name!r}, expected one of {', '.join(NAMES)}{hint}")
    reason = missing(name)
    if reason:
        raise UnsupportedError(f"backend {name}: {reason}")
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)


def choose(device: str = "cpu") -> str:
    """Return the back end for data on a device ("cpu", "cuda", "mps", ...) and record that it was used."""
    name = _forced.get() or _default(device)
    _used.add(name)
    return name


def forced() -> str | None:
    """Return the back end that a surrounding ``with backend(...)`` asks for, or None."""
    return _forced.get()


def available() -> tuple[str, ...]:
    """Return the back ends that can run here."""
    return tuple(name for name in NAMES if not missing(name))


def used() -> tuple[str, ...]:
    """Return the back ends that did work in this process so far, for provenance (sorted)."""
    return tuple(sorted(_used))


def reset_used() -> None:
    """Forget which back ends were used (a run calls this when it starts)."""
    _used.clear()


@cache
def missing(name: str) -> str:
    """Return why a back end cannot run here, or an empty text."""
    if name == "reference":
        return ""
    if name == "triton":
        if importlib.util.find_spec("triton") is None:
            return "triton is not installed (pip install 'hwsim[gpu]')"
        return _no_gpu()
    return "" if importlib.util.find_spec(name) is not None else f"{name} is not installed"


def device_of(x: Any) -> str:
    """Return "cpu" for numpy data, else the torch tensor's device type."""
    return x.device.type if is_tensor(x) else "cpu"


def is_tensor(x: Any) -> bool:
    """Whether x is a torch tensor (without importing torch)."""
    return type(x).__module__.split(".")[0] == "torch" or (hasattr(x, "detach") and hasattr(x, "untyped_storage"))


def _default(device: str) -> str:
    if device == "cpu":
        return "numba"
    if device == "cuda" and not missing("triton"):
        return "triton"
    return "torch"


def _no_gpu() -> str:
    """Triton needs a CUDA device, or its interpreter (TRITON_INTERPRET=1, for tests)."""
    import os

    import torch

    if torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1":
        return ""
    return "no CUDA device was found"
