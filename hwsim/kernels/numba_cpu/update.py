"""Optimizer updates of float32 weights with float32 states: all parameters in one call, each in one pass over memory.

A call takes `places`, addresses with a row for each parameter (its weight, its gradient, its states), how many elements
each has, the bound to which gradients are clipped (infinity: not at all), and the update's scalars.

The expressions are those of `hwsim.training.optimizer`, operation for operation; every operation is one IEEE float32
operation (no fast-math, no contraction), so both give the same bits.

States below the smallest normal float32 become 0. Without that they would never leave: 0.9 times the smallest
subnormal rounds to itself, a fifth of Adam's first moments of an MNIST network end there within an epoch, and a
processor is slow with subnormal numbers (the update took three times as long).
"""

from __future__ import annotations

from functools import partial

import numpy as np

from hwsim.kernels.numba_cpu.compiled import compiled
from hwsim.kernels.numba_cpu.memory import floats_at

SMALLEST_NORMAL = np.float32(2.0**-126)
SMALLEST_SQUARED = np.float32(2.0**-63)  # its square is the smallest normal
ZERO, ONE = np.float32(0.0), np.float32(1.0)

dividing = partial(compiled, error_model="numpy")  # x / 0 is an infinity, as the definition's is


@compiled
def _clipped(gradient, bound):  # type: ignore[no-untyped-def]
    """Return the gradient within [-bound, bound]; NaN passes."""
    g = bound if gradient > bound else gradient
    return -bound if g < -bound else g


@compiled
def sgd(places: np.ndarray, sizes: np.ndarray, bound: np.float32, rate: np.float32) -> None:
    """Update in place: w - rate g."""
    for part in range(sizes.size):
        n = sizes[part]
        weight, gradient = floats_at(places[part, 0], n), floats_at(places[part, 1], n)
        for i in range(n):
            weight[i] = weight[i] + (-rate) * _clipped(gradient[i], bound)


@compiled
def momentum(places: np.ndarray, sizes: np.ndarray, bound: np.float32, rate: np.float32, decay: np.float32) -> None:
    """Update in place: v = decay v + g, w - rate v."""
    for part in range(sizes.size):
        n = sizes[part]
        weight, gradient = floats_at(places[part, 0], n), floats_at(places[part, 1], n)
        velocity = floats_at(places[part, 2], n)
        for i in range(n):
            v = decay * velocity[i] + _clipped(gradient[i], bound)
            v = ZERO if abs(v) < SMALLEST_NORMAL else v
            velocity[i] = v
            weight[i] = weight[i] + (-rate) * v


@dividing
def adagrad(places: np.ndarray, sizes: np.ndarray, bound: np.float32, rate: np.float32, epsilon: np.float32) -> None:
    """Update in place: s = s + g g, w - rate g / (sqrt(s) + epsilon)."""
    for part in range(sizes.size):
        n = sizes[part]
        weight, gradient = floats_at(places[part, 0], n), floats_at(places[part, 1], n)
        square_sum = floats_at(places[part, 2], n)
        for i in range(n):
            g = _clipped(gradient[i], bound)
            h = ZERO if abs(g) < SMALLEST_SQUARED else g
            s = square_sum[i] + h * h
            square_sum[i] = s
            weight[i] = weight[i] + (-rate) * (g / (np.sqrt(s) + epsilon))


@dividing
def adam(
    places: np.ndarray,
    sizes: np.ndarray,
    bound: np.float32,
    rate: np.float32,
    keep1: np.float32,
    new1: np.float32,
    keep2: np.float32,
    new2: np.float32,
    correction: np.float32,
    epsilon: np.float32,
) -> None:
    """Update in place: m = keep1 m + new1 g, v = keep2 v + new2 g g, w - rate m / (sqrt(v) / correction + epsilon)."""
    corrects = correction != ONE  # dividing by 1, as after some ten thousand updates, would change nothing
    for part in range(sizes.size):
        n = sizes[part]
        weight, gradient = floats_at(places[part, 0], n), floats_at(places[part, 1], n)
        moment1, moment2 = floats_at(places[part, 2], n), floats_at(places[part, 3], n)
        for i in range(n):
            g = _clipped(gradient[i], bound)
            h = ZERO if abs(g) < SMALLEST_SQUARED else g
            m = keep1 * moment1[i] + new1 * g
            v = keep2 * moment2[i] + new2 * (h * h)
            m = ZERO if abs(m) < SMALLEST_NORMAL else m
            v = ZERO if v < SMALLEST_NORMAL else v
            moment1[i] = m
            moment2[i] = v
            root = np.sqrt(v)
            if corrects:
                root = root / correction
            weight[i] = weight[i] + (-rate) * (m / (root + epsilon))
