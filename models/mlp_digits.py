"""Small perceptron for the 8 x 8 digits of scikit-learn: 64-128-128-10 with ReLU."""

from __future__ import annotations

from torch import Tensor, nn


class Perceptron(nn.Module):
    """Two hidden layers and a linear output."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(64, hidden)
        self.relu1 = nn.ReLU()
        self.fc2 = nn.Linear(hidden, hidden)
        self.relu2 = nn.ReLU()
        self.fc3 = nn.Linear(hidden, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (batch, 64 pixels) to logits (batch, 10)."""
        x = self.relu1(self.fc1(x))
        x = self.relu2(self.fc2(x))
        return self.fc3(x)


def model(hidden: int = 128) -> nn.Module:
    """Return the network."""
    return Perceptron(hidden)
