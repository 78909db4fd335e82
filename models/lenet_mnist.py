"""LeNet-5 in its usual modern form for MNIST: two convolutions with ReLU and max pooling, three linear layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LeNet(nn.Module):
    """28 x 28 images to 10 classes (LeCun et al., 1998, with ReLU and max pooling)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 5, padding=2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.pool = nn.MaxPool2d(2)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (batch, 784) to logits (batch, 10)."""
        x = x.reshape(-1, 1, 28, 28)
        x = self.pool(torch.relu(self.conv1(x)))
        x = self.pool(torch.relu(self.conv2(x)))
        x = torch.relu(self.fc1(x.flatten(1)))
        return self.fc3(torch.relu(self.fc2(x)))


def model() -> nn.Module:
    """Return the network."""
    return LeNet()
