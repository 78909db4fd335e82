"""Small convnet with batch norm for 28 x 28 images (MNIST, Fashion-MNIST): two 3 x 3 convolutions, two linear layers.

Wei et al. 2017 (meProp for CNNs) describe no network that we could read, so this one is ours; 0.21 M weights.
"""

from __future__ import annotations

from torch import Tensor, nn


class ConvNet(nn.Module):
    """Convolution, batch norm, ReLU and pooling, twice; then a hidden linear layer and the output."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(1, channels, 3, padding=1), nn.BatchNorm2d(channels)
        self.conv2, self.norm2 = nn.Conv2d(channels, 2 * channels, 3, padding=1), nn.BatchNorm2d(2 * channels)
        self.fc1, self.fc2 = nn.Linear(2 * channels * 49, hidden), nn.Linear(hidden, 10)
        self.relu, self.pool = nn.ReLU(), nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (batch, 784) to logits (batch, 10)."""
        x = x.reshape(-1, 1, 28, 28)
        x = self.pool(self.relu(self.norm1(self.conv1(x))))
        x = self.pool(self.relu(self.norm2(self.conv2(x))))
        return self.fc2(self.relu(self.fc1(x.flatten(1))))


def model(channels: int = 16, hidden: int = 128) -> nn.Module:
    """Return the network; the second convolution has twice as many channels as the first."""
    return ConvNet(channels, hidden)
