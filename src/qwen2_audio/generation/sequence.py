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
        logprob: of the token, before penalties and temperature; None unless asked for.
        top: the likeliest tokens at this place and their log-probabilities, best first, as many as were asked for.
        cached_tokens: how many tokens of the prompt were known from earlier requests.
    """

    index: int
    token: int
    text: str
    finish_reason: FinishReason | None
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Choice:
    """A token that was chosen.

    Attributes:
        logprob, top: see `Step`.
        ended: with it the answer is complete, whatever the token is.
        failed: no further token can be chosen.
    """

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    ended: bool = False
    failed: bool = False


class Sequence:
    """Tokens chosen so far, their text, and whether the answer is over."""

    def __init__(
        self, index: int, options: GenerationOptions, end_ids: frozenset[int], room: int, tokenizer: Tokenizer
    ):
        self.index = index
        self.tokens: list[int] = []
        self.finish_reason: FinishReason | None = None
        self.limit = min(options.max_new_tokens or room, room)
        self._stop_loops = options.stop_loops
        self._end_ids = frozenset(options.stop_token_ids) | (frozenset() if options.ignore_eos else end_ids)
        self._detokenizer = Detokenizer(tokenizer)
        self._stops = StopMatcher(options.stop)

    @property
    def at_last(self) -> bool:
        """Whether the next token is the last, whatever it is."""
        return len(self.tokens) + 1 >= self.limit

    def push(self, choice: Choice, cached_tokens: int = 0) -> Step:
        """Take the next token."""
        token = choice.token
        self.tokens.append(token)
        text = ""
        if token in self._end_ids:  # of a grammar that failed it says nothing
            self.finish_reason = "length" if choice.failed else "stop"
        else:
            text = self._stops.push(self._detokenizer.push(token))
            if self._stops.stopped or choice.ended:
                self.finish_reason = "stop"
            elif self._is_cut(choice):
                self.finish_reason = "length"
        if self.finish_reason and not self._stops.stopped:
            text += self._stops.push(self._detokenizer.finish())
            text += self._stops.finish()
        return Step(self.index, token, text, self.finish_reason, choice.logprob, choice.top, cached_tokens)

    def _is_cut(self, choice: Choice) -> bool:
        full = choice.failed or len(self.tokens) >= self.limit
        return full or (self._stop_loops and repeated_tail(self.tokens) > 0)
