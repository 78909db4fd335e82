"""How a network is trained, apart from its arithmetic: the `training:` block of an experiment."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from hwsim.spec import Spec, field_problem
from hwsim.training.simplification import Simplification

Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, lt=1)]


class Recipe(Spec):
    """Optimizer, batch, length and selection. The defaults are those of Sun et al. 2017 for MNIST with Adam."""

    optimizer: Literal["adam", "adamw", "sgd", "adagrad"] = "adam"
    learning_rate: Positive = 0.001
    batch: Annotated[int, Field(ge=1)] = 10
    epochs: Annotated[int, Field(ge=1)] = 20
    initial: Literal["default", "meprop", "meprop_gpu"] = "default"
    """Initial weights: each layer's own, or linear layers as the meProp authors' C# or PyTorch code starts them."""
    evaluations: Annotated[int, Field(ge=1)] = 1
    """How often an epoch is evaluated, evenly spread; the last time is at its end."""
    select: Literal["best_dev", "last"] = "best_dev"
    """Which evaluation's test accuracy is reported: that of best dev accuracy (the first of equals), or the last."""
    betas: tuple[Share, Share] = (0.9, 0.999)
    """Adam's decay rates of the first and the second moment."""
    epsilon: Annotated[float, Field(ge=0)] | None = None
    """Added to the square root; None: 1e-8 for Adam, 1e-6 for AdaGrad (the values of Sun et al.)."""
    momentum: Share = 0.0
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """L2 for sgd, adam and adagrad; decoupled for adamw."""
    decay_epochs: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Epochs (counted from 0) at whose start the learning rate is multiplied by `decay_factor`."""
    decay_factor: Positive = 0.1
    clip: Positive | None = None
    """Clips each element of a weight gradient to [-clip, clip]; None does not."""
    loss: Literal["mean", "sum"] = "mean"
    """Cross-entropy averaged over the targets of a batch, or summed (as the meProp authors' C# code does)."""
    augment: Literal["none", "flip_crop"] = "none"
    """flip_crop: random horizontal flip and a random crop after padding by 4, for images."""
    micro_batches: Annotated[int, Field(ge=1)] = 1
    """Parts into which a batch is cut; their gradients are added before the one update."""
    train_examples: Annotated[int, Field(ge=1)] | None = None
    """Trains on the first so many examples only; None: on all."""
    evaluate_examples: Annotated[int, Field(ge=1)] | None = None
    """Evaluates on the first so many examples of dev and of test only; None: on all."""
    simplify: Simplification | None = None
    """Removes hidden units that top-k hardly ever keeps (meSimp); None: all stay."""
    recorded_steps: Annotated[int, Field(ge=1)] = 8
    """How many steps, spread evenly over training, are recorded for the simulator."""

    @model_validator(mode="after")
    def _fits(self) -> Recipe:
        if self.batch % self.micro_batches:
            raise field_problem("micro_batches", f"got {self.micro_batches}, expected a divisor of batch {self.batch}")
        if self.momentum and self.optimizer != "sgd":
            raise field_problem("momentum", f"got {self.momentum}, expected 0: only sgd has momentum")
        return self

    def learning_rate_in(self, epoch: int) -> float:
        """Return the learning rate of an epoch (counted from 0)."""
        return self.learning_rate * self.decay_factor ** sum(epoch >= start for start in self.decay_epochs)

    def evaluates_after(self, step: int, steps_per_epoch: int) -> bool:
        """Return whether the network is evaluated after an epoch's `step`-th step (counted from 1)."""
        return any(step == round(part * steps_per_epoch / self.evaluations) for part in range(1, self.evaluations + 1))
