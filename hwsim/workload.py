"""What a training step does, as plain data: tensors, operations on them, and which slices top-k kept.

A `Workload` is the one thing that training hands to simulation and measurement. It holds no tensor values and
needs no torch. The graph (shapes, formats, order) is the same for every recorded step; what differs from step to
step are the kept indices and the measured densities, stored as one entry per recorded step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from math import ceil, prod

import numpy as np

from hwsim.arithmetic.mac import MacSpec
from hwsim.arithmetic.number import NumberFormat
from hwsim.errors import SpecError


class OpKind(StrEnum):
    """What an operation does to its tensors."""

    GEMM = "gemm"  # m x k times k x n, `groups` times; a convolution carries its geometry as well
    ELEMENTWISE = "elementwise"  # `elements` results, each from the same place of every input
    REDUCE = "reduce"  # `elements` inputs summed (or maximized) to fewer outputs
    CAST = "cast"  # `elements` values stored in another format
    SELECT = "select"  # find the kept slices of a gradient: scores, ranking, indices
    GATHER = "gather"  # copy the kept slices together
    SCATTER = "scatter"  # put kept slices back to their places
    TRANSPOSE = "transpose"  # the copy that a layout forces
    UPDATE = "update"  # the optimizer, with its state traffic


class Phase(StrEnum):
    """When in the step an operation runs."""

    FORWARD = "forward"
    LOSS = "loss"
    BACKWARD = "backward"
    UPDATE = "update"


class Gemm(StrEnum):
    """The three GEMMs of a layer. Axes m, n, k (k reduced):

    output: m batch rows, n out, k in · grad_input: m batch rows, n in, k out · grad_weight: m out, n in, k batch rows.
    """

    OUTPUT = "output"
    GRAD_INPUT = "grad_input"
    GRAD_WEIGHT = "grad_weight"


@dataclass(frozen=True)
class Tensor:
    """A stored tensor: shape, number format and layout, never values."""

    id: str  # "fc1.weight", "fc1.output", "fc1.output.grad"
    role: str  # input weight bias activation gradient weight_gradient optimizer_state statistics index loss
    shape: tuple[int, ...]
    format: NumberFormat
    layout: str = "row_major"  # or "column_major": which of the last two axes is contiguous
    persistent: bool = False  # lives across steps (weights, optimizer state)
    density: tuple[float, ...] = ()  # share of non-zero elements, one per recorded step; empty: not measured

    @property
    def elements(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def bytes(self) -> int:
        """Stored bytes, block scales included, rounded up to whole bytes."""
        return ceil(self.elements * self.format.bits_per_element / 8)


@dataclass(frozen=True)
class ConvGeometry:
    """A convolution behind a GEMM (of one group): sizes in elements, pairs are (height, width)."""

    batch: int
    in_channels: int
    in_size: tuple[int, int]
    out_channels: int
    out_size: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1


@dataclass(frozen=True, eq=False)
class Selection:
    """The slices that top-k kept, for every recorded step.

    ``rank_over == "batch"``: one sorted vector of kept positions in [0, extent) for the whole batch.
    ``rank_over == "example"``: CSR over `rows`; row r keeps ``indices[offsets[r]:offsets[r + 1]]``.
    Zeros are never kept, so fewer than `kept` positions may stand in a row.
    """

    id: str  # "fc1.output.grad.selection"
    rank_over: str  # "batch" or "example"
    unit: str  # "element" or "channel"
    rows: int
    extent: int
    kept: int
    indices: tuple[np.ndarray, ...]  # int32, one array a recorded step
    offsets: tuple[np.ndarray, ...] = ()  # int64 of length rows + 1, one array a recorded step; example scope only

    def union(self, step: int) -> np.ndarray:
        """Positions that at least one row kept in the recorded step, sorted (int32)."""
        return np.unique(self.indices[step]).astype(np.int32)

    def row_counts(self, step: int) -> np.ndarray:
        """How many positions each row kept in the recorded step (int64, length `rows`)."""
        if self.rank_over == "batch":
            return np.full(self.rows, len(self.indices[step]), dtype=np.int64)
        return np.diff(self.offsets[step])


@dataclass(frozen=True)
class Op:
    """One operation of the step. Ops stand in execution order, which is a topological order of the graph."""

    id: str  # "fc1.grad_weight"
    kind: OpKind
    phase: Phase
    layer: str  # path of the layer in the network; "" for the loss and the optimizer
    reads: tuple[str, ...]  # tensor ids; a GEMM reads (a, b, bias...)
    writes: tuple[str, ...]
    gemm: Gemm | None = None
    m: int = 0  # GEMM axes of ONE group before any selection
    n: int = 0
    k: int = 0
    groups: int = 1  # independent GEMMs of this shape (convolution groups, attention heads, time steps)
    transposed: tuple[bool, bool] = (False, False)  # operand a (b) is read across its stored layout
    mac: MacSpec | None = None
    conv: ConvGeometry | None = None
    selection: str | None = None  # id of the Selection that prunes this op (or that a SELECT op produces)
    selected_axis: str | None = None  # GEMM: the axis that shrinks, "k" (grad_input) or "m" (grad_weight)
    elements: int = 0  # every kind but GEMM: elements processed
    operations: Mapping[str, int] = field(default_factory=dict)  # per element: {"add": 1, "multiply": 2, "compare": 1,
    # "exponential": 1, "divide": 1, "square_root": 1}


@dataclass(frozen=True, eq=False)
class Workload:
    """One optimizer update on one full mini-batch: a graph of tensors and ops, with what was recorded of it."""

    name: str
    batch: int
    tensors: Mapping[str, Tensor]
    ops: tuple[Op, ...]
    selections: Mapping[str, Selection] = field(default_factory=dict)
    recorded_steps: tuple[int, ...] = (0,)  # the training steps at which selections and densities were recorded

    def __post_init__(self) -> None:
        seen: set[str] = set()
        for op in self.ops:
            if op.id in seen:
                raise SpecError(f"workload {self.name}: op {op.id!r} stands twice; ids must be unique")
            seen.add(op.id)
            for tensor in (*op.reads, *op.writes):
                if tensor not in self.tensors:
                    raise SpecError(f"workload {self.name}: op {op.id!r} names tensor {tensor!r}, which is not defined")
            if op.selection is not None and op.selection not in self.selections:
                raise SpecError(f"workload {self.name}: op {op.id!r} names selection {op.selection!r}, not defined")
        for selection in self.selections.values():
            if len(selection.indices) != len(self.recorded_steps):
                raise SpecError(
                    f"workload {self.name}: selection {selection.id!r} has {len(selection.indices)} recorded steps, "
                    f"expected {len(self.recorded_steps)}"
                )

    def dense(self) -> Workload:
        """The same work unpruned: full extents, no selection, gather, scatter or index traffic."""
        dropped = {OpKind.SELECT, OpKind.GATHER, OpKind.SCATTER}
        replaced = {op.writes[0]: op.reads[0] for op in self.ops if op.kind in dropped and op.writes and op.reads}

        def source(tensor: str) -> str:
            while tensor in replaced:
                tensor = replaced[tensor]
            return tensor

        ops = tuple(
            replace(
                op,
                reads=tuple(dict.fromkeys(source(t) for t in op.reads if self.tensors[t].role != "index")),
                selection=None,
                selected_axis=None,
            )
            for op in self.ops
            if op.kind not in dropped
        )
        used = {t for op in ops for t in (*op.reads, *op.writes)}
        tensors = {name: tensor for name, tensor in self.tensors.items() if name in used}
        return Workload(self.name, self.batch, tensors, ops, {}, self.recorded_steps)
