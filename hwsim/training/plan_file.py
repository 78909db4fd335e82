"""Precision plans as files and as the `precision:` of an experiment: a name, a uniform plan, or rules."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from hwsim.spec import CastField, Format, MacField, Spec, field_problem
from hwsim.training.plan import CAST_KEYS, MAC_KEYS, SCALED_ROLES, LossScale, PrecisionPlan, Rule, Scaling
from hwsim.training.presets import PRESETS, named_plan

CastKey = Literal[CAST_KEYS]  # type: ignore[valid-type]
MacKey = Literal[MAC_KEYS]  # type: ignore[valid-type]
ScaledRole = Literal[SCALED_ROLES]  # type: ignore[valid-type]
PresetName = Literal[tuple(PRESETS)]  # type: ignore[valid-type]


class ScalingSpec(Spec):
    """A power-of-two scale per operand: see `plan.Scaling`."""

    method: Literal["current", "delayed"] = "current"
    history: Annotated[int, Field(ge=1)] = 16
    margin: Annotated[int, Field(ge=0)] = 0
    tile: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] | None = None
    scale: Literal["power_of_two", "float32"] = "power_of_two"


class RuleSpec(Spec):
    """One rule: the layers it is for, casts by role, MACs by GEMM, scales by role."""

    layers: str = "*"
    casts: dict[CastKey, CastField] = Field(default_factory=dict)
    macs: dict[MacKey, MacField] = Field(default_factory=dict)
    scaling: dict[ScaledRole, ScalingSpec] = Field(default_factory=dict)


class UniformSpec(Spec):
    """The arguments of `PrecisionPlan.uniform`."""

    forward: Format
    backward: Format | None = None
    accumulator: Format | None = None
    rounding: str = "nearest_even"
    overflow: Literal["native", "saturate", "wrap", "error"] = "native"
    order: str = "sequential"
    stored: Format | None = None
    optimizer_state: Format | None = None
    master_weight: Format | None = None
    softmax_bits: Annotated[int, Field(ge=2, le=24)] | None = None


class PlanSpec(Spec):
    """A plan: exactly one of `preset`, `uniform` and `rules`, and what holds for all layers."""

    SCHEMA: ClassVar[str | None] = "plan/1"

    name: str | None = None
    preset: PresetName | None = None  # type: ignore[valid-type]
    uniform: UniformSpec | None = None
    rules: tuple[RuleSpec, ...] = ()
    loss_scale: Annotated[float, Field(gt=0)] | Literal["dynamic"] | None = None
    uncovered: Literal["error", "float32"] | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> PlanSpec:
        given = [key for key in ("preset", "uniform", "rules") if getattr(self, key)]
        if len(given) != 1:
            came = " and ".join(given) or "none"
            raise field_problem(given[-1] if given else "preset", f"got {came}, expected one of preset, uniform, rules")
        self.plan()  # its parts may not fit together
        return self

    def plan(self) -> PrecisionPlan:
        """Return the plan that this file describes. Raises SpecError for values that do not fit together."""
        plan = self._described()
        scale = plan.loss_scale
        if self.loss_scale is not None:
            dynamic = self.loss_scale == "dynamic"
            scale = LossScale(2.0**14 if self.loss_scale == "dynamic" else self.loss_scale, dynamic)
        return PrecisionPlan(self.name or plan.name, plan.rules, scale, self.uncovered or plan.uncovered)

    def _described(self) -> PrecisionPlan:
        if self.preset is not None:
            return named_plan(self.preset)
        if self.uniform is not None:
            given = {key: getattr(self.uniform, key) for key in UniformSpec.model_fields}
            return PrecisionPlan.uniform(**{key: value for key, value in given.items() if value is not None})
        rules = (
            Rule(r.layers, r.casts, r.macs, {role: Scaling(**s.model_dump()) for role, s in r.scaling.items()})
            for r in self.rules
        )
        return PrecisionPlan(self.name or "rules", tuple(rules))
