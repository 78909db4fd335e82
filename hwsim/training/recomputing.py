"""Activation checkpointing under emulation: what torch computes again in backward gets the bits that it had.

`torch.utils.checkpoint` drops the tensors of a region and runs its function once more during backward. There the mode
of the emulation is off (backward is itself a call that the mode handles), and its counters, from which names and random
bits come, stand at the end of the step. So while an emulation is entered, checkpoint's two ways of keeping a function
for later are handed a function that first puts the emulation back to where the region began. Nothing else of torch
changes, and nothing of the network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from torch.utils import checkpoint

from hwsim.errors import UnsupportedError

if TYPE_CHECKING:
    from hwsim.training.emulation import Emulation

REENTRANT, OTHER = "CheckpointFunction", "_checkpoint_without_reentrant_generator"  # names in torch.utils.checkpoint


@contextmanager
def watched_checkpoints(emulation: Emulation) -> Iterator[None]:
    """Within it, checkpointed functions return to their place in the emulation when they run again."""
    kept = {name: getattr(checkpoint, name) for name in (REENTRANT, OTHER) if hasattr(checkpoint, name)}
    if OTHER in kept:
        setattr(checkpoint, OTHER, partial(_run_later, kept[OTHER], emulation))
    if REENTRANT in kept:
        setattr(checkpoint, REENTRANT, _Reentrant(kept[REENTRANT], emulation))
    try:
        yield
    finally:
        for name, value in kept.items():
            setattr(checkpoint, name, value)


def _run_later(plain: Callable[..., Any], emulation: Emulation, function: Any, *args: Any, **kwargs: Any) -> Any:
    """Call torch's own generator with a function that it will run in backward only."""
    return plain(_returning(emulation, function), *args, **kwargs)


class _Reentrant:
    """Stands for torch's CheckpointFunction, whose function runs in forward, then again in backward."""

    def __init__(self, plain: Any, emulation: Emulation) -> None:
        self.plain, self.emulation = plain, emulation

    def apply(self, function: Any, *args: Any) -> Any:
        """Call torch's own `apply`."""
        if self.emulation.step.meetings is not None:
            raise UnsupportedError(
                "checkpoint(use_reentrant=True) with a plan that names accumulate_grad: each region has a backward "
                "pass of its own; use use_reentrant=False"
            )
        again, runs = _returning(self.emulation, function), 0

        def run(*inputs: Any) -> Any:
            nonlocal runs
            runs += 1
            return function(*inputs) if runs == 1 else again(*inputs)

        return self.plain.apply(run, *args)


def _returning(emulation: Emulation, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function such that it runs where the emulation stands now."""
    place = emulation.place_in_step()

    def run(*args: Any, **kwargs: Any) -> Any:
        with emulation.back_at(place):
            return function(*args, **kwargs)

    return run
