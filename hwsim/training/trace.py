"""Turns the notes on recorded steps into a `Workload`: the graph of tensors and ops that a machine would run.

The forward pass is what was seen. The backward pass follows from it in reverse order, one or more ops for each call;
then comes one update for each parameter. The graph is that of the first recorded step; kept indices and densities are
those of every one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import numpy as np

from hwsim.arithmetic.named import parse_format
from hwsim.arithmetic.number import BlockScaled, NumberFormat
from hwsim.arithmetic.storage import Cast
from hwsim.errors import SpecError
from hwsim.training.plan import PrecisionPlan, is_bias
from hwsim.training.recipe import Recipe
from hwsim.training.recorder import FunctionCall, GemmCall, Recorder
from hwsim.training.softmax import EMULATED as SOFTMAX
from hwsim.training.sparse import SparseBackprop
from hwsim.training.vector_work import UPDATES, work_of
from hwsim.workload import Gemm, Op, OpKind, Phase, Selection, Tensor, Workload

FLOAT32 = parse_format("float32")

# The optimizer states that each parameter has.
STATES = {"sgd": (), "momentum": ("momentum",), "adagrad": ("square_sum",), "adam": ("moment1", "moment2")}

# Functions whose backward pass reads their result; the others read their input.
SAVES_OUTPUT = {"relu", "tanh", "sigmoid", "exp", "sqrt", "softmax", "log_softmax", "dropout"}

SAVES_NOTHING = {"embedding", "mean", "avg_pool2d", "adaptive_avg_pool2d"}  # sizes and indices apart


def build_workload(
    name: str, record: Recorder, plan: PrecisionPlan, recipe: Recipe, sparse: SparseBackprop | None
) -> Workload:
    """Return the workload of one recorded step."""
    graph = _Graph(record, plan, recipe, sparse)
    for call in record.calls:
        graph.forward(call)
    for call in reversed(record.calls):
        graph.backward(call)
    graph.update()
    return Workload(name, record.batch, graph.tensors, tuple(graph.ops), graph.selections, (record.number,))


def join_workloads(parts: Sequence[Workload]) -> Workload:
    """Return one workload of several recorded steps of the same graph, in the order given.

    Raises SpecError when there is none, or when they differ in more than kept indices and densities.
    """
    if not parts:
        raise SpecError("workload: no step was recorded")
    first = parts[0]
    for part in parts[1:]:
        if not same_graph(first, part):
            raise SpecError(
                f"workload {first.name}: steps {first.recorded_steps[0]} and {part.recorded_steps[0]} differ in "
                "their calls or shapes"
            )
    tensors = {
        name: replace(tensor, density=tuple(d for part in parts for d in part.tensors[name].density))
        for name, tensor in first.tensors.items()
    }
    selections = {
        name: replace(
            selection,
            kept=max(part.selections[name].kept for part in parts),
            indices=tuple(i for part in parts for i in part.selections[name].indices),
            offsets=tuple(o for part in parts for o in part.selections[name].offsets),
        )
        for name, selection in first.selections.items()
    }
    steps = tuple(step for part in parts for step in part.recorded_steps)
    return Workload(first.name, first.batch, tensors, first.ops, selections, steps)


def split_workload(workload: Workload) -> list[Workload]:
    """Return the recorded steps of a workload one by one; `join_workloads` undoes it."""
    parts = []
    for index, number in enumerate(workload.recorded_steps):
        tensors = {n: replace(t, density=t.density[index : index + 1]) for n, t in workload.tensors.items()}
        selections = {
            name: replace(s, indices=s.indices[index : index + 1], offsets=s.offsets[index : index + 1])
            for name, s in workload.selections.items()
        }
        parts.append(replace(workload, tensors=tensors, selections=selections, recorded_steps=(number,)))
    return parts


def same_graph(one: Workload, other: Workload) -> bool:
    """Return whether two workloads are the same but for what was recorded in each step."""
    shapes = [{name: replace(t, density=()) for name, t in w.tensors.items()} for w in (one, other)]
    index_shapes = [{name: t for name, t in tensors.items() if t.role != "index"} for tensors in shapes]
    return index_shapes[0] == index_shapes[1] and one.ops == other.ops and one.batch == other.batch


@dataclass
class _Graph:
    record: Recorder
    plan: PrecisionPlan
    recipe: Recipe
    sparse: SparseBackprop | None
    tensors: dict[str, Tensor] = field(default_factory=dict)
    ops: list[Op] = field(default_factory=list)
    selections: dict[str, Selection] = field(default_factory=dict)
    casts: dict[tuple[str, str, str], str] = field(default_factory=dict)
    gradients: dict[str, list[str]] = field(default_factory=dict)  # parts that still have to be added up

    # -- tensors ---------------------------------------------------------------------------------------------------

    def known(self, name: str) -> str:
        """Return the id of a tensor of the forward pass, defining it when it is first used."""
        if name not in self.tensors:
            seen = self.record.tensors[name]
            stored = seen.cast
            if seen.role in ("weight", "bias"):
                where = "bias" if is_bias(name) else ""
                stored = self.plan.layer(_layer_of(name)).cast("master_weight", where)
            self.tensors[name] = Tensor(
                name,
                seen.role,
                seen.shape,
                _format(stored),
                persistent=seen.role in ("weight", "bias", "statistics"),
                density=() if seen.density is None else (seen.density,),
            )
        return name

    def define(
        self,
        id: str,
        role: str,
        shape: tuple[int, ...],
        number: NumberFormat,
        persistent: bool = False,
        density: tuple[float, ...] = (),
    ) -> str:
        """Add a tensor that the forward pass did not show."""
        self.tensors.setdefault(id, Tensor(id, role, shape, number, persistent=persistent, density=density))
        return id

    def op(
        self,
        id: str,
        kind: OpKind,
        phase: Phase,
        layer: str,
        reads: Sequence[str],
        writes: Sequence[str],
        **more: Any,
    ) -> None:
        """Append an op."""
        self.ops.append(
            Op(
                id,
                kind,
                phase,
                layer,
                tuple(reads) if kind is OpKind.GEMM else tuple(dict.fromkeys(reads)),
                tuple(writes),
                **more,
            )
        )

    def read(
        self, name: str, cast: Cast | None, gemm: str, phase: Phase, layer: str, selection: str | None = None
    ) -> str:
        """Return the tensor as a GEMM reads it, adding the cast unless it is stored so, or was cast before."""
        stored = self.tensors[name]
        if cast is None or cast.format == stored.format:
            return name
        once = not isinstance(cast.format, BlockScaled) and not cast.rounding.stochastic
        key = (name, str(cast), "" if once else gemm)
        if key not in self.casts:
            id = f"{name}.{cast.format}" if once else f"{name}.{gemm}.{cast.format}"
            self.casts[key] = self.define(id, stored.role, stored.shape, cast.format, density=stored.density)
            self.op(
                f"{id}.cast", OpKind.CAST, phase, layer, (name,), (id,), elements=stored.elements, selection=selection
            )
        return self.casts[key]

    # -- forward ---------------------------------------------------------------------------------------------------

    def forward(self, call: GemmCall | FunctionCall) -> None:
        """Add the ops of one call."""
        if isinstance(call, FunctionCall):
            reads = [self.known(name) for name in call.inputs]
            writes = [self.known(name) for name in call.outputs]
            self.op(
                f"{call.id}.{call.name.strip('_')}" if call.is_loss or call.layer == "loss" else call.id,
                OpKind.REDUCE if call.kind == "reducing" else OpKind.ELEMENTWISE,
                Phase.LOSS if call.is_loss or call.layer == "loss" else Phase.FORWARD,
                call.layer,
                reads,
                writes,
                elements=call.elements,
                operations=work_of(call.name)[0],
            )
            return
        precision = call.precision
        a = self.read(self.known(call.input), precision.cast("input", "output"), "output", Phase.FORWARD, call.layer)
        b = self.read(self.known(call.weight), precision.cast("weight", "output"), "output", Phase.FORWARD, call.layer)
        bias = () if call.bias is None else (self.known(call.bias),)
        self.op(
            f"{call.id}.output",
            OpKind.GEMM,
            Phase.FORWARD,
            call.layer,
            (a, b, *bias),
            (self.known(call.output),),
            gemm=Gemm.OUTPUT,
            m=call.m,
            n=call.n,
            k=call.k,
            groups=call.groups,
            transposed=(False, call.weight_transposed),
            mac=precision.mac("output"),
            conv=call.conv,
        )

    # -- backward --------------------------------------------------------------------------------------------------

    def gradient_of(self, name: str) -> str | None:
        """Return the gradient of a tensor, adding its parts up if several functions read it; None: there is none."""
        parts = self.gradients.pop(name, [])
        if not parts:
            return None
        if len(parts) == 1:
            return parts[0]
        first = self.tensors[parts[0]]
        total = self.define(f"{name}.grad", first.role, first.shape, first.format)
        self.op(
            f"{name}.grad.accumulate",
            OpKind.ELEMENTWISE,
            Phase.BACKWARD,
            _layer_of(name),
            parts,
            (total,),
            elements=first.elements,
            operations={"add": len(parts) - 1},
        )
        return total

    def part(self, name: str, role: str, number: NumberFormat, wanted_by: str, suffix: str = "") -> str:
        """Define one function's part of a tensor's gradient. The only part has the plain name."""
        readers = sum(name in _trained_reads(call) for call in self.record.calls)
        id = f"{name}.grad" if readers <= 1 else f"{name}.grad.{wanted_by}"
        self.gradients.setdefault(name, []).append(id)
        return self.define(id + suffix, role, self.tensors[name].shape, number)

    def backward(self, call: GemmCall | FunctionCall) -> None:
        """Add the ops that pass the gradient of a call's output on to its inputs."""
        if isinstance(call, FunctionCall):
            self._function_backward(call)
        else:
            self._gemm_backward(call)

    def _function_backward(self, call: FunctionCall) -> None:
        arriving = [g for g in (self.gradient_of(name) for name in call.outputs) if g is not None]
        wanted = [name for name in call.inputs if self.record.tensors[name].requires_grad]
        if not wanted or not (arriving or call.is_loss):
            return
        in_loss = call.precision.names_loss and call.name in SOFTMAX
        role = ("gradient", "loss") if in_loss else ("activation_gradient",)
        number = _format(call.precision.cast(*role))
        if call.kind == "selecting" and arriving:
            number = self.tensors[arriving[0]].format
        source = call.outputs if call.name.rstrip("_") in SAVES_OUTPUT else call.inputs
        saved = source[:1] if work_of(call.name)[1] and call.name not in SAVES_NOTHING else ()
        writes = [self._gradient_part(name, number, call.id) for name in wanted]
        is_loss = call.is_loss or call.layer == "loss"
        self.op(
            f"{call.id}.{call.name.strip('_')}.backward" if is_loss else f"{call.id}.backward",
            OpKind.ELEMENTWISE,
            Phase.LOSS if is_loss else Phase.BACKWARD,
            call.layer,
            [*arriving, *saved],
            writes,
            elements=call.elements,
            operations=work_of(call.name)[1],
        )

    def _gradient_part(self, name: str, number: NumberFormat, wanted_by: str) -> str:
        is_parameter = self.tensors[name].role in ("weight", "bias")
        return self.part(name, "weight_gradient" if is_parameter else "gradient", number, wanted_by)

    def _gemm_backward(self, call: GemmCall) -> None:
        gradient = self.gradient_of(call.output)
        if gradient is None:
            return
        self._note_density(gradient, call.output)
        precision, layer = call.precision, call.layer
        if call.bias is not None and call.wants[2]:
            number = _format(precision.cast("weight_gradient", "bias"))
            bias_gradient = self._gradient_part(call.bias, number, call.id)
            self.op(
                f"{call.id}.grad_bias",
                OpKind.REDUCE,
                Phase.BACKWARD,
                layer,
                (gradient,),
                (bias_gradient,),
                elements=self.tensors[gradient].elements,
                operations={"add": 1},
            )
        kept, index, selection = gradient, None, None
        if call.kept is not None or self._keeps_everything_for_now(call):
            kept, index, selection = self._select(call, gradient)
        if call.wants[0]:
            self._grad_input(call, kept, selection)
        if call.wants[1]:
            self._grad_weight(call, kept, index, selection)

    def _grad_input(self, call: GemmCall, gradient: str, selection: str | None) -> None:
        precision, gemm = call.precision, "grad_input"
        cast = precision.cast("gradient", gemm)
        a = self.read(gradient, cast, gemm, Phase.BACKWARD, call.layer, selection)
        b = self.read(call.weight, precision.cast("weight", gemm), gemm, Phase.BACKWARD, call.layer)
        number = _format(precision.cast("activation_gradient"))
        self.op(
            f"{call.id}.grad_input",
            OpKind.GEMM,
            Phase.BACKWARD,
            call.layer,
            (a, b),
            (self._gradient_part(call.input, number, call.id),),
            gemm=Gemm.GRAD_INPUT,
            m=call.m,
            n=call.k,
            k=call.n,
            groups=call.groups,
            transposed=(False, not call.weight_transposed),
            mac=precision.mac(gemm),
            conv=call.conv,
            selection=selection,
            selected_axis="k" if selection else None,
        )

    def _grad_weight(self, call: GemmCall, gradient: str, index: str | None, selection: str | None) -> None:
        precision, gemm = call.precision, "grad_weight"
        a = self.read(gradient, precision.cast("gradient", gemm), gemm, Phase.BACKWARD, call.layer, selection)
        b = self.read(call.input, precision.cast("input", gemm), gemm, Phase.BACKWARD, call.layer)
        role = "weight_gradient" if call.weight_is_parameter else "activation_gradient"
        number = _format(precision.cast(role))
        whole = self._gradient_part(call.weight, number, call.id)
        written = whole
        if selection:
            shape = self.tensors[whole].shape
            written = self.define(f"{whole}.kept", "weight_gradient", shape, number)
        self.op(
            f"{call.id}.grad_weight",
            OpKind.GEMM,
            Phase.BACKWARD,
            call.layer,
            (a, b),
            (written,),
            gemm=Gemm.GRAD_WEIGHT,
            m=call.n,
            n=call.k,
            k=call.m,
            groups=call.groups,
            transposed=(True, False),
            mac=precision.mac(gemm),
            conv=call.conv,
            selection=selection,
            selected_axis="m" if selection else None,
        )
        if selection and index:
            self.op(
                f"{call.id}.grad_weight.scatter",
                OpKind.SCATTER,
                Phase.BACKWARD,
                call.layer,
                (written, index),
                (whole,),
                elements=self.tensors[whole].elements,
                selection=selection,
            )

    def _select(self, call: GemmCall, gradient: str) -> tuple[str, str, str]:
        """Add selection and gather; return the kept gradient, the index tensor and the selection's id."""
        assert self.sparse is not None
        id = f"{gradient}.selection"
        by_example = self.sparse.rank_over == "example"
        first = call.kept
        if first is not None:
            rows, extent, count, indices, offsets = first.rows, first.extent, first.kept, first.indices, first.offsets
        else:
            rows, extent = call.m, call.n
            count, indices = extent, np.tile(np.arange(extent, dtype=np.int32), rows if by_example else 1)
            offsets = np.arange(rows + 1, dtype=np.int64) * extent
        self.selections[id] = Selection(
            id,
            self.sparse.rank_over,
            call.unit,
            rows,
            extent,
            count,
            (indices,),
            (offsets,) if by_example and offsets is not None else (),
        )
        kept = self.selections[id].kept
        number = parse_format("uint16" if extent <= 2**16 else "uint32")
        index = self.define(f"{gradient}.index", "index", (rows, kept) if by_example else (kept,), number)
        elements = self.tensors[gradient].elements
        reads, writes, operations = [gradient], [index], {"compare": 1}
        if not by_example:
            operations["add"] = 1  # the sum of magnitudes over the rows
        if self.sparse.memory:
            memory = self.define(f"{call.id}.memory", "statistics", self.tensors[gradient].shape, FLOAT32, True)
            reads, writes = [gradient, memory], [index, memory]
            operations = {**operations, "add": operations.get("add", 0) + 2, "multiply": 1}
        layer = call.layer
        self.op(f"{gradient}.select", OpKind.SELECT, Phase.BACKWARD, layer, reads, writes,
                elements=elements, operations=operations, selection=id)  # fmt: skip
        source = self.tensors[gradient]
        gathered = self.define(f"{gradient}.kept", source.role, source.shape, source.format)
        self.op(f"{gradient}.gather", OpKind.GATHER, Phase.BACKWARD, layer, (gradient, index), (gathered,),
                elements=elements, selection=id)  # fmt: skip
        return gathered, index, id

    def _keeps_everything_for_now(self, call: GemmCall) -> bool:
        """Return whether top-k acts on this layer but its schedule keeps all of it in this step.

        The graph must not change from step to step, so such a step has a selection of everything.
        """
        sparse = self.sparse
        if sparse is None or not sparse.schedule or not sparse.covers(call.layer):
            return False
        last = next(c for c in reversed(self.record.calls) if isinstance(c, GemmCall))
        return sparse.output_layer or call.layer != last.layer

    def _note_density(self, gradient: str, output: str) -> None:
        density = self.record.tensors[output].gradient_density
        if density is not None:
            self.tensors[gradient] = replace(self.tensors[gradient], density=(density,))

    # -- update ----------------------------------------------------------------------------------------------------

    def update(self) -> None:
        """Add one update for each parameter that got a gradient."""
        plain = {"adamw": "adam", "sgd": "momentum" if self.recipe.momentum else "sgd"}
        rule = plain.get(self.recipe.optimizer, self.recipe.optimizer)
        for name in [name for name in self.gradients if self.tensors[name].role in ("weight", "bias")]:
            gradient = self.gradient_of(name)
            assert gradient is not None
            weight, layer = self.tensors[name], _layer_of(name)
            precision, where = self.plan.layer(layer), "bias" if is_bias(name) else ""
            number = _format(precision.cast("optimizer_state", where))
            states = [
                self.define(f"{name}.{state}", "optimizer_state", weight.shape, number, True) for state in STATES[rule]
            ]
            compensation = precision.cast("compensation", where)
            if compensation is not None:
                finer = _format(compensation)
                states.append(self.define(f"{name}.compensation", "optimizer_state", weight.shape, finer, True))
            work = dict(UPDATES[rule])
            if self.recipe.weight_decay:
                work = {**work, "add": work["add"] + 1, "multiply": work["multiply"] + 1}
            self.op(
                f"{name}.update",
                OpKind.UPDATE,
                Phase.UPDATE,
                layer,
                (name, gradient, *states),
                (name, *states),
                elements=prod(weight.shape),
                operations=work,
            )


def _format(cast: Cast | None) -> NumberFormat:
    return FLOAT32 if cast is None else cast.format


def _layer_of(name: str) -> str:
    return name.rpartition(".")[0]


def _trained_reads(call: GemmCall | FunctionCall) -> tuple[str, ...]:
    """Return the tensors that get a part of their gradient from this call."""
    if isinstance(call, FunctionCall):
        return call.inputs
    names = (call.input, call.weight, call.bias)
    return tuple(name for name, wanted in zip(names, call.wants, strict=True) if wanted and name is not None)
