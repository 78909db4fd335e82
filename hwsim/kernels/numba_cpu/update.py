"""Optimizer updates of float32 weights with float32 states, each parameter in one pass over memory.

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

SMALLEST_NORMAL = np.float32(2.0**-126)
SMALLEST_SQUARED = np.float32(2.0**-63)  # its square is the smallest normal
ZERO = np.float32(0.0)

dividing = partial(compiled, error_model="numpy")  # x / 0 is an infinity, as the definition's is


@compiled
def sgd(weight: np.ndarray, gradient: np.ndarray, rate: np.float32) -> None:
    """Update in place: w - rate g."""
    for i in range(weight.size):
        weight[i] = weight[i] + (-rate) * gradient[i]


@compiled
def momentum(
    weight: np.ndarray, gradient: np.ndarray, velocity: np.ndarray, rate: np.float32, decay: np.float32
) -> None:
    """Update in place: v = decay v + g, w - rate v."""
    for i in range(weight.size):
        v = decay * velocity[i] + gradient[i]
        v = ZERO if abs(v) < SMALLEST_NORMAL else v
        velocity[i] = v
        weight[i] = weight[i] + (-rate) * v


@dividing
def adagrad(
    weight: np.ndarray, gradient: np.ndarray, square_sum: np.ndarray, rate: np.float32, epsilon: np.float32
) -> None:
    """Update in place: s = s + g g, w - rate g / (sqrt(s) + epsilon)."""
    for i in range(weight.size):
        g = gradient[i]
        h = ZERO if abs(g) < SMALLEST_SQUARED else g
        s = square_sum[i] + h * h
        square_sum[i] = s
        weight[i] = weight[i] + (-rate) * (g / (np.sqrt(s) + epsilon))


@dividing
def adam(
    weight: np.ndarray,
    gradient: np.ndarray,
    moment1: np.ndarray,
    moment2: np.ndarray,
    rate: np.float32,
    keep1: np.float32,
    new1: np.float32,
    keep2: np.float32,
    new2: np.float32,
    correction: np.float32,
    epsilon: np.float32,
) -> None:
    """Update in place: m = keep1 m + new1 g, v = keep2 v + new2 g g, w - rate m / (sqrt(v) / correction + epsilon)."""
    for i in range(weight.size):
        g = gradient[i]
        h = ZERO if abs(g) < SMALLEST_SQUARED else g
        m = keep1 * moment1[i] + new1 * g
        v = keep2 * moment2[i] + new2 * (h * h)
        m = ZERO if abs(m) < SMALLEST_NORMAL else m
        v = ZERO if v < SMALLEST_NORMAL else v
        moment1[i] = m
        moment2[i] = v
        weight[i] = weight[i] + (-rate) * (m / (np.sqrt(v) / correction + epsilon))
