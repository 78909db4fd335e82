"""A small convolutional network for CIFAR-10: two 5 x 5 convolutions of stride 2 and a linear layer, 1.1 M MACs."""

from __future__ import annotations

from torch import nn


def model(width: int = 16) -> nn.Module:
    """Return the network; its second convolution has twice `width` channels."""
    return nn.Sequential(
        nn.Conv2d(3, width, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(2 * width * 64, 10),
    )
