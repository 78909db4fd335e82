"""ResNet-20 for CIFAR-10 (He et al. 2016, section 4.2): three groups of three residual blocks, 0.27 M parameters.

Shortcuts where the size changes take every second pixel and pad channels with zeros (the paper's option A).
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional


class Block(nn.Module):
    """Two 3 x 3 convolutions with batch norm, and a shortcut around them."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride, self.wider = stride, outputs - inputs
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return relu(F(x) + shortcut(x))."""
        y = functional.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        if self.stride != 1 or self.wider:
            x = functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.wider))
        return functional.relu(y + x)


class ResNet(nn.Module):
    """A first convolution, nine blocks, the mean over the image and a linear layer."""

    def __init__(self, width: int, blocks: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        sizes = [width, *(width << group for group in range(3) for _ in range(blocks))]
        self.blocks = nn.Sequential(*(Block(i, o, 2 if o > i else 1) for i, o in pairwise(sizes)))
        self.fc = nn.Linear(width << 2, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (batch, 3, 32, 32) to logits (batch, 10)."""
        x = self.blocks(functional.relu(self.norm(self.conv(x))))
        return self.fc(x.mean((2, 3)))


def model(width: int = 16, blocks: int = 3) -> nn.Module:
    """Return the network; `width` is that of the first group, `blocks` are those of each group."""
    return ResNet(width, blocks)
