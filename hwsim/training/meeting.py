"""Where gradients meet: tensors that several functions read, tied weights, time steps, micro-batches.

autograd would add such gradients up in float32 as they come. Where a plan names `accumulate_grad`, each reader gets a
view of its own instead, and the gradients of all views are added up here by that MacSpec, the last reader's first (the
order in which a backward pass makes them), and stored by their role. The rule of the layer that reads a tensor first
decides. A single gradient passes as it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hwsim.training.gemm import store
from hwsim.training.step import Site
from hwsim.training.sums import sum_last


@dataclass(eq=False)
class Meeting:
    """One tensor whose readers' gradients are added up."""

    site: Site  # of the first reader
    tensor: Tensor  # kept alive, so that its identity stays its own
    shared: Tensor | None = None  # what readers get views of
    uses: int = 0
    parts: dict[int, Tensor] = field(default_factory=dict)  # by number of the use

    def total(self) -> Tensor | None:
        """Return the sum of what has come, and forget it."""
        parts = [self.parts[number] for number in sorted(self.parts, reverse=True)]
        self.parts = {}
        return add_gradients(parts, self.site, isinstance(self.tensor, nn.Parameter)) if parts else None


class Meet(torch.autograd.Function):
    """Forward: passes. Backward, when all readers are through: the sum of their gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, meeting: Meeting) -> Tensor:
        """Pass the tensor on."""
        ctx.meeting = meeting
        ctx.set_materialize_grads(False)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the sum."""
        return ctx.meeting.total(), None


class Part(torch.autograd.Function):
    """Forward: passes. Backward: hands the gradient to the meeting, and nothing to autograd."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, meeting: Meeting, number: int) -> Tensor:
        """Pass the tensor on."""
        ctx.meeting, ctx.number = meeting, number
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Keep the gradient."""
        ctx.meeting.parts[ctx.number] = gradients[0]
        return None, None, None


class Meetings:
    """All meetings of one training step."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, int], Meeting] = {}

    def clear(self) -> None:
        """Forget the last step's tensors."""
        self._known.clear()

    def share(self, x: Any, site: Site) -> Any:
        """Return what a function at `site` reads in place of x: a tensor, or a list or tuple of them."""
        if isinstance(x, list | tuple) and any(isinstance(item, Tensor) for item in x):
            made = [self.share(item, site) for item in x]
            return type(x)(*made) if hasattr(x, "_fields") else type(x)(made)
        if not isinstance(x, Tensor) or not x.requires_grad or x.dtype != torch.float32 or not torch.is_grad_enabled():
            return x
        node = x.grad_fn
        key = (id(x), -1) if node is None else (id(node), x.output_nr)
        meeting = self._known.get(key)
        if meeting is None:
            meeting = self._known[key] = Meeting(site, x)
        if meeting.shared is None:
            meeting.shared = Meet.apply(x, meeting)
        part: Tensor = Part.apply(meeting.shared, meeting, meeting.uses)
        meeting.uses += 1
        if isinstance(x, nn.Parameter):
            part._is_param = True  # its role is a weight's still
        if site.step.recorder is not None:
            site.step.recorder.name(x)
            site.step.recorder.alias(part, (x,))
        return part


def shared(site: Site, x: Any) -> Any:
    """Return what one more reader of x reads, inside a function that is made of several."""
    return x if site.step.meetings is None else site.step.meetings.share(x, site)


def add_gradients(parts: list[Tensor], site: Site, is_parameter: bool) -> Tensor:
    """Return the sum of gradients of one shape by `accumulate_grad`, in the order given, stored by its role."""
    if len(parts) == 1:
        return parts[0]
    together = torch.stack([part.reshape(-1) for part in parts], -1)
    total = sum_last(together, site, "meeting", "accumulate_grad").reshape(parts[0].shape)
    role = "weight_gradient" if is_parameter else "activation_gradient"
    return store(total, site, role, "accumulate_grad", site.precision.mac("accumulate_grad"))


class MicroBatches:
    """The gradients of parameters, one for each part of a mini-batch."""

    def __init__(self, parameters: Iterable[tuple[nn.Parameter, Site]]) -> None:
        self._parameters = tuple(parameters)
        self._parts: dict[int, list[Tensor]] = {}

    def take(self) -> None:
        """Take the gradients that a backward pass left in the parameters."""
        for parameter, _ in self._parameters:
            if parameter.grad is not None:
                self._parts.setdefault(id(parameter), []).append(parameter.grad)
                parameter.grad = None

    def join(self) -> None:
        """Put their sums, first part first, into the parameters."""
        for parameter, site in self._parameters:
            parts = self._parts.pop(id(parameter), [])
            if parts:
                parameter.grad = add_gradients(parts, site, True)
