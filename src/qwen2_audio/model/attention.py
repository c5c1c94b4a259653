"""`attend()`: scaled dot-product attention over packed sequences. Kernels live behind this one function."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from qwen2_audio.gpu.abilities import attends_packed


@dataclass(frozen=True, slots=True)
class Packing:
    """Where packed sequences begin and end, on their device: what is captured with it works for any.

    Attributes:
        bounds: int32 [sequences + 1], the first token of each, and the end.
        longest: no sequence is longer.
    """

    bounds: Tensor
    longest: int


def attend(query: Tensor, key: Tensor, value: Tensor, lengths: Sequence[int] | Packing, *, causal: bool) -> Tensor:
    """Attention inside each of several packed sequences (a block-diagonal mask that is never materialised).

    Args:
        query: [tokens, heads, head_dim], the sequences laid end to end.
        key, value: [tokens, kv_heads, head_dim]; `heads` is a multiple of `kv_heads` (grouped-query attention).
        lengths: number of tokens of each sequence; they add up to `tokens`. Or where they are.
        causal: whether a token sees only itself and those before it.

    Returns:
        [tokens, heads, head_dim]
    """
    if attends_packed(value):
        packing = lengths if isinstance(lengths, Packing) else _packing(tuple(lengths), value.device)
        return _packed(query.to(value.dtype), key.to(value.dtype), value, packing, causal)
    if isinstance(lengths, Packing):
        lengths = lengths.bounds.diff().tolist()
    if len(lengths) == 1:
        return _one(query, key, value, causal)
    parts = zip(query.split(list(lengths)), key.split(list(lengths)), value.split(list(lengths)), strict=True)
    return torch.cat([_one(q, k, v, causal) for q, k, v in parts])


def attend_cached(query: Tensor, keys: Tensor, values: Tensor, new: Sequence[int], past: Sequence[int]) -> Tensor:
    """Causal attention of the newest tokens of each sequence to everything in that sequence's cache row.

    Args:
        query: [tokens, heads, head_dim], the new tokens of all sequences laid end to end.
        keys, values: [rows, kv_heads, capacity, head_dim]; row i holds `past[i] + new[i]` valid positions.
        new: number of new tokens of each row.
        past: number of positions that were cached before them.

    Returns:
        [tokens, heads, head_dim]
    """
    out = []
    for row, (part, before) in enumerate(zip(query.split(list(new)), past, strict=True)):
        end = before + part.shape[0]
        k, v = keys[row : row + 1, :, :end], values[row : row + 1, :, :end]
        mask = None
        if before and part.shape[0] > 1:
            mask = torch.ones(part.shape[0], end, dtype=torch.bool, device=query.device).tril(before)
        out.append(_sdpa(part.transpose(0, 1)[None], k, v, mask, causal=before == 0)[0].transpose(0, 1))
    return torch.cat(out) if len(out) > 1 else out[0]


def attend_step(query: Tensor, keys: Tensor, values: Tensor, longest: int, seen: Tensor | None) -> Tensor:
    """Attention of one new token of each sequence to its cache row.

    Args:
        query: [rows, heads, head_dim].
        keys, values: [rows, kv_heads, capacity, head_dim].
        longest: positions of the fullest row, the new one included.
        seen: which of them each row holds, bool [rows, 1, 1, longest]; None where that is all in all rows.

    Returns:
        [rows, heads, head_dim]
    """
    return _sdpa(query[:, :, None], keys[:, :, :longest], values[:, :, :longest], seen, causal=False)[:, :, 0]


@lru_cache(maxsize=16)
def _packing(lengths: tuple[int, ...], device: torch.device) -> Packing:
    """Layer after layer asks for the same."""
    with torch.inference_mode(False):  # it may be needed for gradients later
        bounds = torch.tensor([0, *lengths], device=device).cumsum(0, dtype=torch.int32)
    return Packing(bounds, max(lengths))


def _packed(query: Tensor, key: Tensor, value: Tensor, packing: Packing, causal: bool) -> Tensor:
    """All sequences in one call (FlashAttention; Dao 2023)."""
    shared = query.shape[1] // key.shape[1]
    if shared > 1 and torch.is_grad_enabled():
        key, value = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)
    bounds, longest = packing.bounds, packing.longest
    out: Tensor = torch.ops.aten._flash_attention_forward(
        query, key, value, bounds, bounds, longest, longest, 0.0, causal, False
    )[0]
    return out


def _one(query: Tensor, key: Tensor, value: Tensor, causal: bool) -> Tensor:
    if value.device.type == "cpu" and value.dtype == torch.bfloat16:
        return _bfloat16_products(query.bfloat16(), key.bfloat16(), value, causal)
    q, k, v = (tensor.transpose(0, 1)[None] for tensor in (query, key, value))
    return _sdpa(q, k, v, None, causal=causal)[0].transpose(0, 1)


def _bfloat16_products(query: Tensor, key: Tensor, value: Tensor, causal: bool) -> Tensor:
    """Two plain products: on CPUs that multiply bfloat16 natively quicker, forward and backward, than the fused kernel at
    the lengths of recordings."""
    tokens, heads, size = query.shape
    shared = heads // key.shape[1]  # query heads that read the same keys are laid below each other
    q = (query * size**-0.5).unflatten(1, (-1, shared)).permute(1, 2, 0, 3).flatten(1, 2)
    scores = torch.bmm(q, key.permute(1, 2, 0)).unflatten(1, (shared, tokens))
    if causal:
        ahead = torch.ones(tokens, tokens, dtype=torch.bool).triu(1)
        scores = scores.masked_fill(ahead, float("-inf"))
    weights = scores.softmax(-1, dtype=torch.float32).to(value.dtype).flatten(1, 2)
    mixed = torch.bmm(weights, value.transpose(0, 1)).unflatten(1, (shared, tokens))
    return mixed.permute(2, 0, 1, 3).flatten(1, 2)


def _sdpa(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *, causal: bool) -> Tensor:
    if query.device.type == "cpu" and not query.dtype == key.dtype == value.dtype == torch.float32:
        # the kernel for half precision is several times slower on CPUs
        with torch.autocast("cpu", enabled=False):
            return _sdpa(query.float(), key.float(), value.float(), mask, causal=causal).to(value.dtype)
    grouped = query.shape[1] != key.shape[1]
    return scaled_dot_product_attention(
        query, key, value, mask, is_causal=causal and query.shape[2] > 1, enable_gqa=grouped
    )
