"""What was found for a network: `Assignment`, the content of assignment.json, and its widths one bit less."""

from __future__ import annotations

from typing import ClassVar, Literal, get_args

from hwsim.assignment.cost import Cost, LayerBits, LayerWork, fixed_point_cost, float_cost
from hwsim.assignment.criteria import Grid, accumulator
from hwsim.spec import Spec

TensorClass = Literal["weight", "activation", "weight_gradient", "activation_gradient", "accumulator"]
CLASSES: tuple[TensorClass, ...] = get_args(TensorClass)


class GridRecord(Spec):
    """A `criteria.Grid` in a file."""

    bits: int
    range: int
    """Exponent of two of the predefined dynamic range."""
    signed: bool = True

    @classmethod
    def of(cls, grid: Grid) -> GridRecord:
        """Record a grid."""
        return cls(bits=grid.bits, range=grid.range, signed=grid.signed)

    @property
    def grid(self) -> Grid:
        """The grid that was recorded."""
        return Grid(self.range, self.range + self.signed - self.bits, self.signed)


class LayerRecord(Spec):
    """One layer: its size, its five grids and the statistics they come from."""

    layer: str
    weights: int
    macs: int
    """Multiply-accumulates of an example's forward pass."""
    weight: GridRecord
    activation: GridRecord
    """Of the tensor that the layer reads."""
    weight_gradient: GridRecord
    activation_gradient: GridRecord
    """Of the gradient at the layer's output."""
    accumulator: GridRecord | None
    network_input: bool
    """Whether the layer reads the network's own input, whose width is given, not found."""
    weight_gain: float
    activation_gain: float | None
    weight_gradient_deviation: tuple[float, float]
    """Smallest and largest running deviation."""
    activation_gradient_deviation: float
    jacobian_norm: float

    @property
    def work(self) -> LayerWork:
        """What the cost formulas count."""
        return LayerWork(self.weights, self.macs)

    @property
    def bits(self) -> LayerBits:
        """The five widths."""
        return LayerBits(
            self.weight.bits,
            self.activation.bits,
            self.weight_gradient.bits,
            self.activation_gradient.bits,
            self.accumulator.bits if self.accumulator else 0,
        )


class SweepPoint(Spec):
    """How well the float network does with weights and activations at this offset."""

    least_bits: int
    dev_accuracy: float


class Assignment(Spec):
    """The content of assignment.json."""

    SCHEMA: ClassVar[str | None] = "assignment/1"

    name: str
    model: str
    data: str
    seed: int
    updates: int
    learning_rate_least: float
    float_dev_accuracy: float
    float_test_accuracy: float
    sweep: tuple[SweepPoint, ...]
    tolerance: float
    least_bits: int
    """B_min."""
    layers: tuple[LayerRecord, ...]
    code: str
    """Commit or hash of the code that found it."""
    data_sha256: str

    @property
    def cost(self) -> Cost:
        """What training with these widths costs."""
        return fixed_point_cost([layer.work for layer in self.layers], [layer.bits for layer in self.layers])

    @property
    def float_cost(self) -> Cost:
        """What training in float32 costs."""
        return float_cost([layer.work for layer in self.layers])

    def one_bit_less(self, tensors: TensorClass) -> Assignment:
        """Return the same assignment with every tensor of one class one bit narrower: same range, coarser steps.

        The network's input keeps its width. Under coarser weights accumulators reach up to the new last bit.
        """
        layers = tuple(self._narrower(layer, tensors) for layer in self.layers)
        return self.model_copy(update={"name": f"{self.name}_less_{tensors}", "layers": layers})

    def _narrower(self, layer: LayerRecord, tensors: TensorClass) -> LayerRecord:
        held: GridRecord | None = getattr(layer, tensors)
        if held is None or (tensors == "activation" and layer.network_input):
            return layer
        changes: dict[str, GridRecord | None] = {tensors: GridRecord.of(held.grid.coarser())}
        if tensors == "weight":
            rate, gradient = self.learning_rate_least, layer.weight_gradient.grid
            wider = accumulator(held.grid.coarser(), gradient, rate)
            changes["accumulator"] = None if wider is None else GridRecord.of(wider)
        return layer.model_copy(update=changes)
