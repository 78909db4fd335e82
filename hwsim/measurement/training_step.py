"""A whole training step of a 784-h-...-10 network on the real machine: forward, loss, backward, Adam; dense and top-k.

The backward pass is written out (no autograd), so that dense and top-k differ in nothing but the selection. Top-k
acts on the
hidden layers, over the batch; the output layer stays dense. Formats: float32, tf32, or bfloat16 with float32 weights in
the optimizer. The weights hardly move (second moments start at 1), so every timed step works on the same statistics.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import torch

from hwsim.measurement.cases import Case
from hwsim.measurement.prepared import Prepared, element_bytes, generator, normal, relative_error, set_precision, stored
from hwsim.measurement.record import Check
from hwsim.measurement.topk_gemm import torch_select

PIXELS, CLASSES = 784, 10


@dataclass
class Layer:
    """One linear layer: weight (out, in), bias, gradients and Adam's states; kept 0 means dense."""

    weight: torch.Tensor  # float32
    narrow: torch.Tensor  # the same in the format that GEMMs read; `weight` itself for float32
    bias: torch.Tensor
    dw: torch.Tensor  # (out, in), or (kept, in) if only kept rows are updated
    db: torch.Tensor
    kept: int
    states: list[torch.Tensor]  # first and second moment of weight and bias
    input: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    chosen: torch.Tensor | None = None


class Network:
    """The network with one fixed mini-batch."""

    def __init__(self, case: Case, device: torch.device) -> None:
        source = generator(case.id, device)
        self.batch, self.rows_only = case["batch"], case.operation == "adam_rows"
        self.dtype = case.dtype
        sizes = [PIXELS, *[case["hidden"]] * case["depth"], CLASSES]
        self.x = normal((self.batch, PIXELS), case.dtype, source).abs_()
        self.target = torch.randint(0, CLASSES, (self.batch,), generator=source, device=device)
        self.count = torch.tensor(10.0, device=device)
        self.layers = []
        for index, (inputs, out) in enumerate(pairwise(sizes)):
            weight = normal((out, inputs), "float32", source) * (2 / inputs) ** 0.5
            kept = case["kept"] if index < len(sizes) - 2 and case["kept"] < out else 0
            dw = torch.zeros((kept if kept and self.rows_only else out, inputs), device=device)
            bias, db = torch.zeros(out, device=device), torch.zeros(out, device=device)
            states = [torch.zeros_like(weight), torch.ones_like(weight), torch.zeros_like(bias), torch.ones_like(bias)]
            narrow = weight if stored(case.dtype) == torch.float32 else weight.to(stored(case.dtype))
            self.layers.append(Layer(weight, narrow, bias, dw, db, kept, states))

    def step(self) -> None:
        """Do one update."""
        self._backward(self._forward())
        self._update()

    def _forward(self) -> torch.Tensor:
        """Return dL/d(logits) of the mean cross-entropy, (batch, classes) in the GEMM format."""
        h = self.x
        for layer in self.layers:
            layer.input = h
            h = torch.addmm(layer.bias.to(h.dtype), h, layer.narrow.t())
            if layer is not self.layers[-1]:
                h = torch.relu(h)
        g = torch.softmax(h.float(), 1)
        g.scatter_add_(1, self.target[:, None], torch.full((self.batch, 1), -1.0, device=g.device))
        return (g / self.batch).to(h.dtype)

    def _backward(self, g: torch.Tensor) -> None:
        """Fill dw and db of every layer."""
        for index in reversed(range(len(self.layers))):
            layer = self.layers[index]
            layer.db.copy_(g.sum(0, dtype=torch.float32))  # the bias gradient is dense in meProp too
            part, weight = g, layer.narrow
            if layer.kept:
                layer.chosen = torch_select(g, layer.kept)
                part, weight = g.index_select(1, layer.chosen), weight.index_select(0, layer.chosen)
            product = torch.mm(part.t(), layer.input)
            if layer.chosen is not None and not self.rows_only:
                layer.dw.zero_().index_copy_(0, layer.chosen, product.float())
            else:
                layer.dw.copy_(product)
            if index:
                g = torch.mm(part, weight) * (layer.input > 0)

    def _update(self) -> None:
        """Adam in float32 on every weight and bias; only kept rows of a weight if `rows_only`."""
        if self.rows_only:
            from hwsim.measurement.triton_topk import adam
        dense = [layer for layer in self.layers if not (self.rows_only and layer.kept)]
        weights = [layer.weight for layer in dense] + [layer.bias for layer in self.layers]
        gradients = [layer.dw for layer in dense] + [layer.db for layer in self.layers]
        first = [layer.states[0] for layer in dense] + [layer.states[2] for layer in self.layers]
        second = [layer.states[1] for layer in dense] + [layer.states[3] for layer in self.layers]
        torch._fused_adam_(
            weights, gradients, first, second, [], [self.count] * len(weights), lr=1e-4, beta1=0.9, beta2=0.999,
            weight_decay=0.0, eps=1e-8, amsgrad=False, maximize=False,
        )  # fmt: skip
        for layer in self.layers:
            if self.rows_only and layer.kept and layer.chosen is not None:
                adam(layer.weight, layer.dw, layer.states[0], layer.states[1], 10, layer.chosen.int(), rate=1e-4)
            if layer.narrow is not layer.weight:
                layer.narrow.copy_(layer.weight)


def prepare(case: Case, device: torch.device) -> Prepared:
    """Make a `training_step` case ready; kernel `graph` replays one captured step, `eager` launches its kernels."""
    set_precision(case.dtype)
    network = Network(case, device)
    call = network.step
    if case.kernel == "graph":
        from hwsim.measurement.timer import capture

        # A first check outside the graph; the graph then repeats the very same calls.
        eager = check(network, network.step)
        graph = capture(network.step)

        def checked() -> Check:
            inside = check(network, graph.replay)
            return inside if eager.passed else eager

        return Prepared(graph.replay, checked, *work(network), launches=1, graph=False)
    return Prepared(call, lambda: check(network, network.step), *work(network), graph=False, wall=True)


def check(network: Network, step: Callable[[], object]) -> Check:
    """Run `step` and compare every weight gradient and first moment with float64, for the positions that it kept."""
    wide = [layer.narrow.double() for layer in network.layers]
    biases = [layer.bias.double() for layer in network.layers]
    moments = [layer.states[0].double() for layer in network.layers]
    step()
    h, inputs = network.x.double(), []
    for index, weight in enumerate(wide):
        inputs.append(h)
        h = h @ weight.t() + biases[index]
        if index < len(wide) - 1:
            # The masks must be the step's own: a value near 0 may round to either side.
            h = torch.relu(h) * (network.layers[index + 1].input > 0)
    g = torch.softmax(h, 1)
    g[torch.arange(network.batch, device=g.device), network.target] -= 1
    g /= network.batch
    errors, compared = [], 0
    for index in reversed(range(len(wide))):
        layer = network.layers[index]
        kept = layer.chosen if layer.kept else None
        part, weight = (g, wide[index]) if kept is None else (g[:, kept], wide[index][kept])
        dw = part.t() @ inputs[index]
        rows = slice(None) if kept is None else kept
        errors.append(relative_error(layer.dw if layer.dw.shape == dw.shape else layer.dw[rows], dw))
        expected = moments[index].clone()
        if network.rows_only and kept is not None:
            expected[rows] = 0.9 * expected[rows] + 0.1 * dw
        else:
            expected *= 0.9
            expected[rows] += 0.1 * dw
        errors.append(relative_error(layer.states[0], expected))
        compared += dw.numel() + expected.numel()
        g = part @ weight * (network.layers[index].input > 0) if index else g
    # A gradient passes through every layer's rounding, so it carries several times one GEMM's error.
    tolerance = {"float32": 1e-4, "tf32": 1e-2, "bfloat16": 6e-2, "float16": 2e-2}[network.dtype]
    worst = float("nan") if any(map(math.isnan, errors)) else max(errors)
    return Check("float64 gradients and first moments of all layers", worst, tolerance, compared)


def work(network: Network) -> tuple[int, int]:
    """FLOPs of the step's GEMMs, and the least bytes: GEMM operands, and Adam reading w m v g and writing w m v."""
    size = element_bytes(network.dtype)
    flops = moved = 0
    for index, layer in enumerate(network.layers):
        out, inputs = layer.weight.shape
        used = layer.kept or out
        flops += 2 * network.batch * inputs * (out + used + (used if index else 0))
        moved += size * (network.batch * (inputs + out) + out * inputs)
        moved += size * (network.batch * (used + inputs) + used * inputs) * (2 if index else 1)
        moved += 28 * (used if network.rows_only else out) * inputs + 28 * out
    return flops, moved
