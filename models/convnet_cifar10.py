"""The convnet of Sakr & Shanbhag 2019 for CIFAR-10: 2 x 64C3, pool, 2 x 128C3, pool, 2 x 256C3, 2 x 512, 10.

Convolutions are "valid" (no padding); 1,542,848 weights and 59.45 M multiply-accumulates an image.
"""

from __future__ import annotations

from torch import Tensor, nn


class ConvNet(nn.Module):
    """Six convolutions and three linear layers with ReLU between them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 64, 3), nn.Conv2d(64, 64, 3)
        self.conv3, self.conv4 = nn.Conv2d(64, 128, 3), nn.Conv2d(128, 128, 3)
        self.conv5, self.conv6 = nn.Conv2d(128, 256, 3), nn.Conv2d(256, 256, 3)
        self.pool, self.relu = nn.MaxPool2d(2), nn.ReLU()
        self.fc1, self.fc2, self.fc3 = nn.Linear(256, 512), nn.Linear(512, 512), nn.Linear(512, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (batch, 3, 32, 32) to logits (batch, 10)."""
        x = self.pool(self.relu(self.conv2(self.relu(self.conv1(x)))))
        x = self.pool(self.relu(self.conv4(self.relu(self.conv3(x)))))
        x = self.relu(self.conv6(self.relu(self.conv5(x)))).flatten(1)
        return self.fc3(self.relu(self.fc2(self.relu(self.fc1(x)))))


def model() -> nn.Module:
    """Return the network."""
    return ConvNet()
