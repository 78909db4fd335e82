"""Notes what one training step does, while it does it: the calls, their tensors, what top-k kept.

A `Recorder` is alive for one recorded step. It names tensors after what made them and keeps them alive, so that
their identities stay theirs until the step is over. `trace` turns its notes into a Workload.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from hwsim.arithmetic.storage import Cast
from hwsim.training.plan import LayerPrecision
from hwsim.training.selection import KeptRows
from hwsim.training.step import Site
from hwsim.workload import ConvGeometry


@dataclass
class GemmCall:
    """One call of a function that multiplies: operands a (the input) and b (a weight, or another activation)."""

    id: str
    layer: str
    precision: LayerPrecision
    input: str
    weight: str
    bias: str | None
    output: str
    m: int  # of ONE group, of the output GEMM
    n: int
    k: int
    groups: int = 1
    weight_transposed: bool = True  # stored (out, in), as a linear layer's is
    weight_is_parameter: bool = True
    conv: ConvGeometry | None = None
    wants: tuple[bool, bool, bool] = (False, False, False)  # gradients of input, weight, bias; set in backward
    kept: KeptRows | None = None
    unit: str = "element"
    norms: tuple[float, float] | None = None  # sums of squares: of what was kept, of all


@dataclass
class FunctionCall:
    """One call of any other function: elementwise, or a reduction."""

    id: str
    layer: str
    name: str
    kind: str  # selecting, elementwise, reducing
    precision: LayerPrecision
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    elements: int  # of the larger side
    is_loss: bool = False


@dataclass
class NamedTensor:
    """What the recorder knows of a tensor of the forward pass."""

    role: str  # input weight bias activation statistics loss
    shape: tuple[int, ...]
    cast: Cast | None  # how it is stored; None is float32
    requires_grad: bool
    density: float | None = None
    gradient_density: float | None = None


@dataclass
class Recorder:
    """The notes on one step. `number` is the training step, `batch` the examples of its mini-batch."""

    module: nn.Module | None
    number: int
    batch: int
    calls: list[GemmCall | FunctionCall] = field(default_factory=list)
    tensors: dict[str, NamedTensor] = field(default_factory=dict)
    replaying: bool = False  # while a part of the forward pass runs again: its calls are known

    def __post_init__(self) -> None:
        self._names: dict[int, str] = {}
        self._alive: list[Tensor] = []  # so that no identity is given away while we note it
        self._gemms: dict[str, GemmCall] = {}
        self._parameters = {id(p): path for path, p in self.module.named_parameters()} if self.module else {}
        self._buffers = {id(b): path for path, b in self.module.named_buffers()} if self.module else {}

    def name(self, tensor: Tensor) -> str:
        """Return the name of a tensor, giving it one if it came from outside."""
        known = self._names.get(id(tensor))
        if known is not None:
            return known
        if id(tensor) in self._parameters:
            path = self._parameters[id(tensor)]
            return self._add(tensor, path, "bias" if path.endswith("bias") else "weight", None)
        if id(tensor) in self._buffers:
            return self._add(tensor, self._buffers[id(tensor)], "statistics", None)
        taken = sum(t.role == "input" for t in self.tensors.values())
        return self._add(tensor, "input" if taken == 0 else f"input{taken}", "input", None)

    def alias(self, result: Any, args: tuple[Any, ...]) -> None:
        """Note that a function gave its first tensor argument another shape and nothing else."""
        if self.replaying:
            return
        source = next((a for a in args if isinstance(a, Tensor)), None)
        if source is None or id(source) not in self._names:
            if source is None or id(source) not in self._parameters:
                return
            self.name(source)
        for out in result if isinstance(result, tuple | list) else (result,):
            if isinstance(out, Tensor) and out.is_floating_point() and id(out) not in self._names:
                self._names[id(out)] = self._names[id(source)]
                self._alive.append(out)

    def slices(self, site: Site, source: Tensor, pieces: Sequence[Tensor]) -> None:
        """Note that a tensor is used in pieces: no elements are computed, but each piece has a gradient of its own."""
        if self.replaying:
            return self._replayed(site.id, pieces)
        names = [
            self._add(piece, self._unique(f"{site.id}.slice{number}"), "activation", self._cast_of(source))
            for number, piece in enumerate(pieces)
        ]
        self.calls.append(
            FunctionCall(
                site.id, site.layer, "split", "selecting", site.precision, (self.name(source),), tuple(names), 0
            )
        )

    def gemm(
        self,
        site: Site,
        inputs: tuple[Tensor, Tensor, Tensor | None],
        output: Tensor,
        sizes: tuple[int, int, int],
        groups: int = 1,
        conv: ConvGeometry | None = None,
        weight_transposed: bool = True,
    ) -> None:
        """Note a GEMM-bearing call: `sizes` are m, n and k of one group of its output GEMM."""
        if self.replaying:
            return self._replayed(site.id, (output,))
        x, weight, bias = inputs
        m, n, k = sizes
        call = GemmCall(
            site.id,
            site.layer,
            site.precision,
            self.name(x),
            self.name(weight),
            None if bias is None else self.name(bias),
            self._add(output, self._unique(f"{site.id}.output"), "activation", self._stored(site)),
            m,
            n,
            k,
            groups,
            weight_transposed,
            isinstance(weight, nn.Parameter),
            conv,
        )
        self.calls.append(call)
        self._gemms[site.id] = call
        self.tensors[call.input].density = density(x)

    def function(self, site: Site, name: str, kind: str, is_loss: bool, args: tuple[Any, ...], result: Any) -> None:
        """Note any other call that makes new tensors."""
        inputs = [a for a in args if isinstance(a, Tensor)]
        inputs += [t for a in args if isinstance(a, list | tuple) for t in a if isinstance(t, Tensor)]
        inputs = [t for t in inputs if t.is_floating_point()]
        results = result if isinstance(result, tuple | list) else (result,)
        outputs = [t for t in results if isinstance(t, Tensor) and t.is_floating_point()]
        if not inputs or not outputs:
            return
        if self.replaying:
            return self._replayed(site.id, outputs)
        names = tuple(dict.fromkeys(self.name(t) for t in inputs))
        role = "loss" if is_loss else "activation"
        cast = site.precision.cast("loss") if is_loss else self._kept_format(site, kind, names)
        made = []
        for number, out in enumerate(outputs):
            if id(out) in self._names and any(out is t for t in inputs):  # in place
                made.append(self._names[id(out)])
                continue
            suffix = "output" if number == 0 else f"output{number}"
            made.append(self._add(out, self._unique(f"{site.id}.{suffix}"), role, cast))
        elements = max(t.numel() for t in (*inputs, *outputs))
        self.calls.append(
            FunctionCall(site.id, site.layer, name, kind, site.precision, names, tuple(made), elements, is_loss)
        )

    def backward(self, site: Site, gradient: Tensor, kept: KeptRows | None, wants: tuple[bool, ...]) -> None:
        """Note what a GEMM's backward pass works on: the gradient at its output and what top-k keeps of it."""
        call = self._gemms.get(site.id)
        if call is None:
            return
        call.wants = (wants[0], wants[1], wants[2])
        call.kept = kept
        self.tensors[call.output].gradient_density = density(gradient)
        if kept is not None:
            call.unit = site.step.sparse.unit if site.step.sparse else "element"
            if call.unit == "channel":
                return  # what was ranked are sums over a channel, not the gradient
            total = float(gradient.double().square().sum())
            call.norms = float(kept.mask(gradient).double().square().sum()), total

    def norm_shares(self) -> dict[str, float]:
        """Return the kept part of the gradient's sum of squares by layer, where top-k acted.

        A layer that is called several times, such as the recurrent part of an LSTM, has one share for all calls.
        """
        return self._shares(lambda call: call.norms)

    def tie_shares(self) -> dict[str, float]:
        """Return, by layer, the share of kept places that the tie rule decided, where magnitudes were ranked."""

        def count(call: GemmCall) -> tuple[float, float] | None:
            kept = call.kept
            return None if kept is None or kept.by_ties is None else (kept.by_ties, len(kept.indices))

        return self._shares(count)

    def _shares(self, parts: Callable[[GemmCall], tuple[float, float] | None]) -> dict[str, float]:
        """Return part over whole by layer, each added over the layer's calls."""
        sums: dict[str, tuple[float, float]] = {}
        for call in self.calls:
            found = parts(call) if isinstance(call, GemmCall) else None
            if found is not None:
                before = sums.get(call.layer, (0.0, 0.0))
                sums[call.layer] = before[0] + found[0], before[1] + found[1]
        return {layer: part / whole for layer, (part, whole) in sums.items() if whole}

    def _replayed(self, id: str, outputs: Sequence[Tensor]) -> None:
        """Note that a call ran again; the first time may have been without gradients (reentrant checkpointing)."""
        known = next((call for call in self.calls if call.id == id), None)
        if known is None:
            return
        names = (known.output,) if isinstance(known, GemmCall) else known.outputs
        for name, tensor in zip(names, outputs, strict=False):
            self.tensors[name].requires_grad |= tensor.requires_grad

    def _add(self, tensor: Tensor, name: str, role: str, cast: Cast | None) -> str:
        self._names[id(tensor)] = name
        self._alive.append(tensor)
        self.tensors[name] = NamedTensor(role, tuple(tensor.shape), cast, tensor.requires_grad)
        return name

    def _unique(self, name: str) -> str:
        return name if name not in self.tensors else f"{name}_{sum(t.startswith(name) for t in self.tensors)}"

    def _cast_of(self, tensor: Tensor) -> Cast | None:
        return self.tensors[self.name(tensor)].cast

    def _stored(self, site: Site) -> Cast | None:
        return site.precision.cast("activation")

    def _kept_format(self, site: Site, kind: str, inputs: tuple[str, ...]) -> Cast | None:
        if kind == "selecting":  # what is only copied stays in its format
            return self.tensors[inputs[0]].cast
        return site.precision.cast("activation")


def density(tensor: Tensor) -> float:
    """Return the share of elements that are not 0."""
    return float(torch.count_nonzero(tensor)) / max(1, prod(tensor.shape))
