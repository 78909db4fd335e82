"""The work behind a measurement as a Workload, so that an accelerator model can be asked for the same thing.

Shapes and formats are the measurement's; kept positions are evenly spread stand-ins, since a machine model needs
their number
and pattern and not the values behind them. Kernels that no model here describes (sparse libraries, 2:4) give None.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from hwsim.arithmetic.mac import MacSpec
from hwsim.arithmetic.named import parse_format
from hwsim.arithmetic.number import NumberFormat
from hwsim.measurement.record import Measurement
from hwsim.workload import ConvGeometry, Gemm, Op, OpKind, Phase, Selection, Tensor, Workload

PIXELS, CLASSES = 784, 10  # of the measured training step
FLOAT32 = "float32"
ADAM = {"multiply": 7, "add": 4, "divide": 2, "square_root": 1}


def workload_of(measurement: Measurement) -> Workload | None:
    """Return what one call of the measured kernel does, or None for a kernel that has no model."""
    draft = _Draft(measurement.id)
    shape, dtype = measurement.shape, measurement.dtype
    match measurement.family:
        case "dense_gemm":
            draft.gemm(measurement.operation, shape["m"], shape["n"], shape["k"], dtype)
        case "convolution":
            draft.convolution(measurement.operation, shape, dtype)
        case "memory":
            if not draft.memory(measurement.operation, shape["n"], dtype):
                return None
        case "optimizer":
            draft.optimizer(measurement.operation, shape)
        case "topk_backward":
            if not draft.topk(measurement.operation, measurement.kernel, shape, dtype):
                return None
        case "training_step":
            draft.step(shape, dtype, rows_only=measurement.operation == "adam_rows")
        case _:
            return None
    return Workload(
        measurement.id, int(shape.get("batch", shape.get("m", 1))), draft.tensors, tuple(draft.ops), draft.selections
    )


@dataclass
class _Draft:
    """A workload in the making."""

    name: str
    tensors: dict[str, Tensor] = field(default_factory=dict)
    ops: list[Op] = field(default_factory=list)
    selections: dict[str, Selection] = field(default_factory=dict)

    def tensor(
        self, id: str, role: str, shape: tuple[int, ...], dtype: str | NumberFormat, persistent: bool = False
    ) -> str:
        """Define a tensor once; returns its id."""
        self.tensors.setdefault(id, Tensor(id, role, shape, parse_format(dtype), persistent=persistent))
        return id

    def gemm(
        self,
        gemm: str,
        m: int,
        n: int,
        k: int,
        dtype: str,
        layer: str = "layer",
        tensors: tuple[str, str, str] | None = None,
        selection: str | None = None,
    ) -> None:
        """One GEMM of a linear layer, operands stored as the layer stores them."""
        kind = Gemm(gemm)
        stored_a = (k, m) if kind is Gemm.GRAD_WEIGHT else (m, k)
        stored_b = (n, k) if kind is Gemm.OUTPUT else (k, n)
        if dtype.startswith("float8"):  # FP8 kernels find both operands along k
            stored_a, stored_b = (m, k), (n, k)
        role = {Gemm.OUTPUT: "activation", Gemm.GRAD_INPUT: "gradient", Gemm.GRAD_WEIGHT: "weight_gradient"}[kind]
        names = tensors or (f"{layer}.{gemm}.a", f"{layer}.{gemm}.b", f"{layer}.{gemm}.result")
        result_dtype = "bfloat16" if dtype.startswith("float8") else dtype
        self.tensor(names[0], "activation" if kind is Gemm.OUTPUT else "gradient", stored_a, dtype)
        self.tensor(names[1], "input" if kind is Gemm.GRAD_WEIGHT else "weight", stored_b, dtype)
        self.tensor(names[2], role, (m, n), result_dtype)
        self.ops.append(
            Op(
                f"{layer}.{gemm}",
                OpKind.GEMM,
                Phase.FORWARD if kind is Gemm.OUTPUT else Phase.BACKWARD,
                layer,
                names[:2],
                (names[2],),
                gemm=kind,
                m=m,
                n=n,
                k=k,
                transposed=(stored_a != (m, k), stored_b != (k, n)),
                mac=MacSpec(FLOAT32),
                selection=selection,
                selected_axis=None if selection is None else "k" if kind is Gemm.GRAD_INPUT else "m",
            )
        )

    def convolution(self, gemm: str, shape: Mapping[str, int], dtype: str) -> None:
        """One pass of a convolution, as the GEMM that im2col would make of it."""
        batch, channels, size, filters = shape["batch"], shape["channels"], shape["size"], shape["out_channels"]
        width, stride = shape["filter"], shape["stride"]
        padding = (width - 1) // 2
        out = (size + 2 * padding - width) // stride + 1
        geometry = ConvGeometry(
            batch, channels, (size, size), filters, (out, out), (width, width), (stride, stride), (padding, padding)
        )
        x = self.tensor("x", "input", (batch, channels, size, size), dtype)
        weight = self.tensor("weight", "weight", (filters, channels, width, width), dtype)
        g = self.tensor("g", "gradient", (batch, filters, out, out), dtype)
        taps = width * width
        reads, written, axes = {
            "output": ((x, weight), g, (batch * out * out, filters, channels * taps)),
            "grad_input": ((g, weight), x, (batch * size * size, channels, filters * taps)),
            "grad_weight": ((g, x), weight, (filters, channels * taps, batch * out * out)),
        }[gemm]
        kind = Gemm(gemm)
        phase = Phase.FORWARD if kind is Gemm.OUTPUT else Phase.BACKWARD
        m, n, k = axes
        self.ops.append(
            Op(
                f"conv.{gemm}",
                OpKind.GEMM,
                phase,
                "conv",
                reads,
                (written,),
                gemm=kind,
                m=m,
                n=n,
                k=k,
                transposed=(kind is Gemm.GRAD_WEIGHT, kind is Gemm.OUTPUT),
                mac=MacSpec(FLOAT32),
                conv=geometry,
            )
        )

    def simple(
        self,
        id: str,
        kind: OpKind,
        reads: tuple[str, ...],
        writes: tuple[str, ...],
        elements: int,
        operations: dict[str, int] | None = None,
        phase: Phase = Phase.BACKWARD,
        selection: str | None = None,
        layer: str = "layer",
    ) -> None:
        """An op that is no GEMM."""
        self.ops.append(
            Op(
                id,
                kind,
                phase,
                layer,
                reads,
                writes,
                elements=elements,
                operations=operations or {},
                selection=selection,
            )
        )

    def memory(self, operation: str, n: int, dtype: str) -> bool:
        """An operation limited by memory; False for one without a model."""
        x = self.tensor("x", "activation", (n,), dtype)
        if operation.startswith("cast_"):
            result = self.tensor("result", "activation", (n,), operation.removeprefix("cast_"))
            self.simple("cast", OpKind.CAST, (x,), (result,), n)
        elif operation == "transpose":
            self.simple("transpose", OpKind.TRANSPOSE, (x,), (self.tensor("result", "activation", (n,), dtype),), n)
        elif operation == "column_sum":
            self.simple(
                "sum", OpKind.REDUCE, (x,), (self.tensor("result", "statistics", (1024,), FLOAT32),), n, {"add": 1}
            )
        elif operation in ("add", "relu_grad", "copy", "fill"):
            y = self.tensor("y", "activation", (n,), dtype)
            result = self.tensor("result", "activation", (n,), dtype)
            reads = {"copy": (x,), "fill": ()}.get(operation, (x, y))
            work = {"add": {"add": 1}, "relu_grad": {"compare": 1}}.get(operation, {})
            self.simple(operation, OpKind.ELEMENTWISE, reads, (result,), n, work)
        else:
            return False
        self._drop_unused()
        return True

    def optimizer(self, operation: str, shape: Mapping[str, int], layer: str = "layer") -> None:
        """An update of a float32 weight (out, in); `adam_rows` moves only the kept rows."""
        rows = shape["kept"] if operation == "adam_rows" else shape["out"]
        size = (rows, shape["inputs"])
        weight = self.tensor(f"{layer}.rows", "weight", size, FLOAT32, persistent=True)
        gradient = self.tensor(f"{layer}.rows.grad", "weight_gradient", size, FLOAT32)
        states = [] if operation == "sgd" else [f"{layer}.m", f"{layer}.v"]
        for state in states:
            self.tensor(state, "optimizer_state", size, FLOAT32, persistent=True)
        work = {"multiply": 1, "add": 1} if operation == "sgd" else ADAM
        self.simple(
            f"{layer}.update",
            OpKind.UPDATE,
            (weight, gradient, *states),
            (weight, *states),
            rows * shape["inputs"],
            work,
            Phase.UPDATE,
            layer=layer,
        )

    def topk(self, operation: str, kernel: str, shape: Mapping[str, int], dtype: str) -> bool:
        """Top-k backward of a layer, whole or one part; False for a kernel without a model."""
        batch, out, inputs, kept = shape["batch"], shape["out"], shape["inputs"], shape.get("kept", shape["out"])
        if kernel in ("torch_sparse", "sparse_2to4"):
            return False
        if operation in ("backward", "backward_with_zeros") and kernel == "dense":
            self.gemm("grad_input", batch, inputs, out, dtype, tensors=("g", "weight", "dx"))
            self.gemm("grad_weight", out, inputs, batch, dtype, tensors=("g", "x", "dw"))
        elif operation == "backward":
            gathered = kernel == "torch"
            self.selected_backward("layer", batch, out, inputs, kept, dtype, gathered)
        elif operation in (
            "grad_input",
            "grad_weight",
        ):  # on operands that are gathered already, or gathered while read
            m, n, k = (batch, inputs, kept) if operation == "grad_input" else (kept, inputs, batch)
            self.gemm(operation, m, n, k, dtype)
        elif operation in ("select_batch", "select_example"):
            g = self.tensor("g", "gradient", (batch, out), dtype)
            self.select("layer", g, batch, out, kept, "batch" if operation == "select_batch" else "example")
        elif operation == "gather":
            g, weight = (
                self.tensor("g", "gradient", (batch, kept), dtype),
                self.tensor("weight", "weight", (kept, inputs), dtype),
            )
            for source in (g, weight):
                size = self.tensors[source]
                target = self.tensor(f"{source}.kept", size.role, size.shape, dtype)
                self.simple(f"{source}.gather", OpKind.GATHER, (source,), (target,), size.elements)
        elif operation == "scatter":
            rows, dw = (
                self.tensor("rows", "weight_gradient", (kept, inputs), dtype),
                self.tensor("dw", "weight_gradient", (out, inputs), dtype),
            )
            self.simple("scatter", OpKind.SCATTER, (rows,), (dw,), out * inputs)
        elif operation in ("grad_input_example", "grad_weight_example"):
            gemm = operation.removesuffix("_example")
            selection = None
            if kernel == "triton_rows":
                selection = self.chosen("layer", batch, out, kept, "example")
            m, n, k = (batch, inputs, out) if gemm == "grad_input" else (out, inputs, batch)
            self.gemm(
                gemm,
                m,
                n,
                k,
                dtype,
                tensors=("g", "weight" if gemm == "grad_input" else "x", "result"),
                selection=selection,
            )
        else:
            return False
        return True

    def selected_backward(
        self,
        layer: str,
        batch: int,
        out: int,
        inputs: int,
        kept: int,
        dtype: str,
        gathered: bool,
        has_input: bool = True,
        rows_only: bool = False,
        names: tuple[str, str, str] = ("g", "weight", "x"),
    ) -> None:
        """Selection over the batch, both products on the kept columns, and the rows of dw back to their places."""
        g = self.tensor(names[0], "gradient", (batch, out), dtype)
        selection = self.select(layer, g, batch, out, kept, "batch")
        source, index = g, f"{layer}.index"
        if gathered:
            source = self.tensor(f"{g}.kept", "gradient", (batch, out), dtype)
            self.simple(
                f"{layer}.gather", OpKind.GATHER, (g, index), (source,), batch * out, selection=selection, layer=layer
            )
        if has_input:
            self.gemm("grad_input", batch, inputs, out, dtype, layer, (source, names[1], f"{layer}.dx"), selection)
        written = f"{layer}.dw.kept" if not rows_only else f"{layer}.dw"
        self.gemm("grad_weight", out, inputs, batch, dtype, layer, (source, names[2], written), selection)
        if not rows_only:
            whole = self.tensor(f"{layer}.dw", "weight_gradient", (out, inputs), dtype)
            self.simple(
                f"{layer}.scatter",
                OpKind.SCATTER,
                (written, index),
                (whole,),
                out * inputs,
                selection=selection,
                layer=layer,
            )

    def select(self, layer: str, g: str, rows: int, extent: int, kept: int, rank_over: str) -> str:
        """The op that finds the kept positions of `g`; returns the selection's id."""
        selection = self.chosen(layer, rows, extent, kept, rank_over)
        shape = (kept,) if rank_over == "batch" else (rows, kept)
        index = self.tensor(f"{layer}.index", "index", shape, "uint32")
        work = {"compare": 1, "add": 1} if rank_over == "batch" else {"compare": 1}
        self.simple(
            f"{layer}.select", OpKind.SELECT, (g,), (index,), rows * extent, work, selection=selection, layer=layer
        )
        return selection

    def chosen(self, layer: str, rows: int, extent: int, kept: int, rank_over: str) -> str:
        """A selection with evenly spread positions, shifted from row to row for the example scope."""
        id = f"{layer}.selection"
        base = np.linspace(0, extent - 1, kept).round().astype(np.int64)
        if rank_over == "batch":
            self.selections[id] = Selection(
                id, rank_over, "element", rows, extent, kept, (np.unique(base).astype(np.int32),)
            )
        else:
            every = [np.sort((base + 7919 * row) % extent) for row in range(rows)]
            indices = np.concatenate(every).astype(np.int32)
            offsets = np.arange(rows + 1, dtype=np.int64) * kept
            self.selections[id] = Selection(id, rank_over, "element", rows, extent, kept, (indices,), (offsets,))
        return id

    def step(self, shape: Mapping[str, int], dtype: str, rows_only: bool) -> None:
        """The whole training step of `training_step`: forward, loss, backward, Adam."""
        batch, kept = shape["batch"], shape["kept"]
        sizes = [PIXELS, *[shape["hidden"]] * shape["depth"], CLASSES]
        layers = list(pairwise(sizes))
        for index, (inputs, out) in enumerate(layers):
            name = f"fc{index}"
            x = self.tensor(f"h{index}", "input" if index == 0 else "activation", (batch, inputs), dtype)
            self.gemm("output", batch, out, inputs, dtype, name, (x, f"{name}.weight", f"{name}.z"))
            if index < len(layers) - 1:
                h = self.tensor(f"h{index + 1}", "activation", (batch, out), dtype)
                self.simple(
                    f"{name}.relu",
                    OpKind.ELEMENTWISE,
                    (f"{name}.z",),
                    (h,),
                    batch * out,
                    {"compare": 1},
                    Phase.FORWARD,
                    layer=name,
                )
        g = self.tensor(f"g{len(layers)}", "gradient", (batch, CLASSES), dtype)
        self.simple(
            "loss",
            OpKind.ELEMENTWISE,
            (f"fc{len(layers) - 1}.z",),
            (g,),
            batch * CLASSES,
            {"exponential": 1, "add": 2, "divide": 1},
            Phase.LOSS,
            layer="",
        )
        for index in reversed(range(len(layers))):
            self._layer_backward(index, layers[index], batch, kept if index < len(layers) - 1 else 0, dtype, rows_only)
        for index, (inputs, out) in enumerate(layers):
            partial = rows_only and kept and index < len(layers) - 1
            self.optimizer(
                "adam_rows" if partial else "adam", {"out": out, "inputs": inputs, "kept": kept}, f"fc{index}"
            )

    def _layer_backward(
        self, index: int, sizes: tuple[int, int], batch: int, kept: int, dtype: str, rows_only: bool
    ) -> None:
        inputs, out = sizes
        name, g, x = f"fc{index}", f"g{index + 1}", f"h{index}"
        self.tensor(g, "gradient", (batch, out), dtype)
        bias = self.tensor(f"{name}.bias.grad", "statistics", (out,), FLOAT32)
        self.simple(f"{name}.bias.grad", OpKind.REDUCE, (g,), (bias,), batch * out, {"add": 1}, layer=name)
        if kept and kept < out:
            self.selected_backward(
                name, batch, out, inputs, kept, dtype, True, index > 0, rows_only, (g, f"{name}.weight", x)
            )
        else:
            if index:
                self.gemm("grad_input", batch, inputs, out, dtype, name, (g, f"{name}.weight", f"{name}.dx"))
            self.gemm("grad_weight", out, inputs, batch, dtype, name, (g, x, f"{name}.dw"))
        if index:
            below = self.tensor(f"g{index}", "gradient", (batch, inputs), dtype)
            self.simple(
                f"{name}.mask",
                OpKind.ELEMENTWISE,
                (f"{name}.dx", x),
                (below,),
                batch * inputs,
                {"compare": 1},
                layer=name,
            )

    def _drop_unused(self) -> None:
        used = {id for op in self.ops for id in (*op.reads, *op.writes)}
        self.tensors = {id: tensor for id, tensor in self.tensors.items() if id in used}
