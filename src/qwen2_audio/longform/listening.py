"""How windows are transcribed, whoever answers: what is asked of a window, and what becomes of the answer.

windows ──ask──▶ somebody who answers ──Heard──▶ settle ──▶ a Segment
   ▲                                               │
   └────────────── halves, where it lost the thread┘
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TypeAlias

from qwen2_audio.config import SAMPLE_RATE
from qwen2_audio.generation.loops import repeated_tail
from qwen2_audio.generation.options import GenerationOptions
from qwen2_audio.generation.sequence import FinishReason
from qwen2_audio.longform.repetition import (
    agree,
    is_echo,
    is_impossible,
    is_scant,
    says_much_more,
    without_circle,
    without_overlap,
)
from qwen2_audio.longform.segments import Segment, join_texts
from qwen2_audio.processing.conversation import AudioPart, Conversation, TextPart
from qwen2_audio.processing.speech_windows import Window

TRANSCRIBE = "Transcribe the speech."
TRANSLATE = "Translate the speech into English."
LANGUAGES: Mapping[str, str] = {
    "en": "English",
    "zh": "Chinese",
    "yue": "Cantonese",
    "de": "German",
    "es": "Spanish",
    "fr": "French",
    "it": "Italian",
    "ja": "Japanese",
    "ko": "Korean",
    "pt": "Portuguese",
    "ru": "Russian",
    "ar": "Arabic",
    "nl": "Dutch",
    "tr": "Turkish",
    "pl": "Polish",
    "hi": "Hindi",
    "id": "Indonesian",
    "th": "Thai",
    "vi": "Vietnamese",
}
"""Names of languages by their codes; not a promise that a checkpoint knows them all."""
AT_ONCE = 16
"""An hour of speech is 120 windows or more; so many are transcribed together."""
MOST_TOKENS_A_SECOND = 8
"""More text tokens than anyone speaks in a second, in any language."""
SPARE_TOKENS = 16
SHORTEST_HALVED = 2.0
"""Seconds; shorter windows in which the model loses the thread are not cut further."""


def transcribe_in(language: str) -> str:
    """The instruction for speech in a language, given by its code: English is what the short one means."""
    return TRANSCRIBE if language == "en" else f"Transcribe the {LANGUAGES[language]} speech."


@dataclass(frozen=True, slots=True)
class Heard:
    """An answer to a window.

    Attributes:
        tokens: ids, where they are known.
        logprob: mean log-probability of the tokens, where it was asked for.
    """

    text: str
    finish_reason: FinishReason
    tokens: tuple[int, ...] = ()
    prompt_tokens: int = 0
    logprob: float | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of every window.

    Attributes:
        instruction: the text behind the recording.
        options: `max_new_tokens` None: as much as could be said in a window.
    """

    instruction: str = TRANSCRIBE
    options: GenerationOptions = field(default_factory=GenerationOptions)

    def conversation(self, window: Window) -> Conversation:
        """The prompt."""
        return Conversation().user(AudioPart((window.samples, SAMPLE_RATE)), TextPart(self.instruction))

    def options_for(self, window: Window) -> GenerationOptions:
        """The options, with a limit that nobody's speech exceeds, and an end to circles."""
        most = SPARE_TOKENS + int(MOST_TOKENS_A_SECOND * round(window.seconds, 2))
        limit = self.options.max_new_tokens
        return replace(self.options, stop_loops=True, max_new_tokens=most if limit is None else limit)

    def settle(self, window: Window, heard: Heard, before: str = "") -> Segment | list[Window]:
        """What becomes of an answer: a segment, or windows to be heard in its stead.

        Where the model ran on, in circles, or says more than could be said or the same as of the window before, or may have
        stopped at a pause, it is asked again by halves. Of what cannot be halved, the text up to the circle is kept, and
        nothing of an impossible one.

        Args:
            before: the text of the window before.
        """
        lost = self._is_lost(window, heard)
        if window.seconds >= SHORTEST_HALVED and (lost or is_echo(before, heard.text) or _is_scant(window, heard)):
            return window.halves()
        if not lost:
            return _segment(window, heard, before)
        text = without_circle(heard.text.strip())
        text = "" if is_impossible(text, _spoken(window)) else text
        tokens = heard.tokens[: len(heard.tokens) - repeated_tail(heard.tokens)]
        return _segment(window, replace(heard, text=text, tokens=tokens, finish_reason="length"), before)

    def confirmed(self, window: Window, heard: Heard, before: str, halves: Sequence[Heard]) -> Segment | None:
        """The answer as a segment after all, where its halves say the same (it was rightly said twice) or little more."""
        said = join_texts(half.text for half in halves)
        kept = not says_much_more(said, heard.text) if _is_scant(window, heard) else agree(heard.text, said)
        return _segment(window, heard, before) if kept and not self._is_lost(window, heard) else None

    def _is_lost(self, window: Window, heard: Heard) -> bool:
        ran_on = heard.finish_reason == "length" and self.options.max_new_tokens is None
        return ran_on or bool(repeated_tail(heard.tokens)) or is_impossible(heard.text, _spoken(window))


def kept_text(heard: Heard, segment: Segment) -> str:
    """What the next window is compared with: the answer that became a segment, or as much as was kept of it."""
    return segment.text if segment.finish_reason == "length" else heard.text


def _spoken(window: Window) -> float:
    return (window.spoken[1] - window.spoken[0]) / SAMPLE_RATE


def _is_scant(window: Window, heard: Heard) -> bool:
    """Whether the model stopped though more was said behind a pause, as it seems."""
    speech = sum(end - start for start, end in window.stretches) / SAMPLE_RATE
    return heard.finish_reason == "stop" and len(window.stretches) > 1 and is_scant(heard.text, speech)


def _segment(window: Window, heard: Heard, before: str) -> Segment:
    text = heard.text.strip()
    return Segment(
        window.spoken[0] / SAMPLE_RATE,
        window.spoken[1] / SAMPLE_RATE,
        without_overlap(before, text) if window.joined else text,
        heard.finish_reason,
        heard.tokens,
        heard.prompt_tokens,
        window.probability,
        heard.logprob,
    )


Hear: TypeAlias = "Callable[[Sequence[Window]], Sequence[Heard]]"
"""Answers to windows, together and in order."""


def listen(
    windows: Iterable[tuple[int, Window]], question: Question, hear: Hear, at_once: int = AT_ONCE
) -> Iterator[tuple[int, Segment]]:
    """Segments of the windows of one or more recordings, in order, each with the number of its recording."""
    waiting = iter(windows)
    before = (-1, "")
    while batch := list(islice(waiting, at_once)):
        answers = hear([window for _, window in batch])
        for (number, window), heard in zip(batch, answers, strict=True):
            known = before[1] if before[0] == number else ""
            segments, kept = _settled(window, heard, known, question, hear)
            yield from ((number, segment) for segment in segments)
            before = number, kept


def _settled(window: Window, heard: Heard, before: str, question: Question, hear: Hear) -> tuple[list[Segment], str]:
    """Segments of an answer or of those that took its place, and the text of the last one."""
    outcome = question.settle(window, heard, before)
    if isinstance(outcome, Segment):
        return [outcome], kept_text(heard, outcome)
    answers = hear(outcome)
    if confirmed := question.confirmed(window, heard, before, answers):
        return [confirmed], kept_text(heard, confirmed)
    found: list[Segment] = []
    before = before if window.joined else ""
    for half, again in zip(outcome, answers, strict=True):
        segments, before = _settled(half, again, before, question, hear)
        found += segments
    return found, before
