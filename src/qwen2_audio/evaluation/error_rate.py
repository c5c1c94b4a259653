"""Error rates: edits over reference units of a whole source, with what kind of edits they were."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from qwen2_audio.errors import UsageError
from qwen2_audio.evaluation.normalizers.transcript import BY_CHARACTER, primary_language, transcript_units
from qwen2_audio.evaluation.samples import Answer
from qwen2_audio.evaluation.scores import Part, Score

_EDITS = {"replace": "substitutions", "delete": "deletions", "insert": "insertions"}


def error_rate(answers: Sequence[Answer], metric: str, profile: str, language: str | None) -> Score:
    """The corpus error rate of the answers of one source, as a fraction: the sum of edits over the sum of reference units.

    An empty reference has no units; what was answered to it counts as insertions, and `details` say how many there are.

    Args:
        metric: "wer": words (characters of Mandarin and Cantonese); "cer": characters of every language, without spaces.
        language: ISO code of all answers; None: each sample's own.

    Raises:
        UsageError: a sample's language is not known, every reference is empty, or a library is missing.
    """
    parts = tuple(_part(answer, metric, profile, language) for answer in answers)
    length = sum(part.denominator for part in parts)
    source = answers[0].sample.source
    if not length:
        raise UsageError(
            f"{metric} of {source} has nothing to divide by: all {len(parts)} references are empty after normalisation"
        )
    errors = sum(part.numerator for part in parts)
    details = {
        "errors": int(errors),
        "reference_units": int(length),
        **{name: sum(part.counts[name] for part in parts) for name in _EDITS.values()},
        "empty_references": sum(not part.denominator for part in parts),
        "languages": sorted({_language(answer, metric, language) for answer in answers}),
    }
    return Score(source, metric, profile, errors / length, len(parts), parts=parts, details=details)


def edits(reference: Sequence[str], response: Sequence[str]) -> dict[str, int]:
    """How many substitutions, deletions and insertions turn a reference into a response, as few as there can be.

    Raises:
        UsageError: rapidfuzz is missing.
    """
    try:
        from rapidfuzz.distance import Levenshtein
    except ImportError:
        raise UsageError('error rates need rapidfuzz: pip install "qwen2-audio[eval]"') from None
    counts = Counter(_EDITS[edit.tag] for edit in Levenshtein.editops(reference, response))
    return {name: counts[name] for name in _EDITS.values()}


def _part(answer: Answer, metric: str, profile: str, language: str | None) -> Part:
    spoken = _language(answer, metric, language)
    characters = metric == "cer" or spoken in BY_CHARACTER
    reference, response = (
        transcript_units(text, spoken, profile, characters=characters) for text in (answer.sample.gt, answer.response)
    )
    counts = edits(reference, response)
    between = "" if characters else " "
    shown = between.join(reference), between.join(response)
    return Part(answer.sample.id, sum(counts.values()), len(reference), *shown, counts)


def _language(answer: Answer, metric: str, language: str | None) -> str:
    code = language or answer.sample.language
    if not code:
        raise UsageError(
            f"{metric} needs to know the language, and the sample {answer.sample.id!r} names none; "
            'give one for all, such as language="en"'
        )
    return primary_language(code)
