"""The whole model: audio encoder, projector and language model glued together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from qwen2_audio.config import Qwen2AudioConfig
from qwen2_audio.model.audio_encoder import AudioEncoder
from qwen2_audio.model.kv_cache import Cache, KVCache
from qwen2_audio.model.language_model import LanguageModel
from qwen2_audio.model.projector import Projector


class Qwen2Audio(nn.Module):
    """Qwen2-Audio. Parameter names equal those of the published checkpoint."""

    def __init__(self, config: Qwen2AudioConfig) -> None:
        super().__init__()
        self.config = config
        self.audio_tower = AudioEncoder(config.audio)
        self.multi_modal_projector = Projector(config)
        self.language_model = LanguageModel(config.text)

    @property
    def device(self) -> torch.device:
        return self.language_model.model.norm.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.language_model.model.norm.weight.dtype  # no linear layer's, which may be corrected or quantised

    def new_cache(self, rows: int, capacity: int) -> KVCache:
        """An empty key-value cache that fits this model."""
        return KVCache(self.config.text, rows, capacity, self.device, self.dtype)

    def encode_audio(self, mels: Sequence[Tensor], frames: Sequence[int]) -> Tensor:
        """Audio embeddings [audio_tokens, hidden_size] of clips laid end to end; see `AudioEncoder.forward`."""
        return self.multi_modal_projector(self.audio_tower(mels, frames))

    def embed(self, ids: Tensor, audio: Tensor | None) -> Tensor:
        """Token embeddings [tokens, hidden_size] of ids [tokens], with `audio` [audio_tokens, hidden_size] laid over the
        placeholder tokens in order. Their number must equal the number of placeholders."""
        embeddings = self.language_model.embed(ids)
        if audio is None:
            return embeddings
        places = (ids == self.config.audio_token_id).nonzero(as_tuple=True)[0]
        return embeddings.index_put((places,), audio.to(embeddings.dtype))

    def forward(
        self,
        ids: Tensor,
        lengths: Sequence[int],
        audio: Tensor | None = None,
        cache: Cache | None = None,
        logits_at: Tensor | None = None,
    ) -> Tensor:
        """Logits [n or tokens, vocab_size] for packed ids [tokens]; see `LanguageModel.forward` and `embed`."""
        return self.language_model(self.embed(ids, audio), lengths, cache, logits_at)
