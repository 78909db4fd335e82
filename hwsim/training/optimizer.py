"""Optimizers whose states and weights live in the plan's formats (definitions A13).

From the stored states each new state is one float32 expression, rounded once into its format. The step u is another;
w + u is added exactly and rounded once into the weight's format. With a `compensation` format the part of u that did
not fit is kept in that, finer, format and joins the next step (Kahan; Zamirai et al. 2010.06192).

The expressions below define the result; weights and states that are float32 throughout go through one fused kernel,
which clips the gradient too and gives the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from math import inf, sqrt

import numpy as np
import torch
from torch import Tensor, nn

from hwsim import kernels
from hwsim.arithmetic.storage import Cast
from hwsim.kernels import backends
from hwsim.kernels.random_bits import stream
from hwsim.training.gradient_buffers import GradientBuffers
from hwsim.training.plan import LayerPrecision, LossScale, PrecisionPlan, is_bias
from hwsim.training.profiler import Profiler
from hwsim.training.recipe import Recipe
from hwsim.training.rounded_sum import add_rounded

EPSILON = {"adam": 1e-8, "adamw": 1e-8, "adagrad": 1e-6, "sgd": 0.0}

SMALLEST_NORMAL = 2.0**-126  # of float32; smaller states become 0 (hwsim.kernels.numba_cpu.update says why)


@dataclass
class ParameterState:
    """A parameter with its optimizer states, all float32 carriers of stored values."""

    path: str
    parameter: nn.Parameter
    precision: LayerPrecision
    states: dict[str, Tensor] = field(default_factory=dict)

    @cached_property
    def is_float32(self) -> bool:
        """Whether weight and states are float32 throughout."""
        return all(self.cast(role) is None for role in ("master_weight", "optimizer_state", "compensation"))

    def cast(self, role: str) -> Cast | None:
        """Return how the parameter, or a state of it, is stored; None means float32."""
        return self.precision.cast(role, "bias" if is_bias(self.path) else "")


class Optimizer:
    """One of the recipe's optimizers over a network's trained parameters.

    Raises SpecError (from the plan) for a parameter whose layer no rule matches.
    """

    def __init__(self, module: nn.Module, plan: PrecisionPlan, recipe: Recipe, seed: int = 0) -> None:
        self.recipe = recipe
        self.seed = seed
        self.updates = 0
        self.profiler: Profiler | None = None  # set in steps that are profiled
        self.loss_scale = ScaleKeeper(plan.loss_scale)
        self.buffers: GradientBuffers | None = None  # where the gradients' memory is handed back to
        self.parameters = [
            ParameterState(path, p, plan.layer(path.rpartition(".")[0]))
            for path, p in module.named_parameters()
            if p.requires_grad
        ]
        names = {"sgd": ("momentum",) if recipe.momentum else (), "adagrad": ("square_sum",)}
        for part in self.parameters:
            part.states = {
                n: torch.zeros_like(part.parameter) for n in names.get(recipe.optimizer, ("moment1", "moment2"))
            }
            part.states = {n: s.detach() for n, s in part.states.items()}
            if part.cast("compensation") is not None:
                part.states["compensation"] = torch.zeros_like(part.parameter).detach()
            self._store_initial(part)

    def update(self, learning_rate: float) -> bool:
        """Apply the parameters' gradients and drop them. Returns False if the step was skipped: gradients overflowed.

        Raises nothing for gradients that are not finite under a static loss scale: they enter the weights, as on the
        machine.
        """
        parts = [part for part in self.parameters if part.parameter.grad is not None]
        if self.loss_scale.dynamic:
            finite = all(bool(torch.isfinite(part.parameter.grad).all()) for part in parts)  # type: ignore[arg-type]
            factor = self.loss_scale.factor
            self.loss_scale.note(finite)
            if not finite:
                self.drop_gradients()
                return False
        else:
            factor = self.loss_scale.factor
        self.updates += 1
        fused = []
        for part in parts:
            gradient = part.parameter.grad
            assert gradient is not None
            if factor != 1.0:
                gradient.mul_(1.0 / factor)  # a power of two
            fuses = self._fuses(part, gradient)
            if self.recipe.clip is not None and not (fuses and self._clips_fused):
                gradient.clamp_(-self.recipe.clip, self.recipe.clip)
            if self.recipe.weight_decay:
                gradient = self._decay(part, gradient.detach(), learning_rate)
            if fuses:
                fused.append((part, gradient))
            else:
                step = self._step_of(part, gradient.detach(), learning_rate)
                self._add(part, part.parameter.detach(), step, "update")
            del gradient
        if fused:
            self._apply_fused(fused, learning_rate)
            del fused
        self.drop_gradients()
        return True

    def drop_gradients(self) -> None:
        """Forget all gradients."""
        for part in self.parameters:
            part.parameter.grad = None
        if self.buffers is not None:
            self.buffers.take_back()

    def _store_initial(self, part: ParameterState) -> None:
        """Put the initial weights into their stored format."""
        cast = part.cast("master_weight")
        if cast is not None:
            with torch.no_grad():
                part.parameter.copy_(_rounded(part.parameter.detach(), cast, self._stream(part, "initial")))

    @property
    def _clips_fused(self) -> bool:
        """Whether the fused kernel may clip: nothing has to be added to the clipped gradient first."""
        return not self.recipe.weight_decay or self.recipe.optimizer == "adamw"

    def _decay(self, part: ParameterState, gradient: Tensor, rate: float) -> Tensor:
        """Apply the weight decay: to the weight itself for adamw, else to the gradient, which is returned."""
        weight, decay = part.parameter.detach(), self.recipe.weight_decay
        if self.recipe.optimizer != "adamw":
            return gradient + _float32(decay) * weight
        self._add(part, weight, _float32(-rate * decay) * weight, "decay")
        return gradient

    def _step_of(self, part: ParameterState, g: Tensor, rate: float) -> Tensor:
        """Advance the states and return u, what is to be added to the weight. This defines the update."""
        recipe, s = self.recipe, part.states
        if recipe.optimizer == "sgd":
            if recipe.momentum:
                g = self._keep(part, "momentum", _float32(recipe.momentum) * s["momentum"] + g)
            return -_float32(rate) * g
        if recipe.optimizer == "adagrad":
            total = self._keep(part, "square_sum", s["square_sum"] + _square(g))
            return -_float32(rate) * (g / (_square_root(total) + self._epsilon))
        keep1, new1, keep2, new2, corrected, correction = self._adam_factors(rate)
        m = self._keep(part, "moment1", keep1 * s["moment1"] + new1 * g)
        v = self._keep(part, "moment2", keep2 * s["moment2"] + new2 * _square(g))
        return -corrected * (m / (_square_root(v) / correction + self._epsilon))

    @property
    def _epsilon(self) -> float:
        chosen = self.recipe.epsilon
        return _float32(EPSILON[self.recipe.optimizer] if chosen is None else chosen)

    def _adam_factors(self, rate: float) -> tuple[float, float, float, float, float, float]:
        """Return Adam's scalars of this update, each rounded to float32 once."""
        beta1, beta2 = self.recipe.betas
        corrected = rate / (1 - beta1**self.updates)
        factors = (beta1, 1 - beta1, beta2, 1 - beta2, corrected, sqrt(1 - beta2**self.updates))
        return tuple(_float32(f) for f in factors)  # type: ignore[return-value]

    def _keep(self, part: ParameterState, name: str, value: Tensor) -> Tensor:
        """Store a new state in its format and return it as stored; in float32, subnormal ones become 0."""
        cast = part.cast("optimizer_state")
        if cast is None:
            value = torch.where(value.abs() < SMALLEST_NORMAL, 0.0, value)
        part.states[name].copy_(value if cast is None else _rounded(value, cast, self._stream(part, name)))
        if self.profiler is not None and cast is not None:
            self.profiler.cast(value, part.states[name], cast, part.path, "update", name)
        return part.states[name]

    def _add(self, part: ParameterState, weight: Tensor, step: Tensor, stage: str) -> None:
        """Add a step to the weight, in place: exactly, then rounded once into the weight's format."""
        cast = part.cast("master_weight")
        finer = part.cast("compensation")
        if finer is not None:
            step = step + part.states["compensation"]
        new = add_rounded(weight, step, cast, self._stream(part, stage) if cast and cast.rounding.stochastic else 0)
        if self.profiler is not None:
            self.profiler.update(part.path, weight, step, new, cast, finer is not None)
        if finer is not None:
            rest = step.double() - (new.double() - weight.double())
            part.states["compensation"].copy_(_rounded(rest, finer, self._stream(part, "compensation")))
        weight.copy_(new)

    def _fuses(self, part: ParameterState, gradient: Tensor) -> bool:
        weight = part.parameter
        on_cpu = gradient.device.type == "cpu" and backends.forced() in (None, "numba")
        return on_cpu and part.is_float32 and weight.is_contiguous() and gradient.dtype == weight.dtype == torch.float32

    def _apply_fused(self, parts: list[tuple[ParameterState, Tensor]], rate: float) -> None:
        """Update parameters and their states, all in one call."""
        kernel, scalars = self._fused_kernel(rate)
        gradients = [gradient.contiguous() for _, gradient in parts]
        places, sizes = [], []
        for (part, _), gradient in zip(parts, gradients, strict=True):
            states = [state.data_ptr() for state in part.states.values()]
            places.append([part.parameter.data_ptr(), gradient.data_ptr(), *states])
            sizes.append(gradient.numel())
        bound = self.recipe.clip if self.recipe.clip is not None and self._clips_fused else inf
        kernel(np.array(places), np.array(sizes), np.float32(bound), *scalars)

    def _fused_kernel(self, rate: float) -> tuple[Callable[..., None], list[np.float32]]:
        """Return this update's kernel and its scalars."""
        from hwsim.kernels.numba_cpu import update

        scalars: tuple[float, ...]
        if self.recipe.optimizer == "sgd" and not self.recipe.momentum:
            kernel, scalars = update.sgd, (rate,)
        elif self.recipe.optimizer == "sgd":
            kernel, scalars = update.momentum, (rate, self.recipe.momentum)
        elif self.recipe.optimizer == "adagrad":
            kernel, scalars = update.adagrad, (rate, self._epsilon)
        else:
            keep1, new1, keep2, new2, corrected, correction = self._adam_factors(rate)
            kernel, scalars = update.adam, (corrected, keep1, new1, keep2, new2, correction, self._epsilon)
        return kernel, [np.float32(scalar) for scalar in scalars]

    def _stream(self, part: ParameterState, stage: str) -> int:
        return stream(self.seed, "train", part.path, "update", stage, self.updates)


class ScaleKeeper:
    """The loss scale of a run: constant, or halved at overflow and doubled after a run of good steps."""

    def __init__(self, scale: LossScale) -> None:
        self.factor, self.dynamic, self._growth_steps, self.good = scale.factor, scale.dynamic, scale.growth_steps, 0

    def note(self, finite: bool) -> None:
        """Take note of whether a step's gradients were finite, and move the factor for the next step."""
        if not self.dynamic:
            return
        if not finite:
            self.factor, self.good = max(self.factor / 2, 2.0**-24), 0
            return
        self.good += 1
        if self.good == self._growth_steps:
            self.factor, self.good = min(self.factor * 2, 2.0**24), 0


def _rounded(x: Tensor, cast: Cast, stream_id: int) -> Tensor:
    result: Tensor = kernels.cast(x, cast, stream=stream_id if cast.rounding.stochastic else 0)
    return result if result.dtype == torch.float32 else result.float()


def _float32(value: float) -> float:
    """Return the value rounded to float32, as every scalar of an update is."""
    return float(np.float32(value))


def _square_root(x: Tensor) -> Tensor:
    """Return the correctly rounded square root; torch's own on the CPU (MKL's) is off by a bit now and then."""
    return torch.from_numpy(np.sqrt(x.numpy())) if x.device.type == "cpu" else x.sqrt()


def _square(x: Tensor) -> Tensor:
    """Return the squares, 0 for those below the smallest normal float32."""
    return torch.where(x.abs() < SMALLEST_NORMAL**0.5, 0.0, x).square()
