"""The state of one answer being written. No tensors here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from qwen2_audio.generation.loops import repeated_tail
from qwen2_audio.generation.options import GenerationOptions
from qwen2_audio.generation.stopping import StopMatcher
from qwen2_audio.processing.tokenizer import Detokenizer, Tokenizer

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True, slots=True)
class Step:
    """One token of one answer.

    Attributes:
        index: which of the requests.
        token: the token chosen.
        text: the text that is now certain (often "" while a character or a stop string is undecided).
        finish_reason: set on the last step of an answer.
    """

    index: int
    token: int
    text: str
    finish_reason: FinishReason | None


class Sequence:
    """Tokens chosen so far, their text, and whether the answer is over."""

    def __init__(
        self, index: int, options: GenerationOptions, end_ids: frozenset[int], room: int, tokenizer: Tokenizer
    ):
        self.index = index
        self.tokens: list[int] = []
        self.finish_reason: FinishReason | None = None
        self._limit = min(options.max_new_tokens or room, room)
        self._stop_loops = options.stop_loops
        self._end_ids = end_ids
        self._detokenizer = Detokenizer(tokenizer)
        self._stops = StopMatcher(options.stop)

    def push(self, token: int) -> Step:
        """Take the next token."""
        self.tokens.append(token)
        text = ""
        if token in self._end_ids:
            self.finish_reason = "stop"
        else:
            text = self._stops.push(self._detokenizer.push(token))
            if self._stops.stopped:
                self.finish_reason = "stop"
            elif len(self.tokens) >= self._limit or (self._stop_loops and repeated_tail(self.tokens)):
                self.finish_reason = "length"
        if self.finish_reason and not self._stops.stopped:
            text += self._stops.push(self._detokenizer.finish())
            text += self._stops.finish()
        return Step(self.index, token, text, self.finish_reason)
