"""The plans that have a name. Each says where its choices come from."""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from functools import cache

from hwsim.errors import SpecError
from hwsim.training.plan import GEMMS, NATIVE_SUM, PrecisionPlan, Rule


def float32() -> PrecisionPlan:
    """Return the baseline: float32 everywhere, sums in the order of the machine's BLAS (not promised bit for bit)."""
    return PrecisionPlan("float32", (Rule("*", macs={**dict.fromkeys(GEMMS, NATIVE_SUM), "reduce": NATIVE_SUM}),))


def float32_sequential() -> PrecisionPlan:
    """Return float32 with every sum taken one product after the other, k ascending: the same bits on any machine."""
    return PrecisionPlan("float32_sequential", (Rule("*"),))


def bfloat16_mixed() -> PrecisionPlan:
    """Return bfloat16 operands and stored tensors with float32 sums and float32 master weights.

    Micikevicius et al., "Mixed Precision Training", arXiv 1710.03740, with bfloat16 in place of float16, which needs
    no loss scale.
    """
    return PrecisionPlan.uniform("bfloat16", accumulator="float32", stored="bfloat16", name="bfloat16_mixed")


def float16_mixed() -> PrecisionPlan:
    """Return float16 operands and stored tensors, float32 sums and master weights, dynamic loss scale (1710.03740)."""
    plan = PrecisionPlan.uniform("float16", accumulator="float32", stored="float16", name="float16_mixed")
    return plan.with_loss_scale(2.0**14, dynamic=True)


def fp8_hybrid() -> PrecisionPlan:
    """Return FP8 operands, e4m3fn forward and e5m2 backward, saturating, with float32 sums; bfloat16 between layers.

    The pair of formats is that of Micikevicius et al., "FP8 Formats for Deep Learning", arXiv 2209.05433. The loss
    scale of 1024 keeps the gradients of a mean loss above e5m2's smallest value, 2^-16.
    """
    return PrecisionPlan.uniform(
        "float8_e4m3fn",
        "float8_e5m2",
        "float32",
        overflow="saturate",
        stored="bfloat16",
        loss_scale=1024.0,
        name="fp8_hybrid",
    )


PRESETS: dict[str, Callable[[], PrecisionPlan]] = {
    "float32": float32,
    "float32_sequential": float32_sequential,
    "bfloat16_mixed": bfloat16_mixed,
    "float16_mixed": float16_mixed,
    "fp8_hybrid": fp8_hybrid,
}


@cache
def named_plan(name: str) -> PrecisionPlan:
    """Return the plan of this name. Raises SpecError with the nearest name."""
    if name not in PRESETS:
        near = get_close_matches(name, PRESETS, 1)
        hint = f". Did you mean {near[0]!r}?" if near else ""
        raise SpecError(f"precision: got {name!r}, expected one of {', '.join(PRESETS)}{hint}")
    return PRESETS[name]()


def parse_plan(plan: str | PrecisionPlan) -> PrecisionPlan:
    """Return a plan given as itself or by its name."""
    return plan if isinstance(plan, PrecisionPlan) else named_plan(plan)
