"""Writing down what is said in recordings of any length: cut at pauses, pieces together, once more in halves where need be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from qwen2_audio.config import SAMPLE_RATE
from qwen2_audio.generation.engine import Engine, Request
from qwen2_audio.generation.loops import repeated_tail
from qwen2_audio.generation.options import GenerationOptions
from qwen2_audio.generation.reply import Reply, answer_all
from qwen2_audio.processing.conversation import AudioPart, Conversation, TextPart
from qwen2_audio.processing.processor import Processor
from qwen2_audio.processing.windows import split_at_pauses

TRANSCRIBE = "Transcribe the speech."
PIECES_AT_ONCE = 16
"""An hour of speech is 120 pieces or more; so many are transcribed together."""
MOST_TOKENS_A_SECOND = 8
"""More text tokens than anyone speaks in a second, in any language."""
SHORTEST_HALVED = 2.0
"""Seconds; shorter pieces in which the model loses the thread are not cut further."""


@dataclass(frozen=True, slots=True)
class Transcriber:
    """How one checkpoint transcribes.

    Attributes:
        longest: seconds of the longest piece that it transcribes well.
        options: `max_new_tokens` None: as much as could be said in a piece.
    """

    engine: Engine
    processor: Processor
    longest: float
    options: GenerationOptions

    def transcribe(self, recordings: Sequence[NDArray[np.float32]]) -> list[Reply]:
        """What is said in each of several recordings, float32 [samples] at 16 kHz."""
        pieces = [split_at_pauses(samples, self.longest) for samples in recordings]
        heard = iter(self._hear([piece for of_one in pieces for piece in of_one]))
        return [_joined([next(heard) for _ in of_one]) for of_one in pieces]

    def _hear(self, pieces: Sequence[NDArray[np.float32]]) -> list[Reply]:
        replies: list[Reply] = []
        for start in range(0, len(pieces), PIECES_AT_ONCE):
            requests = [self._request(piece) for piece in pieces[start : start + PIECES_AT_ONCE]]
            replies += answer_all(self.engine, requests)
        return [
            self._again(piece, reply) if repeated_tail(reply.tokens) else reply
            for piece, reply in zip(pieces, replies, strict=True)
        ]

    def _again(self, piece: NDArray[np.float32], reply: Reply) -> Reply:
        """The model went round in circles: hear the piece in two halves; one that is too short is kept up to the circle."""
        seconds = len(piece) / SAMPLE_RATE
        if seconds >= SHORTEST_HALVED:
            return _joined(self._hear(split_at_pauses(piece, 0.7 * seconds)))
        kept = reply.tokens[: -repeated_tail(reply.tokens)]
        text = self.engine.tokenizer.decode(list(kept), skip_special=True)
        return replace(reply, text=text, tokens=kept, finish_reason="length")

    def _request(self, piece: NDArray[np.float32]) -> Request:
        part = AudioPart((piece, SAMPLE_RATE))
        prompt = self.processor.prepare(Conversation().user(part, TextPart(TRANSCRIBE)))
        options = replace(self.options, stop_loops=True)
        if options.max_new_tokens is None:
            options = replace(options, max_new_tokens=16 + int(MOST_TOKENS_A_SECOND * prompt.clips[0].seconds))
        return Request(prompt.ids, prompt.clips, options)


def _joined(replies: Sequence[Reply]) -> Reply:
    """The pieces of one recording as one answer."""
    if len(replies) == 1:
        return replies[0]
    cut = any(reply.finish_reason == "length" for reply in replies)
    return Reply(
        " ".join(text for reply in replies if (text := reply.text.strip())),
        "length" if cut else "stop",
        tuple(token for reply in replies for token in reply.tokens),
        sum(reply.prompt_tokens for reply in replies),
    )
