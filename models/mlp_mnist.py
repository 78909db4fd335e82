"""Multilayer perceptron of Sun et al. 2017 for MNIST: 784-500-500-10 with ReLU."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn


class Perceptron(nn.Module):
    """Linear layers fc1, fc2, ... with ReLU (and dropout, if any) between them."""

    def __init__(self, sizes: tuple[int, ...], dropout: float) -> None:
        super().__init__()
        self.depth = len(sizes) - 1
        for number, (inputs, outputs) in enumerate(pairwise(sizes), start=1):
            self.add_module(f"fc{number}", nn.Linear(inputs, outputs))
        self.relu = nn.ReLU()
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (batch, pixels) to logits (batch, classes)."""
        x = x.flatten(1)
        for number in range(1, self.depth):
            x = self.dropout(self.relu(self.get_submodule(f"fc{number}")(x)))
        return self.get_submodule(f"fc{self.depth}")(x)


def model(hidden: int = 500, hidden_layers: int = 2, dropout: float = 0.0) -> nn.Module:
    """Return the network; the paper's tables vary its width, depth and dropout."""
    return Perceptron((784, *[hidden] * hidden_layers, 10), dropout)
