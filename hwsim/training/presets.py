"""The plans that have a name. Each says where its choices come from."""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from functools import cache

from hwsim.arithmetic.mac import MacSpec, named_mac
from hwsim.arithmetic.storage import Cast
from hwsim.errors import SpecError
from hwsim.training.plan import GEMMS, NATIVE_SUM, SCALED_ROLES, PrecisionPlan, Rule, Scaling


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


def deepseek_fp8() -> PrecisionPlan:
    """Return e4m3fn forward and backward, a float32 scale a tile, sums promoted to float32 every 128 products.

    DeepSeek-V3, arXiv 2412.19437, section 3.3: tiles of 1 x 128 for activations and their gradients, 128 x 128 for
    weights, each with the scale amax / 448; tensor cores sum 128 products (here as Hopper's wgmma does, in steps of 32
    with 13 fraction bits), CUDA cores scale those sums and add them up in float32 by fused multiply-adds. Between
    layers tensors rest in bfloat16, masters and optimizer states in float32 (the report keeps moments in bfloat16).
    Not part of it: layers left in higher precision there (embedding, output head, attention, norms), and the
    power-of-two scales and e5m6 of some of its activations.
    """
    casts = {**dict.fromkeys(SCALED_ROLES, Cast("float8_e4m3fn", overflow="saturate")), **resting_in("bfloat16")}
    tiles = {"input": (1, 128), "weight": (128, 128), "gradient": (1, 128)}
    scaling = {role: Scaling(tile=tile, scale="float32") for role, tile in tiles.items()}
    mac = named_mac("h200.float8_e4m3fn.float32.wgmma")
    return PrecisionPlan("deepseek_fp8", (Rule("*", casts, dict.fromkeys(GEMMS, mac), scaling),))


def mxfp8() -> PrecisionPlan:
    """Return MXFP8 with e4m3 elements for all operands and float32 sums (Mishra et al., arXiv 2506.08027)."""
    return _blocks("mxfp8", "mxfp8_e4m3")


def mxfp4() -> PrecisionPlan:
    """Return MXFP4 operands, gradients rounded stochastically, float32 sums (Tseng et al., arXiv 2502.20586).

    That paper's Hadamard rotation is not part of it.
    """
    return _blocks("mxfp4", "mxfp4_e2m1", "mxfp4_e2m1 stochastic")


def nvfp4() -> PrecisionPlan:
    """Return NVFP4 operands, gradients rounded stochastically, float32 sums (NVIDIA, arXiv 2509.25149).

    That report's Hadamard rotation, two-dimensional weight blocks and its layers left in bfloat16 are not part of it.
    """
    return _blocks("nvfp4", "nvfp4", "nvfp4 stochastic")


def int8() -> PrecisionPlan:
    """Return int8 operands with one power-of-two scale a tensor, gradients rounded stochastically, integer sums.

    After Wang et al., "NITI: Training Integer Neural Networks Using Integer-only Arithmetic", arXiv 2009.13108: 8-bit
    integers with an exponent a tensor, wide integer sums. A 32-bit accumulator holds every sum of up to 133,144 such
    products, so `order: exact` is what it gives, rounded once to float32. Not part of it: NITI's integer weights,
    updates and loss, its gradients of 5 bits and less, and its pseudo-random rounding.
    """
    operand, gradient = Cast("int8"), Cast("int8", "stochastic")
    casts = {"input": operand, "weight": operand, "gradient": gradient}
    scaling = dict.fromkeys(casts, Scaling("current"))
    macs = dict.fromkeys(GEMMS, MacSpec("float32", order="exact"))
    return PrecisionPlan("int8", (Rule("*", casts, macs, scaling),))


def fixed_point() -> PrecisionPlan:
    """Return 16-bit fixed point for every tensor, rounded stochastically, with wide saturating sums.

    After Gupta et al., "Deep Learning with Limited Numerical Precision", arXiv 1502.02551: 16-bit words, stochastic
    rounding, sums in wide fixed point (48 bits there and here). Their fraction widths differ by experiment; these are
    ours: 12 bits for activations, 14 for weights and gradients. The loss scale of 64 is ours too.
    """
    mac = MacSpec("fixed48.26", overflow="saturate")

    def word(fraction: int) -> Cast:
        return Cast(f"fixed16.{fraction}", "stochastic", "saturate")

    casts = {
        **dict.fromkeys(("input", "activation"), word(12)),
        **dict.fromkeys(("weight", "gradient", "activation_gradient", "master_weight"), word(14)),
    }
    plan = PrecisionPlan("fixed_point", (Rule("*", casts, dict.fromkeys(GEMMS, mac)),))
    return plan.with_loss_scale(64.0)


def h200_fp8() -> PrecisionPlan:
    """Return fp8_hybrid with the sums of an H200's own tensor cores (wgmma: 13 fraction bits, fused steps of 32)."""
    hybrid = fp8_hybrid()
    macs = dict.fromkeys(GEMMS, named_mac("h200.float8_e4m3fn.float32.wgmma"))  # e5m2 operands are summed alike
    return PrecisionPlan("h200_fp8", (Rule("*", hybrid.rules[0].casts, macs),), hybrid.loss_scale)


def h200_bfloat16() -> PrecisionPlan:
    """Return bfloat16_mixed with the sums of an H200's own tensor cores."""
    mixed = bfloat16_mixed()
    macs = dict.fromkeys(GEMMS, named_mac("h200.bfloat16.float32.wgmma"))
    return PrecisionPlan("h200_bfloat16", (Rule("*", mixed.rules[0].casts, macs),))


def _blocks(name: str, forward: str, backward: str | None = None) -> PrecisionPlan:
    """Return the plan of a block format: operands in it, float32 sums, bfloat16 between layers."""
    operand, gradient = Cast.parse(forward), Cast.parse(backward or forward)
    casts = {"input": operand, "weight": operand, "gradient": gradient, **resting_in("bfloat16")}
    return PrecisionPlan(name, (Rule("*", casts),))


def resting_in(number: str) -> dict[str, Cast]:
    """Return the casts of tensors that rest in memory between layers."""
    return {"activation": Cast(number), "activation_gradient": Cast(number)}


PRESETS: dict[str, Callable[[], PrecisionPlan]] = {
    "float32": float32,
    "float32_sequential": float32_sequential,
    "bfloat16_mixed": bfloat16_mixed,
    "float16_mixed": float16_mixed,
    "fp8_hybrid": fp8_hybrid,
    "deepseek_fp8": deepseek_fp8,
    "mxfp8": mxfp8,
    "mxfp4": mxfp4,
    "nvfp4": nvfp4,
    "int8": int8,
    "fixed_point": fixed_point,
    "h200_fp8": h200_fp8,
    "h200_bfloat16": h200_bfloat16,
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
