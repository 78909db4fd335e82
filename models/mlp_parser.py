"""Transition classifier of a parser after Chen & Manning 2014, as in Sun et al. 2017: 48 x 50 inputs, 500 hidden units.

The paper's parser has 25 outputs for the Penn Treebank; UD English EWT has 103 (shift, and left and right for each
relation). Hidden units are cubes, h = (W x + b)^3, as Chen & Manning's; Sun et al. do not say what theirs are.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

EMBEDDED = 0.1  # deviation of an embedding's initial entries; torch's 1 trains more slowly here
WORDS, TAGS, RELATIONS = 8_000, 64, 64  # sizes of the data set's vocabularies


class Parser(nn.Module):
    """Embeddings of 18 words, 18 tags and 12 relations, one hidden layer."""

    def __init__(self, hidden: int, transitions: int, activation: str) -> None:
        super().__init__()
        if activation not in ("cube", "relu"):
            raise ValueError(f"activation: got {activation!r}, expected 'cube' or 'relu'")
        self.activation = activation
        self.word = nn.Embedding(WORDS, 50)
        self.tag = nn.Embedding(TAGS, 50)
        self.relation = nn.Embedding(RELATIONS, 50)
        self.fc1 = nn.Linear(48 * 50, hidden)
        self.fc2 = nn.Linear(hidden, transitions)

    def reset_parameters(self) -> None:
        """Draw the embeddings narrower than torch does; the layers have been drawn."""
        for table in (self.word, self.tag, self.relation):
            nn.init.normal_(table.weight, std=EMBEDDED)

    def forward(self, x: Tensor) -> Tensor:
        """Map features (batch, 48) to transition scores (batch, transitions)."""
        parts = (self.word(x[:, :18]), self.tag(x[:, 18:36]), self.relation(x[:, 36:]))
        hidden = self.fc1(torch.cat(parts, 1).flatten(1))
        return self.fc2(hidden**3 if self.activation == "cube" else torch.relu(hidden))


def model(hidden: int = 500, transitions: int = 103, activation: str = "cube") -> nn.Module:
    """Return the network."""
    return Parser(hidden, transitions, activation)
