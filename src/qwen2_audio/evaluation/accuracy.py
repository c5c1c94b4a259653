"""Answers that are right or wrong: equal labels, prefixes, MMAU's string match, AIR-Bench's letters, shared words."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from math import nan

from qwen2_audio.errors import UsageError
from qwen2_audio.evaluation.samples import Answer, Sample
from qwen2_audio.evaluation.scores import Part, Score

_LETTERS = "ABCD"
_FINAL_MARKS = ".!?,;:。！？，；：…"
_BEGINNING = 30
"""Words of reference and response that "word_f1" looks at: long answers that begin alike wander apart in the end,
and either may have been cut off at another length."""
_ALIKE = 0.5


def accuracy(answers: Sequence[Answer], metric: str, profile: str) -> Score:
    """The share of right answers of one source.

    Args:
        metric: "accuracy": the answer is the reference; "prefix": it begins with it; "string_match": MMAU's rule; "choice":
            AIR-Bench's, nan where "official" leaves out every answer; "word_f1": at least half of their words are the same
            (see `word_f1`).

    Raises:
        UsageError: a sample has no choices or no letter where the metric needs them.
    """
    parts = tuple(_part(answer, metric, profile) for answer in answers)
    source, scored = answers[0].sample.source, int(sum(part.denominator for part in parts))
    right = int(sum(part.numerator for part in parts))
    details: dict[str, int] = {"right": right}
    if metric == "choice":
        details["fail_num"] = sum(not part.response for part in parts)
    value = right / scored if scored else nan
    return Score(source, metric, profile, value, scored, parts=parts, details=details)


def plain_label(text: str) -> str:
    """A label without what is no part of it: case, spaces around it, a final mark."""
    return text.strip().rstrip(_FINAL_MARKS).strip().casefold()


def chosen_letter(response: str) -> str:
    """The letter of an answer as AIR-Bench reads it: its first character, or its last but one ("The answer is B."), or ""."""
    response = response.strip().replace("\n", "")
    for character in (response[:1], response[-2:-1]):
        if character and character in _LETTERS:
            return character
    return ""


def matches_choice(answer: str, response: str, choices: Sequence[str]) -> bool:
    """MMAU's string match: the response has every word of the right choice, and no word that only wrong ones have."""
    given, right = set(_words(response)), set(_words(answer))
    wrong = {word for choice in choices for word in _words(choice)} - right
    return bool(given) and right <= given and not wrong & given


def word_f1(a: str, b: str) -> float:
    """How much the first 30 words of two texts have in common, in any order: 2 x common words / (words of a + words of b).

    Two texts without a word have nothing in common: 0.
    """
    left, right = (Counter(_words(text)[:_BEGINNING]) for text in (a, b))
    return 2 * (left & right).total() / max(left.total() + right.total(), 1)


def _part(answer: Answer, metric: str, profile: str) -> Part:
    sample = answer.sample
    if metric == "choice":
        reference, response = _right_letter(sample), chosen_letter(answer.response)
        counts = float(bool(response) or profile == "clean")
        return Part(sample.id, float(reference == response), counts, reference, response)
    if metric == "string_match":
        right = matches_choice(sample.gt, answer.response, _choices(sample))
        return Part(sample.id, float(right), 1.0, sample.gt, answer.response)
    if metric == "word_f1":
        right = word_f1(sample.gt, answer.response) >= _ALIKE
        return Part(sample.id, float(right), 1.0, sample.gt, answer.response)
    reference, response = sample.gt, answer.response.lstrip()
    if profile == "clean":
        reference, response = plain_label(reference), plain_label(response)
    right = response.startswith(reference) if metric == "prefix" else response == reference
    return Part(sample.id, float(right), 1.0, reference, response)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _choices(sample: Sample) -> list[str]:
    choices = sample.more.get("choices")
    if not isinstance(choices, list | tuple) or not choices:
        raise UsageError(
            f'the sample {sample.id!r} needs its choices, a list of texts under "more": {{"choices": ...}}'
        )
    return [str(choice) for choice in choices]


def _right_letter(sample: Sample) -> str:
    """The reference as a letter; it may also be the text of the right choice."""
    if len(sample.gt) == 1 and sample.gt in _LETTERS:
        return sample.gt
    choices = _choices(sample)[: len(_LETTERS)]
    if sample.gt not in choices:
        raise UsageError(
            f"the reference of the sample {sample.id!r} is no letter of {_LETTERS} and none of its choices: {sample.gt!r:.80}"
        )
    return _LETTERS[choices.index(sample.gt)]
