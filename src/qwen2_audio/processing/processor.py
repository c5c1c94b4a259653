"""The processor of a checkpoint: conversations to ids and clips, ready for the model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from qwen2_audio.config import SAMPLE_RATE, Qwen2AudioConfig, audio_tokens, mel_frames
from qwen2_audio.errors import CheckpointError, ContextLengthError, ConversationError
from qwen2_audio.processing.audio import load_audio, load_part
from qwen2_audio.processing.chat_template import check, render, render_base
from qwen2_audio.processing.conversation import AudioPart, AudioSource, Conversation, Message, Part
from qwen2_audio.processing.mel import Clip, log_mel
from qwen2_audio.processing.tokenizer import AUDIO, Tokenizer, load_tokenizer
from qwen2_audio.processing.windows import check_length, windows


@dataclass(frozen=True, slots=True)
class Prompt:
    """What one sequence starts with.

    Attributes:
        ids: int [tokens], every clip's placeholder repeated once for each of its audio tokens.
        clips: the recordings, in order.
        text: the prompt as rendered, one placeholder a clip.
    """

    ids: list[int]
    clips: list[Clip]
    text: str


class Measured(Protocol):
    """A recording of which it is known how many tokens it becomes; a `Clip` is one."""

    @property
    def tokens(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Window:
    """A recording of at most 30 s whose features are not computed yet, float32 [samples] at 16 kHz."""

    samples: NDArray[np.float32]

    @property
    def tokens(self) -> int:
        """Number of audio tokens that it becomes."""
        return audio_tokens(mel_frames(self.samples.shape[0]))


class Processor:
    """Tokenizer, features and prompt rendering of one checkpoint."""

    def __init__(self, tokenizer: Tokenizer, config: Qwen2AudioConfig) -> None:
        self.tokenizer = tokenizer
        self.mel_bins = config.audio.num_mel_bins
        self.audio_token_id = config.audio_token_id
        self.context_length = config.text.max_position_embeddings

    def clip(self, samples: NDArray[np.float32]) -> Clip:
        """Features of one recording of at most 30 s, float32 [samples] at 16 kHz."""
        return log_mel(samples, self.mel_bins)

    def expand(self, ids: list[int], clips: Iterator[Measured]) -> list[int]:
        """Repeat each placeholder once for each audio token of the next clip.

        Raises:
            ConversationError: more placeholders than clips.
        """
        out: list[int] = []
        for token in ids:
            if token == self.audio_token_id:
                clip = next(clips, None)
                if clip is None:
                    raise ConversationError("the prompt has more <|AUDIO|> placeholders than there are recordings")
                out += [token] * clip.tokens
            else:
                out.append(token)
        return out

    def encode(self, text: str, clips: Sequence[Measured]) -> list[int]:
        """Ids of a rendered prompt with one placeholder a clip.

        Raises:
            ConversationError: the numbers of placeholders and clips differ.
        """
        ids = self.tokenizer.encode(text)
        placeholders = ids.count(self.audio_token_id)
        if placeholders != len(clips):
            raise ConversationError(
                f"the prompt has {placeholders} <|AUDIO|> placeholders for {len(clips)} recordings; give one each"
            )
        return self.expand(ids, iter(clips))

    def prepare(self, conversation: Conversation) -> Prompt:
        """A conversation, rendered for an answer by the assistant.

        Recordings over 30 s become consecutive windows, each its own "Audio n" part, with an `AudioWarning`.
        """
        check(conversation)
        conversation, cut = self._cut(conversation)
        return self._heard(render(conversation), cut)

    def prepare_base(self, audios: Iterable[AudioSource], instruction: str) -> Prompt:
        """The base model's bare prompt: recordings, then the instruction."""
        cut = [_window(samples) for audio in audios for samples in windows(load_audio(audio), "the recording")]
        return self._heard(render_base(len(cut), instruction), cut)

    def hear(self, conversation: Conversation) -> tuple[Conversation, list[Clip]]:
        """Decode all recordings. In the conversation returned, each audio part is one window of at most 30 s."""
        conversation, cut = self._cut(conversation)
        return conversation, [self.clip(window.samples) for window in cut]

    def _cut(self, conversation: Conversation) -> tuple[Conversation, list[Window]]:
        cut: list[Window] = []
        recordings = 0
        messages: list[Message] = []
        for message in conversation.messages:
            parts: list[Part] = []
            for part in message.parts:
                if not isinstance(part, AudioPart):
                    parts.append(part)
                    continue
                recordings += 1
                for samples in windows(load_part(part), f"recording {recordings}"):
                    cut.append(_window(samples))
                    parts.append(AudioPart((samples, SAMPLE_RATE)))
            messages.append(replace(message, parts=tuple(parts)))
        return Conversation(tuple(messages)), cut

    def _heard(self, text: str, cut: Sequence[Window]) -> Prompt:
        """A rendered prompt with its features, which are computed only where all of it fits into the context."""
        ids = self.encode(text, cut)
        self.check_context(len(ids))
        return Prompt(ids, [self.clip(window.samples) for window in cut], text)

    def check_context(self, tokens: int) -> None:
        """Raise `ContextLengthError` unless `tokens` and at least one more fit into the context."""
        if tokens >= self.context_length:
            raise ContextLengthError(
                f"the prompt is too long: {tokens} tokens, the model's context holds {self.context_length} "
                "including the answer; use shorter or fewer recordings (25 tokens a second), or start a new conversation"
            )


def _window(samples: NDArray[np.float32]) -> Window:
    check_length(samples.shape[0])
    return Window(samples)


def load_processor(folder: Path, config: Qwen2AudioConfig) -> Processor:
    """The processor of a checkpoint folder.

    Raises:
        CheckpointError: the tokenizer cannot be read, or it and the configuration disagree about the placeholder.
    """
    tokenizer = load_tokenizer(folder)
    found = tokenizer.id_of(AUDIO)
    if found != config.audio_token_id:
        raise CheckpointError(
            f"in {folder} {AUDIO} has the id {found} in the tokenizer and {config.audio_token_id} in config.json; "
            "the folder mixes files of different models, fetch it again"
        )
    return Processor(tokenizer, config)
