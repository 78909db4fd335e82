"""Attention as what it is made of: two products with a softmax between them that is really stored.

torch runs it as one fused kernel; here the scores exist, in the plan's formats, as they would on a machine without
that fusion.
"""

from __future__ import annotations

from math import sqrt
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from hwsim.errors import UnsupportedError
from hwsim.training.elementwise import computed, dropout, gradients_stored
from hwsim.training.linear import linear
from hwsim.training.product import matmul
from hwsim.training.reducing import reduced
from hwsim.training.step import Site


def scaled_dot_product_attention(
    site: Site,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Emulate `torch.nn.functional.scaled_dot_product_attention`."""
    if enable_gqa:
        raise UnsupportedError(f"layer {site.layer!r}: attention with enable_gqa is not emulated")
    return attend(site, query, key, value, attn_mask, dropout_p, is_causal, scale)[0]


def attend(
    site: Site,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    dropout_p: float,
    is_causal: bool,
    scale: float | None,
) -> tuple[Tensor, Tensor]:
    """Return the attended values (..., queries, features) and the weights (..., queries, keys)."""
    factor = 1 / sqrt(query.shape[-1]) if scale is None else scale
    if is_causal:
        mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
    keys = key.transpose(-2, -1)
    _alias(site, keys, key)
    scores = matmul(site.part("scores"), query, keys)
    weights = _softmax(site.part("softmax"), scores, factor, mask)
    if dropout_p:
        weights = dropout(site.part("dropout"), weights, dropout_p)
    return matmul(site.part("values"), weights, value), weights


def multi_head_attention_forward(
    site: Site,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    training: bool = True,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    use_separate_proj_weight: bool = False,
    q_proj_weight: Tensor | None = None,
    k_proj_weight: Tensor | None = None,
    v_proj_weight: Tensor | None = None,
    static_k: Tensor | None = None,
    static_v: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Emulate `torch.nn.functional.multi_head_attention_forward` (the heart of nn.MultiheadAttention)."""
    if bias_k is not None or bias_v is not None or add_zero_attn or static_k is not None or static_v is not None:
        raise UnsupportedError(f"layer {site.layer!r}: attention with bias_k, bias_v, add_zero_attn or static keys")
    batched = query.ndim == 3
    if not batched:
        query, key, value = (t.unsqueeze(1) for t in (query, key, value))
    weights: tuple[Any, ...] = (q_proj_weight, k_proj_weight, v_proj_weight)
    if not use_separate_proj_weight:
        assert in_proj_weight is not None
        weights = _thirds(site.part("in_proj_weight"), in_proj_weight)
    biases: tuple[Any, ...] = (None, None, None)
    if in_proj_bias is not None:
        biases = _thirds(site.part("in_proj_bias"), in_proj_bias)
    q, k, v = (
        _heads(site, linear(site.part(name), x, w, b), num_heads)
        for name, x, w, b in zip("qkv", (query, key, value), weights, biases, strict=True)
    )
    mask = _joint_mask(attn_mask, key_padding_mask, num_heads, query.shape[1], is_causal and attn_mask is None, query)
    p = dropout_p if training else 0.0
    attended, attention = attend(site, q, k, v, mask, p, False, None)
    merged = attended.permute(2, 0, 1, 3).flatten(2)
    _alias(site, merged, attended)
    result = linear(site.part("out_proj"), merged, out_proj_weight, out_proj_bias)
    if not batched:
        result = result.squeeze(1)
    if not need_weights:
        return result, None
    shown = attention.mean(1) if average_attn_weights else attention
    return result, shown if batched else shown.squeeze(0)


def _thirds(site: Site, packed: Tensor) -> tuple[Tensor, ...]:
    """Return the three parts of a packed parameter."""
    parts = packed.chunk(3)
    if site.step.recorder is not None:
        site.step.recorder.slices(site, packed, parts)
    return parts


def _heads(site: Site, x: Tensor, heads: int) -> Tensor:
    """Return (length, batch, features) as (batch, heads, length, features of a head)."""
    split = x.unflatten(2, (heads, -1)).permute(1, 2, 0, 3)
    _alias(site, split, x)
    return split


def _joint_mask(
    attention: Tensor | None, padding: Tensor | None, heads: int, batch: int, causal: bool, like: Tensor
) -> Tensor | None:
    """Return one additive mask (batch or 1, heads or 1, queries, keys) of both masks; True means masked out there."""
    if causal:
        size = like.shape[0]
        attention = torch.ones(size, size, dtype=torch.bool, device=like.device).triu(1)
    total = None
    if attention is not None:
        shaped = attention if attention.ndim == 2 else attention.unflatten(0, (batch, heads))
        total = _additive(shaped)
    if padding is not None:
        padded = _additive(padding.reshape(batch, 1, 1, -1))
        total = padded if total is None else total + padded
    return total


def _additive(mask: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, dtype=torch.float32, device=mask.device).masked_fill(mask, float("-inf"))


def _softmax(site: Site, scores: Tensor, factor: float, mask: Tensor | None) -> Tensor:
    """Return the softmax of the scaled and masked scores."""

    def masked(x: Tensor) -> Tensor:
        x = x * factor
        if mask is None:
            return x
        return x.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else x + mask

    result: Tensor
    if site.precision.emulates_loss:
        scaled = masked(*gradients_stored(site, (scores,), {})[0])
        result = reduced(site, "softmax", functional.softmax, (scaled, -1), {})
    else:
        result = computed(site, lambda x: functional.softmax(masked(x), -1), (scores,), {})
    if site.step.recorder is not None:
        site.step.recorder.function(site, "softmax", "reducing", False, (scores,), result)
    return result


def _alias(site: Site, view: Tensor | None, source: Tensor | None) -> None:
    if site.step.recorder is not None and view is not None and source is not None:
        site.step.recorder.alias(view, (source,))
