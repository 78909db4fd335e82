"""Small convnet for 28 x 28 or 32 x 32 images: three 3 x 3 convolutions, two linear layers, activations in [0, 2].

Activations are clip(x, 0, 2), as in the fixed-point training of Sakr & Shanbhag 2019, each a module of its own.
"""

from __future__ import annotations

from torch import Tensor, nn


class ConvNet(nn.Module):
    """Convolutions of width, 2 and 2 times that, each with clipping and a 2 x 2 pooling, and two linear layers."""

    def __init__(self, channels: int, size: int, width: int, hidden: int) -> None:
        super().__init__()
        self.channels, self.size = channels, size
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.conv3 = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        self.fc1 = nn.Linear(2 * width * (size // 8) ** 2, hidden)
        self.fc2 = nn.Linear(hidden, 10)
        self.clip1, self.clip2 = nn.Hardtanh(0.0, 2.0), nn.Hardtanh(0.0, 2.0)
        self.clip3, self.clip4 = nn.Hardtanh(0.0, 2.0), nn.Hardtanh(0.0, 2.0)
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (batch, channels, size, size), or rows of as many pixels, to logits (batch, 10)."""
        x = x.reshape(-1, self.channels, self.size, self.size)
        x = self.pool(self.clip1(self.conv1(x)))
        x = self.pool(self.clip2(self.conv2(x)))
        x = self.pool(self.clip3(self.conv3(x)))
        return self.fc2(self.clip4(self.fc1(x.flatten(1))))


def model(channels: int = 3, size: int = 32, width: int = 8, hidden: int = 64) -> nn.Module:
    """Return the network; 3 channels and size 32 for CIFAR-10, 1 and 28 for the MNISTs."""
    return ConvNet(channels, size, width, hidden)
