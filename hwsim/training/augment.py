"""Random changes of training images, drawn from seed and step so that they are the same on every machine."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from hwsim.errors import SpecError

PADDING = 4


def augment(images: Tensor, seed: int, step: int) -> Tensor:
    """Return images (n, channels, height, width), each flipped or not and cropped from a zero-padded copy.

    Raises SpecError for inputs that are no images.
    """
    if images.ndim != 4:
        raise SpecError(f"augment: got inputs of shape {tuple(images.shape)}, expected (n, channels, height, width)")
    count, _, height, width = images.shape
    draws = np.random.default_rng([seed, step, 1])
    flips = torch.from_numpy(draws.integers(0, 2, count).astype(bool))
    offsets = draws.integers(0, 2 * PADDING + 1, (2, count))
    images = torch.where(flips[:, None, None, None], images.flip(-1), images)
    padded = functional.pad(images, (PADDING,) * 4)
    rows = torch.from_numpy(offsets[0])[:, None] + torch.arange(height)
    columns = torch.from_numpy(offsets[1])[:, None] + torch.arange(width)
    examples = torch.arange(count)[:, None, None]
    return padded.permute(0, 2, 3, 1)[examples, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()
