"""What a float run shows of each layer: deviations of its gradients, its squared Jacobian, ranges of its tensors."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from hwsim.assignment.criteria import RUNNING
from hwsim.assignment.layers import Layer, assigned_layers, looking_at, products
from hwsim.errors import SpecError, UnsupportedError

READ_EVERY = 200  # updates between two readings: about one epoch of the authors' runs
FEWEST_READINGS = 10


@dataclass
class LayerStatistics:
    """Running averages of one layer, and their extremes over the readings so far."""

    weight_gradient: float = 0.0  # running variance of dL/dW
    activation_gradient: float = 0.0  # running variance of dL/dy at the layer's output
    weight_gradient_most: float = 0.0  # largest and smallest running deviation seen
    weight_gradient_least: float = float("inf")
    activation_gradient_most: float = 0.0
    weight_most: float = 0.0  # largest magnitude of a weight
    input_most: float = 0.0  # largest magnitude of what the layer reads
    input_least: float = 0.0  # smallest value of it; negative ones need a sign
    jacobian: Tensor = field(default_factory=lambda: torch.zeros(0))  # running squared Jacobian (out x in)

    @property
    def jacobian_norm(self) -> float:
        """Largest singular value of the squared Jacobian."""
        return float(torch.linalg.matrix_norm(self.jacobian.double(), 2)) if self.jacobian.numel() else 0.0


NUMBERS = [name for name in LayerStatistics.__dataclass_fields__ if name != "jacobian"]


class GradientStatistics:
    """Watches a training run (`hwsim.training.loop.Observer`) and keeps `LayerStatistics` of each layer.

    Running variances follow every update; every `READ_EVERY` updates, at least ten times in a run, their extremes are
    noted and the Jacobian joins its own running average.
    """

    def __init__(self) -> None:
        self.layers: dict[str, LayerStatistics] = {}
        self._modules: dict[str, Layer] = {}
        self._inputs: dict[str, Tensor] = {}
        self._gradients: dict[str, Tensor] = {}
        self._looking = ExitStack()
        self._every = READ_EVERY

    def watch(self, model: nn.Module, steps: int) -> None:
        """Prepare for a run of so many updates of this network."""
        self._modules = assigned_layers(model)
        self.layers = {path: LayerStatistics() for path in self._modules}
        self._every = max(1, min(READ_EVERY, steps // FEWEST_READINGS))
        self._looking.enter_context(looking_at(self._modules, self._note))

    def look(self, number: int) -> None:
        """Take note of one step."""
        reading = (number + 1) % self._every == 0
        for path, module in self._modules.items():
            if path in self._gradients:
                self._follow(self.layers[path], module, path, number == 0)
                if reading:
                    self._read(self.layers[path], module, path)
        self._inputs.clear()
        self._gradients.clear()

    def leave(self) -> None:
        """Take the hooks off the network."""
        self._looking.close()

    def tensors(self) -> dict[str, Tensor]:
        """Return all that was noted."""
        found = {}
        for path, layer in self.layers.items():
            found[f"{path}.numbers"] = torch.tensor([getattr(layer, name) for name in NUMBERS], dtype=torch.float64)
            found[f"{path}.jacobian"] = layer.jacobian
        return found

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Go on from what `tensors` returned. Raises SpecError if it is of another network."""
        if {name.rpartition(".")[0] for name in tensors} != set(self.layers):
            raise SpecError("the checkpoint holds no gradient statistics of this network; delete it to start anew")
        for path, layer in self.layers.items():
            for name, value in zip(NUMBERS, tensors[f"{path}.numbers"].tolist(), strict=True):
                setattr(layer, name, value)
            layer.jacobian = tensors[f"{path}.jacobian"]

    def _note(self, path: str, module: Layer, read: Tensor, gave: Tensor) -> None:
        """Keep what a layer reads, and the gradient at its output once there is one."""
        if path in self._inputs:
            raise UnsupportedError(f"layer {path!r}: runs twice in a step; assign wants one set of widths for one use")
        self._inputs[path] = read
        gave.register_hook(lambda gradient: self._gradients.__setitem__(path, gradient))

    def _follow(self, layer: LayerStatistics, module: Layer, path: str, first: bool) -> None:
        read, of_weight = self._inputs[path].detach(), module.weight.grad
        assert of_weight is not None
        for name, gradient in (("weight_gradient", of_weight), ("activation_gradient", self._gradients[path])):
            now = float(gradient.var(correction=0))
            setattr(layer, name, now if first else RUNNING * getattr(layer, name) + (1 - RUNNING) * now)
        least, most = (float(value) for value in read.aminmax())
        layer.input_least = min(layer.input_least, least)
        layer.input_most = max(layer.input_most, most, -least)

    def _read(self, layer: LayerStatistics, module: Layer, path: str) -> None:
        deviation = layer.weight_gradient**0.5
        layer.weight_gradient_most = max(layer.weight_gradient_most, deviation)
        layer.weight_gradient_least = min(layer.weight_gradient_least, deviation)
        layer.activation_gradient_most = max(layer.activation_gradient_most, layer.activation_gradient**0.5)
        layer.weight_most = max(layer.weight_most, float(module.weight.detach().abs().max()))
        squared = squared_jacobian(module, self._inputs[path].detach(), self._gradients[path])
        layer.jacobian = squared if not layer.jacobian.numel() else RUNNING * layer.jacobian + (1 - RUNNING) * squared


def squared_jacobian(layer: Layer, read: Tensor, gradient: Tensor) -> Tensor:
    """Return by which factor a variance at the layer's output gradient appears in its weight gradient, (out x in).

    dL/dW sums gradient times input over batch and positions, so a variance v of each gradient gives v times the sum
    of squared inputs. Gradients of 0 (behind a closed ReLU, unchosen by a pooling) stay 0 when rounded and do not
    count. Elements of a convolution's kernel are averaged.
    """
    held = torch.zeros_like(layer.weight, requires_grad=True)
    with torch.enable_grad():
        gave = products(layer, read.square(), held)
        (found,) = torch.autograd.grad(gave, held, (gradient != 0).to(gave.dtype))
    return found.flatten(2).mean(2) if found.ndim > 2 else found
