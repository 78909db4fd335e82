"""What the emulated functions of one training step share, and where in the network each of them stands."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from hwsim.kernels.random_bits import stream
from hwsim.training.plan import LayerPrecision, PrecisionPlan
from hwsim.training.sparse import SparseBackprop

if TYPE_CHECKING:
    from hwsim.training.audit import Auditor
    from hwsim.training.gradient_buffers import GradientBuffers
    from hwsim.training.meeting import Meetings
    from hwsim.training.profiler import Profiler
    from hwsim.training.recorder import Recorder
    from hwsim.training.simplify import Simplifier


@dataclass
class Step:
    """The state of the step that is being emulated; one object serves the whole run."""

    plan: PrecisionPlan
    sparse: SparseBackprop | None
    seed: int
    auditor: Auditor
    number: int = 0
    epoch: int = 0
    domain: str = "train"  # or "evaluate": its random bits are drawn apart
    recorder: Recorder | None = None  # set in steps that are recorded
    profiler: Profiler | None = None  # set in steps that are profiled
    simplifier: Simplifier | None = None  # set in runs that remove hidden units
    buffers: GradientBuffers | None = None  # set in runs whose optimizer hands gradients back
    meetings: Meetings | None = None  # set where the plan names accumulate_grad
    recomputing: bool = False  # while activation checkpointing runs a part of the forward pass again
    output_layer: str = ""  # the layer whose GEMM ran last in the forward pass
    memories: dict[str, Tensor] = field(default_factory=dict)  # memorized backprop: what was dropped, by layer
    repeats: dict[str, int] = field(default_factory=dict)  # how often a part ran so far, by path; cleared each step
    weights_read: dict[tuple[int, str], tuple[Tensor, Tensor]] = field(default_factory=dict)  # cast once a step
    magnitudes: dict[str, list[float]] = field(default_factory=dict)  # delayed scaling: largest of the last steps
    factors: dict[str, float] = field(default_factory=dict)  # delayed scaling: what the last read was scaled by
    uncovered: set[str] = field(default_factory=set)  # functions that ran as torch does


class Site(NamedTuple):  # made some thousand times a second, which a tuple is quick at
    """One call of one function: its layer's path, its precision, and the step it runs in.

    `call` counts the calls of the same layer within the step. Step number and call are noted here because a backward
    pass, or a recomputation, must draw the random bits of its own forward call.
    """

    layer: str
    call: int
    precision: LayerPrecision
    step: Step
    number: int

    def stream(self, gemm: str, stage: str) -> int:
        """Return the stream of random bits for one stage of this call (definitions A5)."""
        step = self.step
        return stream(step.seed, step.domain, self.layer, gemm, stage, self.number, self.call)

    def part(self, name: str) -> Site:
        """Return the place of one part of a composite function; its precision is that of the whole."""
        return Site(f"{self.layer}.{name}", self.call, self.precision, self.step, self.number)

    def again(self, name: str) -> Site:
        """Return the place of the next repetition of a part, such as a time step."""
        key = f"{self.id}.{name}"
        call = self.step.repeats.get(key, 0)
        self.step.repeats[key] = call + 1
        return Site(key, call, self.precision, self.step, self.number)

    @property
    def id(self) -> str:
        """The layer's path, with the call appended from the second one on."""
        return self.layer if self.call == 0 else f"{self.layer}#{self.call}"
