"""Small causal transformer for characters (tiny Shakespeare): 4 layers of width 128, 4 heads, 128 characters."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class Block(nn.Module):
    """Attention and a perceptron, each behind a layer norm and beside a shortcut."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, length, width) to the same shape."""
        batch, length, width = x.shape
        split = self.qkv(self.norm1(x)).reshape(batch, length, 3, self.heads, width // self.heads)
        q, k, v = split.permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.dropout(self.out(attended.transpose(1, 2).reshape(batch, length, width)))
        return x + self.dropout(self.fc2(functional.gelu(self.fc1(self.norm2(x)))))


class CharTransformer(nn.Module):
    """Embedded characters and positions, blocks, a last norm and a linear layer."""

    def __init__(self, characters: int, length: int, width: int, layers: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.embed = nn.Embedding(characters, width)
        self.position = nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(Block(width, heads, dropout) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.fc = nn.Linear(width, characters)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start embeddings small, as transformers want it."""
        for embedding in (self.embed, self.position):
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Map character numbers (batch, length) to scores of the next one (batch, length, characters)."""
        places = torch.arange(x.shape[1], device=x.device)
        return self.fc(self.norm(self.blocks(self.embed(x) + self.position(places))))


def model(
    characters: int = 65, length: int = 128, width: int = 128, layers: int = 4, heads: int = 4, dropout: float = 0.0
) -> nn.Module:
    """Return the network."""
    return CharTransformer(characters, length, width, layers, heads, dropout)
