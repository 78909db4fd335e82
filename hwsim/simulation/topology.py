"""Workloads from layer shapes: SCALE-Sim's topology files, or a list of layers, forward only or as a training step.

A topology file is CSV with a header; a row is a convolution (name, input height, input width, filter height, filter
width, channels, filters, stride) or, if the header names M, N and K, a GEMM (name, M, N, K). Sizes are of one image;
`batch` images make a step. Input sizes in these files include padding.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hwsim.arithmetic.mac import MacSpec
from hwsim.arithmetic.named import parse_format
from hwsim.arithmetic.number import NumberFormat
from hwsim.errors import SpecError
from hwsim.workload import ConvGeometry, Gemm, Op, OpKind, Phase, Selection, Tensor, Workload


@dataclass(frozen=True)
class LinearShape:
    """A layer that multiplies `rows` rows of `inputs` with a matrix of `inputs` x `outputs`, for each example."""

    name: str
    inputs: int
    outputs: int
    rows: int = 1


@dataclass(frozen=True)
class ConvShape:
    """A convolution of one image."""

    name: str
    channels: int
    size: tuple[int, int]
    filters: int
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    round_up: bool = False  # the last, incomplete position counts, as SCALE-Sim has it

    @property
    def out_size(self) -> tuple[int, int]:
        """Output height and width."""
        height, width = (self._positions(axis) for axis in (0, 1))
        return height, width

    def _positions(self, axis: int) -> int:
        room = self.size[axis] + 2 * self.padding[axis] - self.kernel[axis]
        return (-(-room // self.stride[axis]) if self.round_up else room // self.stride[axis]) + 1


Shape = LinearShape | ConvShape


@dataclass(frozen=True)
class RandomTopK:
    """Stands in for a recorded selection where there is no training: `kept` uniformly random outputs of each layer."""

    kept: int
    rank_over: str = "batch"
    seed: int = 0
    steps: int = 1


def read_topology(source: Path | str, *, round_up: bool = False) -> list[Shape]:
    """Read a SCALE-Sim topology file (a path, or its text if it holds a line break).

    Raises:
        SpecError: a row that cannot be read, with file and line.
    """
    if isinstance(source, str) and "\n" in source:
        file, text = "topology", source
    else:
        file = str(source)
        try:
            text = Path(source).read_text(encoding="utf-8")
        except OSError as error:
            raise SpecError(f"{file}: {error.strerror or error}") from None
    rows = [(number, [cell.strip() for cell in row]) for number, row in enumerate(csv.reader(text.splitlines()), 1)]
    rows = [(number, [cell for cell in row if cell]) for number, row in rows]
    rows = [(number, row) for number, row in rows if row]
    if not rows:
        raise SpecError(f"{file}: is empty, expected a header and one row a layer")
    is_gemm = {"m", "n", "k"} <= {cell.lower() for cell in rows[0][1]}
    return [_read_row(file, number, row, is_gemm, round_up) for number, row in rows[1:]]


def _read_row(file: str, number: int, row: list[str], is_gemm: bool, round_up: bool) -> Shape:
    name, *cells = row
    try:
        sizes = [int(cell) for cell in cells]
    except ValueError:
        wrong = next(cell for cell in cells if not cell.lstrip("-").isdigit())
        raise SpecError(f"{file}:{number}: {name}: got {wrong!r}, expected a whole number") from None
    expected = (3,) if is_gemm else (7, 8)
    if len(sizes) not in expected or min(sizes) < 1:
        form = (
            "name, M, N, K"
            if is_gemm
            else "name, height, width, filter height, filter width, channels, filters, stride"
        )
        raise SpecError(f"{file}:{number}: {name}: got {len(sizes)} numbers {sizes}, expected {form}, each 1 or more")
    if is_gemm:
        m, n, k = sizes
        return LinearShape(name, k, n, m)
    height, width, filter_height, filter_width, channels, filters, *stride = sizes
    if filter_height > height or filter_width > width:
        raise SpecError(f"{file}:{number}: {name}: got a filter larger than its input")
    strides = (stride[0], stride[-1])
    return ConvShape(
        name, channels, (height, width), filters, (filter_height, filter_width), strides, round_up=round_up
    )


def workload_of(
    layers: Sequence[Shape],
    *,
    name: str = "topology",
    batch: int = 1,
    format: str | NumberFormat = "float32",
    mac: MacSpec | None = None,
    training: bool = False,
    optimizer_states: int = 2,
    topk: RandomTopK | None = None,
) -> Workload:
    """A workload of these layers: each GEMM alone, or a training step of the chain with ReLU between the layers.

    The training step has forward, ReLU, loss gradient, grad_input (not for the first layer), grad_weight and an
    optimizer update with `optimizer_states` states per weight (2: Adam). `topk` prunes the backward GEMMs of all but
    the last layer.
    """
    if not layers:
        raise SpecError(f"workload {name}: got no layers, expected at least one")
    builder = _Builder(batch, parse_format(format), mac or MacSpec(order="accelerator"), optimizer_states, topk)
    builder.forward(layers, training)
    if training:
        builder.backward(layers)
    steps = tuple(range(topk.steps if topk else 1))
    return Workload(name, batch, builder.tensors, tuple(builder.ops), builder.selections, steps)


class _Builder:
    def __init__(self, batch: int, number: NumberFormat, mac: MacSpec, states: int, topk: RandomTopK | None) -> None:
        self.batch = batch
        self.format = number
        self.mac = mac
        self.states = states
        self.topk = topk
        self.tensors: dict[str, Tensor] = {}
        self.ops: list[Op] = []
        self.selections: dict[str, Selection] = {}
        self.inputs: list[str] = []

    def tensor(self, id: str, role: str, shape: Iterable[int], persistent: bool = False) -> str:
        self.tensors.setdefault(id, Tensor(id, role, tuple(shape), self.format, persistent=persistent))
        return id

    def vector(
        self,
        id: str,
        kind: OpKind,
        phase: Phase,
        layer: str,
        reads: Sequence[str],
        writes: Sequence[str],
        **operations: int,
    ) -> None:
        elements = self.tensors[writes[0]].elements
        self.ops.append(
            Op(id, kind, phase, layer, tuple(reads), tuple(writes), elements=elements, operations=operations)
        )

    def forward(self, layers: Sequence[Shape], training: bool) -> None:
        previous = ""
        for number, layer in enumerate(layers):
            into = previous
            if not training or not previous or self.tensors[previous].elements != self.batch * _inputs(layer):
                into = self.tensor(f"{layer.name}.input", "input" if not previous else "activation", self._image(layer))
                if training and previous:  # a pooling or reshaping layer between the two
                    self.vector(
                        f"{layer.name}.resize",
                        OpKind.ELEMENTWISE,
                        Phase.FORWARD,
                        layer.name,
                        [previous],
                        [into],
                        compare=1,
                    )
            self.inputs.append(into)
            output = self.gemm(layer, Gemm.OUTPUT, Phase.FORWARD, (into, self._weight(layer)), f"{layer.name}.output")
            previous = output
            if training and number + 1 < len(layers):
                previous = self.tensor(f"{layer.name}.relu.output", "activation", self.tensors[output].shape)
                self.vector(
                    f"{layer.name}.relu", OpKind.ELEMENTWISE, Phase.FORWARD, layer.name, [output], [previous], compare=1
                )
        self.last = previous

    def backward(self, layers: Sequence[Shape]) -> None:
        gradient = self.tensor(f"{self.last}.grad", "gradient", self.tensors[self.last].shape)
        self.vector("loss.backward", OpKind.ELEMENTWISE, Phase.LOSS, "", [self.last], [gradient], add=2, exponential=1)
        for number in range(len(layers) - 1, -1, -1):
            layer = layers[number]
            output = f"{layer.name}.output"
            if number + 1 < len(layers):
                into = self.tensor(f"{output}.grad", "gradient", self.tensors[output].shape)
                self.vector(
                    f"{layer.name}.relu.backward",
                    OpKind.ELEMENTWISE,
                    Phase.BACKWARD,
                    layer.name,
                    [gradient, f"{layer.name}.relu.output"],
                    [into],
                    compare=1,
                )
                gradient = into
            selection = self._select(layer, gradient) if self.topk and number + 1 < len(layers) else None
            pruned = f"{gradient}.kept" if selection else gradient
            weight = self._weight(layer)
            if number:
                into = self.tensor(f"{self.inputs[number]}.grad", "gradient", self.tensors[self.inputs[number]].shape)
                self.gemm(layer, Gemm.GRAD_INPUT, Phase.BACKWARD, (pruned, weight), into, selection, "k")
            whole = self.tensor(f"{weight}.grad", "weight_gradient", self.tensors[weight].shape)
            written = (
                self.tensor(f"{whole}.kept", "weight_gradient", self.tensors[weight].shape) if selection else whole
            )
            self.gemm(layer, Gemm.GRAD_WEIGHT, Phase.BACKWARD, (pruned, self.inputs[number]), written, selection, "m")
            if selection:
                self.ops.append(
                    Op(
                        f"{layer.name}.scatter",
                        OpKind.SCATTER,
                        Phase.BACKWARD,
                        layer.name,
                        (written, f"{gradient}.index"),
                        (whole,),
                        elements=self.tensors[whole].elements,
                        selection=selection,
                    )
                )
            if number:
                gradient = into
                if self.tensors[self.inputs[number]].id == f"{layer.name}.input":  # undo the resizing
                    back = f"{layers[number - 1].name}.relu.output"
                    gradient = self.tensor(f"{back}.grad", "gradient", self.tensors[back].shape)
                    self.vector(
                        f"{layer.name}.resize.backward",
                        OpKind.ELEMENTWISE,
                        Phase.BACKWARD,
                        layer.name,
                        [into],
                        [gradient],
                        compare=1,
                    )
        for layer in layers:
            self._update(layer)

    def gemm(
        self,
        layer: Shape,
        gemm: Gemm,
        phase: Phase,
        reads: tuple[str, str],
        writes: str,
        selection: str | None = None,
        axis: str | None = None,
    ) -> str:
        rows, inputs, outputs = self.batch * _rows(layer), _gemm_inputs(layer), _outputs(layer)
        m, n, k = {
            Gemm.OUTPUT: (rows, outputs, inputs),
            Gemm.GRAD_INPUT: (rows, inputs, outputs),
            Gemm.GRAD_WEIGHT: (outputs, inputs, rows),
        }[gemm]
        transposed = {
            Gemm.OUTPUT: (False, True),
            Gemm.GRAD_INPUT: (False, False),
            Gemm.GRAD_WEIGHT: (True, False),
        }[gemm]
        conv = isinstance(layer, ConvShape)
        shape: tuple[int, ...] = (self.batch, outputs, *layer.out_size) if isinstance(layer, ConvShape) else (m, n)
        if gemm is Gemm.OUTPUT:
            self.tensor(writes, "activation", shape)
        self.ops.append(
            Op(
                f"{layer.name}.{gemm}",
                OpKind.GEMM,
                phase,
                layer.name,
                reads,
                (writes,),
                gemm=gemm,
                m=m,
                n=n,
                k=k,
                transposed=transposed,
                mac=self.mac,
                conv=self._geometry(layer) if conv else None,
                selection=selection,
                selected_axis=axis if selection else None,
            )
        )
        return writes

    def _select(self, layer: Shape, gradient: str) -> str | None:
        assert self.topk is not None
        outputs, kept = _outputs(layer), min(self.topk.kept, _outputs(layer))
        if kept >= outputs:
            return None
        rows = self.batch * (1 if isinstance(layer, ConvShape) else _rows(layer))
        rng = np.random.default_rng([self.topk.seed, len(self.ops)])
        id = f"{gradient}.selection"
        indices, offsets = [], []
        for _ in range(self.topk.steps):
            if self.topk.rank_over == "batch":
                indices.append(np.sort(rng.choice(outputs, kept, replace=False)).astype(np.int32))
                continue
            chosen = np.argpartition(rng.random((rows, outputs)), kept - 1, axis=1)[:, :kept]
            indices.append(np.sort(chosen, axis=1).astype(np.int32).ravel())
            offsets.append(np.arange(rows + 1, dtype=np.int64) * kept)
        unit = "channel" if isinstance(layer, ConvShape) else "element"
        self.selections[id] = Selection(
            id, self.topk.rank_over, unit, rows, outputs, kept, tuple(indices), tuple(offsets)
        )
        index = Tensor(f"{gradient}.index", "index", (len(indices[0]),), parse_format("uint16"))
        self.tensors[index.id] = index
        source = self.tensors[gradient]
        self.tensor(f"{gradient}.kept", "gradient", source.shape)
        work = {"compare": 1, **({"add": 1} if self.topk.rank_over == "batch" else {})}
        self.ops.append(
            Op(
                f"{layer.name}.select",
                OpKind.SELECT,
                Phase.BACKWARD,
                layer.name,
                (gradient,),
                (index.id,),
                elements=source.elements,
                operations=work,
                selection=id,
            )
        )
        self.ops.append(
            Op(
                f"{layer.name}.gather",
                OpKind.GATHER,
                Phase.BACKWARD,
                layer.name,
                (gradient, index.id),
                (f"{gradient}.kept",),
                elements=source.elements,
                selection=id,
            )
        )
        return id

    def _update(self, layer: Shape) -> None:
        weight = self._weight(layer)
        shape = self.tensors[weight].shape
        states = [
            self.tensor(f"{weight}.state{number}", "optimizer_state", shape, True) for number in range(self.states)
        ]
        self.vector(
            f"{weight}.update",
            OpKind.UPDATE,
            Phase.UPDATE,
            layer.name,
            [weight, f"{weight}.grad", *states],
            [weight, *states],
            multiply=1 + 2 * self.states,
            add=1 + 2 * self.states,
        )

    def _weight(self, layer: Shape) -> str:
        shape = (_outputs(layer), _gemm_inputs(layer))
        return self.tensor(f"{layer.name}.weight", "weight", shape, True)

    def _image(self, layer: Shape) -> tuple[int, ...]:
        if isinstance(layer, ConvShape):
            return (self.batch, layer.channels, *layer.size)
        return (self.batch * layer.rows, layer.inputs)

    def _geometry(self, layer: Shape) -> ConvGeometry:
        assert isinstance(layer, ConvShape)
        return ConvGeometry(
            self.batch,
            layer.channels,
            layer.size,
            layer.filters,
            layer.out_size,
            layer.kernel,
            layer.stride,
            layer.padding,
        )


def _inputs(layer: Shape) -> int:
    if isinstance(layer, ConvShape):
        return layer.channels * layer.size[0] * layer.size[1]
    return layer.rows * layer.inputs


def _gemm_inputs(layer: Shape) -> int:
    return layer.channels * layer.kernel[0] * layer.kernel[1] if isinstance(layer, ConvShape) else layer.inputs


def _outputs(layer: Shape) -> int:
    return layer.filters if isinstance(layer, ConvShape) else layer.outputs


def _rows(layer: Shape) -> int:
    return layer.out_size[0] * layer.out_size[1] if isinstance(layer, ConvShape) else layer.rows
