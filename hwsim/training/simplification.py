"""meSimp's settings: when hidden units that top-k hardly ever keeps are removed (Wei et al., arXiv 1711.06528)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from hwsim.spec import Spec


class Simplification(Spec):
    """The `simplify:` entry of a recipe. The defaults are those of the authors' code for MNIST.

    An epoch has `parts` equal parts. Over the examples since the last pruning, a unit is hit whenever top-k keeps its
    gradient. At the end of each part of a prune cycle, units hit in less than `threshold` of the examples are removed
    for good. Prune and normal cycles of `cycle_epochs` epochs take turns, a prune cycle first; in normal ones units
    are counted but stay.
    """

    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.1
    cycle_epochs: Annotated[int, Field(ge=1)] = 5
    parts: Annotated[int, Field(ge=1)] = 8
    reset_moments: bool = True
    """Whether the optimizer's moments become 0 after each part of a cycle's last epoch (the step count goes on)."""

    def prunes_in(self, epoch: int) -> bool:
        """Return whether an epoch (counted from 0) belongs to a prune cycle."""
        return epoch // self.cycle_epochs % 2 == 0

    def resets_in(self, epoch: int) -> bool:
        """Return whether the moments are reset in this epoch."""
        return self.reset_moments and (epoch + 1) % self.cycle_epochs == 0

    def ends_part(self, step: int, steps_per_epoch: int) -> bool:
        """Return whether a part of the epoch ends with its `step`-th step (counted from 1)."""
        return any(step == round(part * steps_per_epoch / self.parts) for part in range(1, self.parts + 1))
