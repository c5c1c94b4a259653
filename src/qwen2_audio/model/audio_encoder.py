"""The audio encoder: Whisper's encoder, with pooling by two before the final norm.

Each clip is encoded at its own length: with attention confined to valid frames, those past its end change nothing, but for the
two that the convolutions reach. These are functions here, no modules: processes that share layers must call as many modules.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import conv1d, gelu

from qwen2_audio.config import AudioConfig, audio_tokens, encoder_frames
from qwen2_audio.model.attention import Packing, attend
from qwen2_audio.model.linear import Linear, project


class EncoderAttention(nn.Module):
    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        self.heads = config.encoder_attention_heads
        self.q_proj = Linear(config.d_model, config.d_model)
        self.k_proj = Linear(config.d_model, config.d_model, bias=False)
        self.v_proj = Linear(config.d_model, config.d_model)
        self.out_proj = Linear(config.d_model, config.d_model)

    def forward(self, x: Tensor, lengths: Sequence[int] | Packing) -> Tensor:
        q, k, v = (y.unflatten(-1, (self.heads, -1)) for y in project([self.q_proj, self.k_proj, self.v_proj], x))
        return self.out_proj(attend(q, k, v, lengths, causal=False).flatten(-2))


class EncoderLayer(nn.Module):
    """Pre-norm transformer layer."""

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        self.self_attn = EncoderAttention(config)
        self.self_attn_layer_norm = nn.LayerNorm(config.d_model)
        self.fc1 = Linear(config.d_model, config.encoder_ffn_dim)
        self.fc2 = Linear(config.encoder_ffn_dim, config.d_model)
        self.final_layer_norm = nn.LayerNorm(config.d_model)

    def forward(self, x: Tensor, lengths: Sequence[int] | Packing) -> Tensor:
        x = x + self.self_attn(self.self_attn_layer_norm(x), lengths)
        x = x + self.fc2(gelu(self.fc1(self.final_layer_norm(x))))
        if x.dtype == torch.float16:  # large activations would overflow to inf
            limit = torch.finfo(x.dtype).max - 1000
            x = x.clamp(-limit, limit)
        return x


class FastLayers(Protocol):
    """Another way to run the layers, for certain work."""

    def __call__(self, x: Tensor, lengths: Sequence[int]) -> Tensor | None:
        """Audio states [audio_tokens, d_model] of x [positions, d_model]; None: this is not such work."""


class AudioEncoder(nn.Module):
    """Log-mel features to audio states, 25 a second."""

    quick: FastLayers | None = None
    """Set by `qwen2_audio.kernels.steps`."""

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(config.num_mel_bins, config.d_model, kernel_size=3, padding=1)
        self.conv2 = nn.Conv1d(config.d_model, config.d_model, kernel_size=3, stride=2, padding=1)
        self.embed_positions = nn.Embedding(config.max_source_positions, config.d_model)
        self.embed_positions.requires_grad_(False)
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.encoder_layers))
        self.layer_norm = nn.LayerNorm(config.d_model)

    def forward(self, mels: Sequence[Tensor], frames: Sequence[int]) -> Tensor:
        """Encode clips of unlike length together.

        Args:
            mels: one [mel_bins, frames + tail] a clip; `tail` is up to two frames of what follows the clip.
            frames: number of valid mel frames of each clip.

        Returns:
            [audio_tokens, d_model], the clips laid end to end; clip i has `audio_tokens(frames[i])` rows.
        """
        lengths = [encoder_frames(count) for count in frames]
        x = torch.cat([self._embed(mel, length) for mel, length in zip(mels, lengths, strict=True)])
        found = None if self.quick is None else self.quick(x, lengths)
        if found is not None:
            return found
        for layer in self.layers:
            x = layer(x, lengths)
        tokens = [audio_tokens(count) for count in frames]
        pairs = [part[: 2 * count] for part, count in zip(x.split(lengths), tokens, strict=True)]
        return self.layer_norm(torch.cat(pairs).unflatten(0, (-1, 2)).mean(1))

    def _embed(self, mel: Tensor, length: int) -> Tensor:
        x = gelu(conv1d(mel.to(self.conv1.weight.dtype), self.conv1.weight, self.conv1.bias, padding=1))
        x = gelu(conv1d(x, self.conv2.weight, self.conv2.bias, stride=2, padding=1))[:, :length].T
        return x + self.embed_positions.weight[:length]
