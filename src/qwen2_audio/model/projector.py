"""The projector: audio states into the embedding space of the language model."""

from __future__ import annotations

from torch import Tensor, nn

from qwen2_audio.config import Qwen2AudioConfig
from qwen2_audio.model.linear import Linear


class Projector(nn.Module):
    def __init__(self, config: Qwen2AudioConfig) -> None:
        super().__init__()
        self.linear = Linear(config.audio.d_model, config.text.hidden_size)

    def forward(self, states: Tensor) -> Tensor:
        """[audio_tokens, d_model] to [audio_tokens, hidden_size]."""
        return self.linear(states)
