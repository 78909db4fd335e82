"""Multiply-accumulates of meProp's networks, counted: what its CPU speed-ups should follow."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Layer:
    """One linear map: multiplications of one example in each of its GEMMs are inputs x outputs."""

    inputs: int
    outputs: int
    grad_input: bool = True  # whether what enters it wants a gradient
    sparse: bool = True
    groups: int = 1  # parts of the outputs that keep k each: the gates of an LSTM, if they are ranked apart

    def forward(self) -> int:
        """Multiplications of the output GEMM."""
        return self.inputs * self.outputs

    def backward(self, kept: int | None) -> int:
        """Multiplications of grad_weight and grad_input; `kept` of None is dense."""
        rows = self.outputs if kept is None or not self.sparse else min(kept * self.groups, self.outputs)
        return self.inputs * rows * (2 if self.grad_input else 1)


def mnist() -> tuple[Layer, ...]:
    """784-500-500-10; top-k at the output too, where k >= 10 is all of it."""
    return Layer(784, 500, grad_input=False), Layer(500, 500), Layer(500, 10)


def parser() -> tuple[Layer, ...]:
    """2400-500-25 with trained embeddings, one hidden layer as in Chen & Manning's parser."""
    return Layer(2400, 500), Layer(500, 25)


def tagger(apart: bool) -> tuple[Layer, ...]:
    """One word of an LSTM of 500 over 190 inputs, 45 tags; the output layer stays dense, as the paper says."""
    groups = 4 if apart else 1
    return Layer(190, 2000, groups=groups), Layer(500, 2000, groups=groups), Layer(500, 45, sparse=False)


def backward_gain(layers: tuple[Layer, ...], kept: int) -> float:
    """Dense over top-k multiplications of the backward pass."""
    return sum(layer.backward(None) for layer in layers) / sum(layer.backward(kept) for layer in layers)


def total_gain(layers: tuple[Layer, ...], kept: int) -> float:
    """The same for forward and backward together."""
    forward = sum(layer.forward() for layer in layers)
    dense, topk = (forward + sum(layer.backward(k) for layer in layers) for k in (None, kept))
    return dense / topk
