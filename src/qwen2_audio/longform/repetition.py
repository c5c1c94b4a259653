"""Text that a model wrote twice though nobody said it twice: circles, echoes of the window before, words cut in two. And text
that is too long, or too short, for the time in which it was said."""

from __future__ import annotations

import re
from difflib import SequenceMatcher

from qwen2_audio.generation.loops import repeated_tail

_UNIT = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\s\u3040-\u30ff\u3400-\u9fff]+")
"""A word, or a single character where words are not spaced."""
_LETTER = re.compile(r"\w")
ECHO = 5
"""Words that two windows in a row must have to be suspected of being one text heard twice."""
AGREEMENT = 0.7
"""Share of words that two texts of the same speech have in common at least."""
MOST_OVERLAP, LEAST_LETTERS = 8, 5
"""Words and letters of a repetition at a cut: "very, very" is often said."""
WORDS_A_SECOND, SPARE_WORDS = 10, 4
FEW_WORDS_A_SECOND, MUCH_MORE = 2.0, 1.5
"""Fewer words than most speak in a second, and how many times as many are clearly more."""


def without_circle(text: str) -> str:
    """The text up to where it only repeats what stands before; all of it where it does not."""
    words = [match.end() for match in _UNIT.finditer(text)]
    for ends in (words, list(range(1, len(text) + 1))):  # whole words, or letters: "hahahahahaha"
        units = _numbered([text[start:end] for start, end in zip([0, *ends], ends, strict=False)])
        if circling := repeated_tail(units):
            kept = ends[-circling - 1] if circling < len(ends) else 0
            return text[:kept].rstrip()
    return text


def is_echo(before: str, text: str) -> bool:
    """Whether a window has the same text as the one before, and enough of it to be surprising."""
    words = _words(text)
    return len(words) >= ECHO and words == _words(before)


def agree(text: str, other: str) -> bool:
    """Whether two texts are of the same speech: most of their words are the same, in the same order."""
    return SequenceMatcher(None, _words(text), _words(other), autojunk=False).ratio() >= AGREEMENT


def without_overlap(before: str, text: str) -> str:
    """The second of two texts between which speech was cut, without the words that end the first and begin it too."""
    last, first = _words(before), _words(text)
    for count in range(min(MOST_OVERLAP, len(last), len(first) - 1), 0, -1):
        if last[-count:] == first[:count] and len("".join(first[:count])) >= LEAST_LETTERS:
            skipped = [match.end() for match in _UNIT.finditer(text) if _LETTER.search(match[0])][count - 1]
            return text[skipped:].lstrip(" ,.;:!?，。；：！？、")
    return text


def is_impossible(text: str, seconds: float) -> bool:
    """Whether a text is longer than anybody could speak in so many seconds: the model wrote what nobody said."""
    return len(_words(text)) > SPARE_WORDS + WORDS_A_SECOND * seconds


def is_scant(text: str, seconds: float) -> bool:
    """Whether a text is short for so many seconds of speech: perhaps the model stopped before its end."""
    return 0 < len(_words(text)) < FEW_WORDS_A_SECOND * seconds


def says_much_more(text: str, other: str) -> bool:
    """Whether a text has clearly more words than another one."""
    return len(_words(text)) > MUCH_MORE * len(_words(other))


def _words(text: str) -> list[str]:
    """Words as they sound: without punctuation and case."""
    found = ("".join(_LETTER.findall(match[0])).lower() for match in _UNIT.finditer(text))
    return [word for word in found if word]


def _numbered(units: list[str]) -> list[int]:
    numbers: dict[str, int] = {}
    return [numbers.setdefault(unit.strip().lower(), len(numbers)) for unit in units]
