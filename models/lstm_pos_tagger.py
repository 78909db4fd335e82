"""LSTM tagger after Sun et al. 2017: embedded words and their features, one LSTM of 500, a tag for each word.

The paper's tagger reads the Penn Treebank with 50 + 7 x 20 inputs; this one reads the four features of `ud_ewt`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

EMBEDDED = 0.1  # deviation of an embedding's initial entries; torch's 1 trains more slowly here
WORDS, AFFIXES, SHAPES = 8_000, 1_000, 8  # sizes of the data set's vocabularies


class Tagger(nn.Module):
    """Embeddings, an LSTM from left to right (or both ways), a linear layer."""

    def __init__(self, hidden: int, tags: int, both_ways: bool) -> None:
        super().__init__()
        self.word = nn.Embedding(WORDS, 50)
        self.prefix = nn.Embedding(AFFIXES, 20)
        self.suffix = nn.Embedding(AFFIXES, 20)
        self.shape = nn.Embedding(SHAPES, 20)
        self.lstm = nn.LSTM(110, hidden, batch_first=True, bidirectional=both_ways)
        self.fc = nn.Linear(hidden * (2 if both_ways else 1), tags)

    def reset_parameters(self) -> None:
        """Draw the embeddings narrower than torch does; the layers have been drawn."""
        for table in (self.word, self.prefix, self.suffix, self.shape):
            nn.init.normal_(table.weight, std=EMBEDDED)

    def forward(self, x: Tensor) -> Tensor:
        """Map features (batch, words, 4) to tag scores (batch, words, tags)."""
        embeddings = (self.word, self.prefix, self.suffix, self.shape)
        parts = [embed(x[..., column]) for column, embed in enumerate(embeddings)]
        states, _ = self.lstm(torch.cat(parts, -1))
        return self.fc(states)


def model(hidden: int = 500, tags: int = 49, both_ways: bool = False) -> nn.Module:
    """Return the network; 49 tags for `ud_ewt`, 17 for `ud_ewt_upos`."""
    return Tagger(hidden, tags, both_ways)
