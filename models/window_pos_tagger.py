"""Window tagger: each word's embeddings and its two neighbors', one hidden layer of ReLUs, a tag for each word.

The window approach of Collobert et al. 2011 (JMLR 12:2493) in small form, without scores of tag sequences.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

SIZES = ((8_000, 32), (1_000, 12), (1_000, 12), (8, 8))  # words, prefixes, suffixes, shapes: vocabulary and width


class Tagger(nn.Module):
    """Sees a window of three words; sentences are padded by zeros at both ends."""

    def __init__(self, hidden: int, tags: int) -> None:
        super().__init__()
        self.embeddings = nn.ModuleList(nn.Embedding(count, width) for count, width in SIZES)
        self.hidden = nn.Linear(3 * sum(width for _, width in SIZES), hidden)
        self.relu = nn.ReLU()
        self.fc = nn.Linear(hidden, tags)

    def forward(self, x: Tensor) -> Tensor:
        """Map features (batch, words, 4) to tag scores (batch, words, tags)."""
        here = torch.cat([embed(x[..., column]) for column, embed in enumerate(self.embeddings)], -1)
        edge = torch.zeros_like(here[:, :1])
        before, after = torch.cat([edge, here[:, :-1]], 1), torch.cat([here[:, 1:], edge], 1)
        return self.fc(self.relu(self.hidden(torch.cat([before, here, after], -1))))


def model(hidden: int = 64, tags: int = 17) -> nn.Module:
    """Return the network; 49 tags for `ud_ewt`, 17 for `ud_ewt_upos`."""
    return Tagger(hidden, tags)
