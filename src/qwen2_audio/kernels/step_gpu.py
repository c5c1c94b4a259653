"""The language model at inference on a GPU, by few kernels: one new token of each of several rows, or prompts from their start.

The plain version is `qwen2_audio.model.language_model.Decoder`. A single row goes through products of our own, which take the
norm before them, the activation and the sum after them along; more go through those of torch. Layers whose weights are rounded
multiply by themselves. Nothing here waits for the host.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from qwen2_audio.checkpoints.int4 import Int4Linear, Parts4
from qwen2_audio.gpu import decode as kernels
from qwen2_audio.gpu.products import product
from qwen2_audio.kernels.packing import Joined
from qwen2_audio.model.attention import Packing, attend
from qwen2_audio.model.kv_cache import KVCache
from qwen2_audio.model.language_model import DecoderLayer, LanguageModel, rotary_angles
from qwen2_audio.model.linear import Linear, project

Parts = Sequence[tuple[KVCache, int, int]]
"""Rows of caches: the cache, the first of its rows that are meant, and how many."""


class Rows:
    """Where rows lie and how much they hold, on the device; more of them than are in use are none.

    Attributes:
        past: int64 [rows], positions that each row holds, -1 for none.
        keys, values: int64 [layers, rows], addresses.
        strides: int64 [rows], how many numbers a head of a row is from the next.
    """

    def __init__(self, layers: int, rows: int, device: torch.device) -> None:
        self.past = torch.full((rows,), -1, device=device)
        self.keys, self.values = torch.zeros(2, layers, rows, dtype=torch.long, device=device)
        self.strides = torch.zeros(rows, dtype=torch.long, device=device)
        self._at: tuple[tuple[int, int, int], ...] = ()
        self._held: list[int] = []

    def set(self, parts: Parts) -> None:
        """Take these rows, before a step that ends with `advance`."""
        at = tuple((cache.place, first, count) for cache, first, count in parts)
        held = [length for cache, first, count in parts for length in cache.lengths[first : first + count]]
        if at != self._at:
            self._look_up(parts)
        if held != self._held or at != self._at:
            self.past.copy_(torch.tensor(held + [-1] * (len(self.past) - len(held))))
        self._at, self._held = at, [length + 1 for length in held]

    def _look_up(self, parts: Parts) -> None:
        places = torch.zeros(2, *self.keys.shape, dtype=torch.long)
        strides = torch.zeros(len(self.strides), dtype=torch.long)
        start = 0
        for cache, first, count in parts:
            layers = [cache.rows_of_layer(layer)[0] for layer in range(len(self.keys))]
            keys = layers[0][0]
            rows, bytes_of_row = slice(start, start + count), keys.stride(0) * keys.itemsize
            numbers = torch.arange(first, first + count) * bytes_of_row
            places[:, :, rows] = torch.tensor([[t.data_ptr() for t in pair] for pair in layers]).T[:, :, None] + numbers
            strides[rows] = keys.stride(1)
            start += count
        self.keys.copy_(places[0])
        self.values.copy_(places[1])
        self.strides.copy_(strides)

    def advance(self) -> None:
        """On the device: every row holds one more."""
        self.past.add_(self.past >= 0)


class Prompts:
    """Prompts laid end to end, each the first that its row will hold, on the device.

    Attributes:
        owners, positions: int64 [tokens], the row of each and its place there; -1 where there is no token.
        packing: where the prompts begin and end, what is no token as another one at the end.
        last: int64 [n], the tokens whose logits are wanted.
    """

    def __init__(self, tokens: int, prompts: int, wanted: int, device: torch.device) -> None:
        self.owners, self.positions = torch.zeros(2, tokens, dtype=torch.long, device=device)
        self.packing = Packing(torch.zeros(prompts + 2, dtype=torch.int32, device=device), tokens)
        self.last = torch.zeros(wanted, dtype=torch.long, device=device)

    def set(self, lengths: Sequence[int], last: Tensor) -> None:
        """Take these prompts."""
        tokens, counts = len(self.owners), torch.tensor(lengths)
        places = torch.zeros(2, tokens, dtype=torch.long)
        places[0, : sum(lengths)] = torch.arange(len(lengths)).repeat_interleave(counts)
        places[1] = -1
        places[1, : sum(lengths)] = torch.cat([torch.arange(length) for length in lengths])
        self.owners.copy_(places[0])
        self.positions.copy_(places[1])
        bounds = torch.full_like(self.packing.bounds, tokens, device="cpu")
        bounds[0] = 0
        bounds[1 : len(lengths) + 1] = counts.cumsum(0)
        self.packing.bounds.copy_(bounds)
        self.last.copy_(last)


class Step:
    """The layers and the head of a language model.

    It sees the weights where they lie; whoever replaces layers attaches anew.
    """

    def __init__(self, model: LanguageModel) -> None:
        config = model.model.config
        self._heads, self._kv_heads, self._size = (
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
        )
        self._eps = config.rms_norm_eps
        self._layers = [cast("DecoderLayer", layer) for layer in model.model.layers]
        self._norm, self._head = model.model.norm.weight, model.lm_head
        positions = torch.arange(config.max_position_embeddings, device=self._norm.device)
        cos, sin = rotary_angles(config, positions, torch.float32)
        half = config.head_dim // 2
        self._angles = cos[:, 0, :half].contiguous(), sin[:, 0, half:].contiguous()

    @property
    def layers(self) -> int:
        return len(self._layers)

    def decode(self, embeddings: Tensor, rows: Rows) -> Tensor:
        """Logits [rows, vocab_size] of one new token of each row, embeddings [rows, hidden_size]."""

        def attended(layer: int, qkv: Tensor) -> Tensor:
            places = rows.keys[layer], rows.values[layer], rows.strides
            return kernels.attend(qkv, self._angles, places, rows.past, self._heads, self._kv_heads)

        x = embeddings.clone()
        if len(x) == 1:
            return self._alone(x, attended)
        return self._logits(*self._together(x, attended))

    def prefill(self, embeddings: Tensor, rows: Rows, prompts: Prompts) -> Tensor:
        """Logits [n, vocab_size] of prompts, embeddings [tokens, hidden_size]."""
        sizes = [count * self._size for count in (self._heads, self._kv_heads, self._kv_heads)]

        def attended(layer: int, qkv: Tensor) -> Tensor:
            places = rows.keys[layer], rows.values[layer], rows.strides
            kernels.turn_and_store(
                qkv, self._angles, places, prompts.owners, prompts.positions, self._heads, self._kv_heads
            )
            q, k, v = (part.unflatten(-1, (-1, self._size)) for part in qkv.split(sizes, dim=-1))
            return attend(q, k, v, prompts.packing, causal=True).flatten(-2)

        x, more = self._together(embeddings.clone(), attended)
        return self._logits(x[prompts.last], more[prompts.last])

    def _alone(self, x: Tensor, attended: Callable[[int, Tensor], Tensor]) -> Tensor:
        for number, layer in enumerate(self._layers):
            attention, mlp = layer.self_attn, layer.mlp
            qkv = self._normed(x, layer.input_layernorm.weight, [attention.q_proj, attention.k_proj, attention.v_proj])
            _single(attended(number, qkv), [attention.o_proj], x, add=True)
            norm = layer.post_attention_layernorm.weight
            inner = self._normed(x, norm, [mlp.gate_proj, mlp.up_proj], gated=True)
            _single(inner, [mlp.down_proj], x, add=True)
        return self._normed(x, self._norm, [self._head])

    def _normed(self, x: Tensor, norm: Tensor, layers: Sequence[nn.Module], *, gated: bool = False) -> Tensor:
        return _single(x, layers, norm=norm, eps=self._eps, gated=gated)

    def _together(self, x: Tensor, attended: Callable[[int, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """All layers, from x, which is written over; their output is the sum of both [tokens, hidden_size]."""
        more: Tensor | None = None
        for number, layer in enumerate(self._layers):
            attention, mlp = layer.self_attn, layer.mlp
            normed = kernels.add_and_norm(x, more, layer.input_layernorm.weight, self._eps)
            qkv = _projected([attention.q_proj, attention.k_proj, attention.v_proj], normed)
            more = attention.o_proj(attended(number, qkv))
            normed = kernels.add_and_norm(x, more, layer.post_attention_layernorm.weight, self._eps)
            more = mlp.down_proj(kernels.gated(_projected([mlp.gate_proj, mlp.up_proj], normed)))
        return x, x.new_zeros(x.shape) if more is None else more

    def _logits(self, x: Tensor, more: Tensor) -> Tensor:
        return _projected([self._head], kernels.add_and_norm(x, more, self._norm, self._eps))


def _projected(layers: Sequence[nn.Module], x: Tensor) -> Tensor:
    """The outputs of layers with a common input, side by side, contiguous."""
    first = layers[0]
    if isinstance(first, Int4Linear) and first.weight is not None:
        return first.weight(x)
    if isinstance(first, Linear) and first.packed is not None and first.packed.fits(layers):
        return first.packed(x)
    outputs = project(layers, x)
    return outputs[0] if len(outputs) == 1 else torch.cat(list(outputs), dim=-1)


def _single(
    x: Tensor,
    layers: Sequence[nn.Module],
    out: Tensor | None = None,
    *,
    norm: Tensor | None = None,
    eps: float = 0.0,
    gated: bool = False,
    add: bool = False,
) -> Tensor:
    """The outputs of layers with a common input for a single row, side by side; see `gpu.products.product`."""
    whole = _whole(layers)
    if whole is None:
        y = _projected(layers, x if norm is None else kernels.add_and_norm(x, None, norm, eps))
        y = kernels.gated(y) if gated else y
        return y if out is None else out.add_(y)
    weight, bias, outputs = whole
    out = x.new_empty(1, outputs // (1 + gated)) if out is None else out
    return product(x, weight, out, norm=norm, eps=eps, bias=bias, gated=gated, add=add)


def _whole(layers: Sequence[nn.Module]) -> tuple[Tensor | Parts4, Tensor | None, int] | None:
    """The weights and biases of layers with a common input as one, and their outputs; None where they lie apart."""
    first = layers[0]
    if isinstance(first, Int4Linear) and first.weight is not None:
        return first.weight.parts, first.weight.bias, sum(first.weight.sizes)
    if not isinstance(first, Linear) or type(first.weight) is not nn.Parameter:
        return None
    if len(layers) == 1:
        return first.weight, first.bias, first.out_features
    joined = first.packed
    if isinstance(joined, Joined) and joined.fits(layers):
        return joined.weight, joined.bias, len(joined.weight)
    return None
