"""An assignment as the text of a plan file, which `hwsim.train` and an experiment's `precision:` read."""

from __future__ import annotations

import json
from collections.abc import Mapping

from hwsim.arithmetic.storage import Cast
from hwsim.assignment.assignment import Assignment, LayerRecord
from hwsim.assignment.criteria import Grid
from hwsim.spec import load_yaml
from hwsim.training.plan import GEMMS, NATIVE_SUM, PrecisionPlan, Rule
from hwsim.training.plan_file import PlanSpec

ROUNDING = "nearest_away"  # the authors' quantizers round halves away from zero
NATIVE = "{accumulator: float32, order: native}"
BIASES_IN_FLOAT = ("weight_gradient", "master_weight", "compensation")


def plan_text(assignment: Assignment, order: str = "native") -> str:
    """Return the YAML of the plan: one rule a layer, float32 for what is left (norms, pooling, the loss).

    The three GEMMs of a layer sum in float32, as the authors' do, in this order.
    """
    sums = f"{{accumulator: float32, order: {order}}}"
    lines = [
        "# Written by `hwsim assign`; the statistics behind it are in assignment.json.",
        "schema: plan/1",
        f"name: {assignment.name}",
        "rules:",
    ]
    for layer in assignment.layers:
        lines += [f"  - layers: {json.dumps(pattern(layer.layer))}", "    casts:"]
        lines += [f"      {role}: {cast}" for role, cast in casts(layer).items()]
        lines += ["    macs:", *(f"      {gemm}: {sums}" for gemm in GEMMS), f"      reduce: {NATIVE}"]
    lines += ['  - layers: "*"', "    macs:", *(f"      {gemm}: {NATIVE}" for gemm in (*GEMMS, "reduce"))]
    return "\n".join(lines) + "\n"


def plan_of(assignment: Assignment, order: str = "native") -> PrecisionPlan:
    """Return the plan itself."""
    return load_yaml(plan_text(assignment, order), PlanSpec).plan()


def forward_plan(layers: Mapping[str, tuple[Grid, Grid]]) -> PrecisionPlan:
    """Return the plan that only reads weights and inputs in these grids (weight, activation), for a forward pass."""
    macs = {**dict.fromkeys(GEMMS, NATIVE_SUM), "reduce": NATIVE_SUM}
    rules = [
        Rule(pattern(path), {"weight": Cast.parse(cast_text(weight)), "input": Cast.parse(cast_text(read))}, macs)
        for path, (weight, read) in layers.items()
    ]
    return PrecisionPlan("forward", (*rules, Rule("*", macs=macs)))


def casts(layer: LayerRecord) -> dict[str, str]:
    """Return the casts of a layer's tensors by role. Biases stay in float32, as in the authors' code."""
    weight = cast_text(layer.weight.grid)
    found = {
        "input": cast_text(layer.activation.grid),
        "weight": weight,
        "gradient": cast_text(layer.activation_gradient.grid),
        "weight_gradient": cast_text(layer.weight_gradient.grid),
        "master_weight": weight,
    }
    if layer.accumulator is not None:
        found["compensation"] = cast_text(layer.accumulator.grid)
    return found | {f"bias.{role}": "float32" for role in BIASES_IN_FLOAT if role in found}


def cast_text(grid: Grid) -> str:
    """Return a grid as a cast: to nearest, what leaves the range saturates."""
    return f"{grid.format} {ROUNDING}"


def pattern(path: str) -> str:
    """Return the pattern that matches this layer's path alone."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in path)
