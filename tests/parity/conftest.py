"""Our tiny model and processor beside `transformers`' own, loaded from one and the same folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoProcessor, Qwen2AudioForConditionalGeneration

from qwen2_audio.checkpoints.load import load_config, load_model
from qwen2_audio.model.qwen2_audio import Qwen2Audio
from qwen2_audio.processing.conversation import Conversation
from qwen2_audio.processing.processor import Processor, Prompt, load_processor
from tests.tiny import tiny_folder


@dataclass(frozen=True)
class Pair:
    """The same checkpoint twice."""

    model: Qwen2Audio
    processor: Processor
    their_model: Any
    their_processor: Any

    def logits(self, prompts: list[Prompt]) -> list[Tensor]:
        """Ours: all prompts packed, [tokens, vocab] each."""
        clips = [clip for prompt in prompts for clip in prompt.clips]
        with torch.inference_mode():
            audio = self.model.encode_audio([c.mel for c in clips], [c.frames for c in clips]) if clips else None
            lengths = [len(prompt.ids) for prompt in prompts]
            ids = torch.tensor([token for prompt in prompts for token in prompt.ids])
            return list(self.model(ids, lengths, audio).split(lengths))

    def their_inputs(self, conversations: list[Conversation]) -> Any:
        """Theirs: all prompts left-padded, all recordings padded to 30 s and masked."""
        texts = [
            self.their_processor.apply_chat_template(as_dicts(c), add_generation_prompt=True, tokenize=False)
            for c in conversations
        ]
        audio = [source[0] for c in conversations for source in c.audios] or None
        return self.their_processor(text=texts, audio=audio, sampling_rate=16000, padding=True, return_tensors="pt")

    def their_logits(self, conversations: list[Conversation]) -> list[Tensor]:
        inputs = self.their_inputs(conversations)
        with torch.inference_mode():
            logits = self.their_model(**inputs).logits
        return [row[mask.bool()] for row, mask in zip(logits, inputs["attention_mask"], strict=True)]


def as_dicts(conversation: Conversation) -> list[dict[str, Any]]:
    """The original's list-of-dicts form."""
    return [
        {
            "role": message.role,
            "content": [
                {"type": "text", "text": part.text} if hasattr(part, "text") else {"type": "audio", "audio_url": "clip"}
                for part in message.parts
            ],
        }
        for message in conversation.messages
    ]


@pytest.fixture(scope="session")
def pair_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Pair]:
    """`pair_of(seed, mel_bins, gqa)`; each combination is built once."""

    @lru_cache
    def build(seed: int = 0, mel_bins: int = 128, gqa: bool = True) -> Pair:
        folder = tiny_folder(tmp_path_factory.mktemp("pair") / "tiny", seed=seed, mel_bins=mel_bins, gqa=gqa)
        config = load_config(folder)
        theirs = Qwen2AudioForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
        their_processor = AutoProcessor.from_pretrained(folder)
        return Pair(load_model(folder), load_processor(folder, config), theirs, their_processor)

    return build


@pytest.fixture(scope="session")
def pair(pair_of: Callable[..., Pair]) -> Pair:
    """The default pair: 128 mel bins, grouped-query attention."""
    return pair_of(0, 128, True)
