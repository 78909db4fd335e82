"""What training one network with one seed found, as plain data (no torch)."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from hwsim.spec import Spec
from hwsim.training.profile import Profile
from hwsim.workload import Workload


class LayerSparsity(Spec):
    """What top-k kept of one layer's gradient: shares in [0, 1], means over the recorded steps."""

    layer: str
    extent: int
    kept_share: float
    """Kept positions a row, over `extent`."""
    union_share: float
    """Positions that at least one row kept, over `extent`: the rows of weights that are touched."""
    norm_share: float | None = None
    """Kept part of the gradient's sum of squares."""
    tie_share: float | None = None
    """Kept places that went to the lowest index among equal magnitudes, not all of which were kept, over all kept."""
    example_overlap: float | None = None
    """Mean intersection over union between two rows of one batch; None when ranked over the batch."""
    step_overlap: float | None = None
    """Intersection over union of the unions of neighboring recorded steps; None: fewer than two steps."""


class TrainingSummary(Spec):
    """Everything of a `TrainingResult` but its workload: the part that is written as JSON."""

    SCHEMA: ClassVar[str | None] = "training/1"

    model: str
    data: str
    plan: str
    sparse: str | None
    seed: int
    outcome: Literal["finished", "diverged", "stopped"]
    """diverged: the training loss stopped being finite and training ended there. stopped: it was told to end early."""
    test_accuracy: float | None
    """Test accuracy (a share) of the selected evaluation; what the data set measures instead, if it does."""
    dev_accuracy: float | None
    selected_epoch: int | None
    steps: int
    """Optimizer updates made."""
    steps_per_epoch: int
    curves: dict[str, tuple[float | None, ...]]
    """One entry per evaluation: step, epoch, train_loss, dev_accuracy, test_accuracy; None where not finite, and for
    test_accuracy within an epoch where dev_accuracy was not the best so far; dev_loss and test_loss where accuracy is
    the measure: mean cross-entropy in nats, of float64 sums."""
    first_losses: tuple[float | None, ...] = ()
    """Training loss of each of the first 64 steps, None where not finite: what a short run can be compared with."""
    wall_s: float
    cpu_s: float | None = None
    """Processor time of all threads; None in records from before it was taken."""
    backends: tuple[str, ...]
    hashes: dict[str, str]
    """sha256 of the data, the initial weights and the final weights."""
    sparsity: tuple[LayerSparsity, ...] = ()
    profile: Profile | None = None
    """What the numbers did at some steps, when the run was profiled."""
    uncovered: tuple[str, ...] = ()
    """Functions that ran as torch does, because the plan allows it."""
    measure: str = "accuracy"
    """What the dev and test accuracies measure, "UAS" for a parser."""
    parameters: int = 0
    units: dict[str, int] = Field(default_factory=dict)
    """Units left at the end in each layer that `simplify` could remove some from."""
    average_dimension: float | None = None
    """Mean number of units left in those layers at the selected evaluation."""
    counters: dict[str, float] = Field(default_factory=dict, max_length=0, exclude=True, repr=False)
    """An entry of files from before `profile`, which nothing ever filled."""


class TrainingResult:
    """What `hwsim.train` returns: the summary's fields as attributes, and the workload that was recorded."""

    def __init__(self, summary: TrainingSummary, workload: Workload) -> None:
        self.summary = summary
        self.workload = workload

    @property
    def test_accuracy(self) -> float:
        """Test accuracy (a share) of the selected epoch; NaN if training diverged in the first one."""
        value = self.summary.test_accuracy
        return float("nan") if value is None else value

    @property
    def dev_accuracy(self) -> float:
        """Dev accuracy (a share) of the selected epoch; NaN if training diverged in the first one."""
        value = self.summary.dev_accuracy
        return float("nan") if value is None else value

    @property
    def steps(self) -> int:
        """Optimizer updates made."""
        return self.summary.steps

    @property
    def curves(self) -> dict[str, tuple[float | None, ...]]:
        """One entry per evaluation under each name."""
        return self.summary.curves

    def __repr__(self) -> str:
        s = self.summary
        return f"<TrainingResult {s.model} on {s.data}, {s.plan}: test {self.test_accuracy:.2%} after {s.steps} steps>"
