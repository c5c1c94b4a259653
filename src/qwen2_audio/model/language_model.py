"""The language model: Qwen2 (RMSNorm, rotary positions, grouped-query attention, SwiGLU), on packed tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm, silu

from qwen2_audio.config import TextConfig
from qwen2_audio.gpu.abilities import runs_kernels
from qwen2_audio.model.attention import attend
from qwen2_audio.model.kv_cache import Cache
from qwen2_audio.model.linear import Linear, project


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight, computed in float32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.size, self.eps = size, eps
        self._least = torch.tensor(math.sqrt(size * eps), device="cpu")

    def forward(self, x: Tensor) -> Tensor:
        if x.is_cuda:
            return rms_norm(x, (self.size,), self.weight.to(x.dtype), self.eps)
        if x.dtype == torch.float32:  # on CPUs a norm and a hypotenuse are quicker than torch's rms_norm
            norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
            return x * self.weight / (torch.hypot(norm, self._least) * self.size**-0.5)
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


def rotary_angles(config: TextConfig, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosine and signed sine of the rotary angles, [tokens, 1, head_dim] each, for int positions [tokens]."""
    steps = torch.arange(0, config.head_dim, 2, dtype=torch.int64, device=positions.device).float()
    frequencies = 1.0 / config.rope_theta ** (steps / config.head_dim)
    angles = positions.float()[:, None] * frequencies
    cos, sin = angles.cos(), angles.sin()
    signed = torch.cat([-sin, sin], dim=-1)[:, None]
    return torch.cat([cos, cos], dim=-1)[:, None].to(dtype), signed.to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding, "rotate half" convention, of x [tokens, heads, head_dim]."""
    if runs_kernels(x) and x.shape[-1] & (x.shape[-1] - 1) == 0:
        from qwen2_audio.gpu import elementwise

        return elementwise.rotate(x, cos, sin)
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, dims=-1), sin)


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up."""
    if runs_kernels(gate):
        from qwen2_audio.gpu import elementwise

        return elementwise.gated(gate, up)
    return silu(gate) * up


class Attention(nn.Module):
    def __init__(self, config: TextConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = config.head_dim
        kv_size = config.num_key_value_heads * config.head_dim
        self.q_proj = Linear(config.hidden_size, config.hidden_size)
        self.k_proj = Linear(config.hidden_size, kv_size)
        self.v_proj = Linear(config.hidden_size, kv_size)
        self.o_proj = Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor, angles: tuple[Tensor, Tensor], lengths: Sequence[int], cache: Cache | None) -> Tensor:
        projections = project([self.q_proj, self.k_proj, self.v_proj], x)
        q, k, v = (y.unflatten(-1, (-1, self.head_dim)) for y in projections)
        q, k = rotate(q, *angles), rotate(k, *angles)
        out = attend(q, k, v, lengths, causal=True) if cache is None else cache.attend(self.layer, q, k, v, lengths)
        return self.o_proj(out.flatten(-2))


class MLP(nn.Module):
    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = project([self.gate_proj, self.up_proj], x)
        return self.down_proj(gated(gate, up))


class DecoderLayer(nn.Module):
    def __init__(self, config: TextConfig, layer: int) -> None:
        super().__init__()
        self.self_attn = Attention(config, layer)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, angles: tuple[Tensor, Tensor], lengths: Sequence[int], cache: Cache | None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), angles, lengths, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """Embeddings, layers and final norm; without the head."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, lengths: Sequence[int], cache: Cache | None = None) -> Tensor:
        """Hidden states of packed sequences; see `LanguageModel.forward`."""
        if x.is_cuda and torch.is_autocast_enabled("cuda"):  # what layers add up, too: no cast before each product
            x = x.to(torch.get_autocast_dtype("cuda"))
        past = cache.lengths if cache is not None else [0] * len(lengths)
        ranges = [torch.arange(start, start + count) for start, count in zip(past, lengths, strict=True)]
        positions = torch.cat(ranges).to(x.device)
        angles = rotary_angles(self.config, positions, x.dtype)
        if cache is not None:
            cache.reserve(lengths)
        for layer in self.layers:
            x = layer(x, angles, lengths, cache)
        if cache is not None:
            cache.advance(lengths)
        return self.norm(x)


class FastSteps(Protocol):
    """Another way to run layers and head, for certain work."""

    def fits(self, x: Tensor, lengths: Sequence[int], cache: Cache) -> bool:
        """Whether this is such work."""

    def __call__(self, embeddings: Tensor, lengths: Sequence[int], cache: Cache, logits_at: Tensor | None) -> Tensor:
        """What `LanguageModel.forward` gives."""


class LanguageModel(nn.Module):
    """Qwen2 with its head. The head runs only on the positions asked for."""

    steps: FastSteps | None = None
    """Set by `qwen2_audio.kernels.steps`."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.model = Decoder(config)
        self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def embed(self, ids: Tensor) -> Tensor:
        """[tokens] ids to [tokens, hidden_size] embeddings."""
        return self.model.embed_tokens(ids)

    def forward(
        self,
        embeddings: Tensor,
        lengths: Sequence[int],
        cache: Cache | None = None,
        logits_at: Tensor | None = None,
    ) -> Tensor:
        """Logits of packed sequences.

        Args:
            embeddings: [tokens, hidden_size], the (new) tokens of all sequences laid end to end.
            lengths: number of (new) tokens of each sequence.
            cache: keys and values of what came before; one row a sequence. Written to and advanced.
            logits_at: int [n], the tokens whose logits are wanted; all when None.

        Returns:
            [n or tokens, vocab_size]
        """
        if cache is not None and self.steps is not None and self.steps.fits(embeddings, lengths, cache):
            return self.steps(embeddings, lengths, cache, logits_at)
        hidden = self.model(embeddings, lengths, cache)
        if logits_at is not None and len(logits_at) == 0:  # a part of a prompt: the largest product is for nothing
            return hidden.new_empty(0, self.model.config.vocab_size)
        return self.lm_head(hidden if logits_at is None else hidden[logits_at])
