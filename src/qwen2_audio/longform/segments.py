"""`Segment`: what was said from when to when; and how the texts of several become one."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qwen2_audio.generation.sequence import FinishReason


_NAMED = 5
"""Places that a warning names."""


@dataclass(frozen=True, slots=True)
class Segment:
    """What was said in a stretch of a recording.

    Attributes:
        start, end: in seconds from the beginning of the recording; where speech was found, not where it was cut.
        text: without spaces around it; "" where the model heard nothing.
        finish_reason: "stop", or "length" where the text was cut: it ran on longer than anyone speaks, or in circles.
        tokens: ids of the answer, the one that ended it included; () where a server gave it.
        prompt_tokens: number of tokens in front of the answer.
        probability: mean probability that there is speech, 0 to 1.
        logprob: mean log-probability of the tokens, where it was asked for.
    """

    start: float
    end: float
    text: str
    finish_reason: FinishReason = "stop"
    tokens: tuple[int, ...] = ()
    prompt_tokens: int = 0
    probability: float = 1.0
    logprob: float | None = None


def cut_short(segments: Iterable[Segment]) -> list[str]:
    """What is to be said of those whose text was cut, in a line; [] where none was."""
    cut = [f"{segment.start:.1f} s" for segment in segments if segment.finish_reason == "length"]
    return [f"the model lost the thread and was cut short at {', '.join(cut[:_NAMED])}"] if cut else []


def join_texts(texts: Iterable[str]) -> str:
    """Texts one after the other, a space between two unless both sides are written without spaces (Chinese, Japanese)."""
    whole = ""
    for text in texts:
        text = text.strip()
        if not text:
            continue
        spaced = whole and not (_is_unspaced(whole[-1]) and _is_unspaced(text[0]))
        whole += f" {text}" if spaced else text
    return whole


def _is_unspaced(character: str) -> bool:
    """Whether a character belongs to a script without spaces between words, its punctuation included."""
    return (
        unicodedata.east_asian_width(character) in "WF" and not "\uac00" <= character <= "\ud7a3"
    )  # Korean has spaces
