"""What a report finds out behind the scores: slices by length, speaker and language, the worst answers, failures."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from qwen2_audio.evaluation.bootstrap import combined, interval
from qwen2_audio.evaluation.samples import Answer, Sample
from qwen2_audio.evaluation.scores import Part, Score

LENGTHS = (("0–5 s", 5.0), ("5–10 s", 10.0), ("10–20 s", 20.0), ("20–30 s", 30.0), ("over 30 s", float("inf")))
"""Names of the slices by length, and where each ends, in seconds."""
_SMALLEST = 10
"""Answers that a speaker or language needs to be a slice: of fewer, the score is mostly chance."""
_RESAMPLES = 1000
_LABELS = ("accuracy", "prefix", "choice")
"""Metrics whose references and responses are few different labels, so that confusions are counted."""


@dataclass(frozen=True, slots=True)
class Slice:
    """The score of some of a source's answers.

    Attributes:
        score: what it is a slice of.
        by: "length", "speaker", "language", or what a task is broken down by.
        name: which of them.
        value, interval: as in `Score`.
    """

    score: Score
    by: str
    name: str
    samples: int
    value: float
    interval: tuple[float, float] | None

    @property
    def of(self) -> tuple[str, str, str]:
        """Source, metric and profile of its score."""
        return self.score.source, self.score.metric, self.score.profile


@dataclass(frozen=True, slots=True)
class Confusion:
    """A wrong response to a reference, and how often it was given."""

    reference: str
    response: str
    times: int


@dataclass(frozen=True, slots=True)
class Failure:
    """A sample that adds nothing to its score, and why."""

    source: str
    id: str
    reason: str


_PART = re.compile("(?P<whole>.+?)/(?P<by>[^/=]*)=(?P<name>.*)", re.DOTALL)


def split_breakdowns(scores: Sequence[Score]) -> tuple[list[Score], list[Slice]]:
    """Scores of whole sources, and those of their parts: of the source "mmau/task=music" where there is "mmau"."""
    whole = {(score.source, score.metric, score.profile): score for score in scores}
    rest, found = [], []
    for score in scores:
        part = _PART.fullmatch(score.source)
        owner = whole.get((part["whole"], score.metric, score.profile)) if part else None
        if part is None or owner is None:
            rest.append(score)
        else:
            found.append(Slice(owner, part["by"], part["name"], score.samples, score.value, score.interval))
    return rest, found


def slices(score: Score, answers: Sequence[Answer]) -> list[Slice]:
    """Slices of a score, each kind only where it says something: at least two slices of it, of enough answers each.

    Args:
        answers: of the run, among them those of the score's source; without them there are no slices.
    """
    of = {answer.sample.id: answer.sample for answer in answers if answer.sample.source == score.source}
    known = [(of[part.id], part) for part in score.parts if part.id in of]
    if score.metric == "bleu" and not all(part.counts for part in score.parts):
        return []  # a sentence's BLEU alone does not add up
    names = [name for name, _ in LENGTHS]
    by_length = _cut(score, "length", known, _length, smallest=1)
    by_speaker = _cut(score, "speaker", known, lambda sample: sample.speaker, _SMALLEST)
    by_language = _cut(score, "language", known, lambda sample: sample.language, _SMALLEST)
    worst = sorted(by_speaker, key=lambda one: one.value if score.lower_is_better else -one.value, reverse=True)
    return [*sorted(by_length, key=lambda one: names.index(one.name)), *worst, *by_language]


def worst(score: Score, count: int) -> list[Part]:
    """The answers that lose most: by errors (then by their share) for error rates, by their own score for the rest.

    What a judge did not mark, or had no letter to score, has no place among them; what was answered to an empty reference has,
    since it counts as errors.
    """
    if score.lower_is_better:
        wrong = [part for part in score.parts if part.numerator > 0]
        return sorted(wrong, key=lambda part: (-part.numerator, part.denominator))[:count]
    highest = float(score.details.get("scale", "1 to 10").rpartition(" ")[2])
    best = {"bleu": 100.0, "judge": highest}.get(score.metric, 1.0)
    counted = [(part.numerator / part.denominator, part) for part in score.parts if part.denominator]
    return [part for _, part in sorted((one for one in counted if one[0] < best), key=lambda one: one[0])[:count]]


def confusions(score: Score, count: int) -> list[Confusion]:
    """The most frequent wrong responses; [] for metrics whose references are sentences."""
    if score.metric not in _LABELS:
        return []
    pairs = Counter((part.reference, part.response) for part in score.parts if part.numerator < part.denominator)
    return [Confusion(reference, response, times) for (reference, response), times in pairs.most_common(count)]


def failures(scores: Sequence[Score], answers: Sequence[Answer]) -> list[Failure]:
    """The samples that have no answer, and the answers that a judge did not mark."""
    found = [Failure(answer.sample.source, answer.sample.id, answer.error) for answer in answers if answer.error]
    for score in scores:
        for one in score.details.get("failures", ()):
            reply = f", the judge replied: {one['reply']}" if one.get("reply") else ""
            found.append(Failure(score.source, str(one["id"]), f"{one['position']}: {one['error']}{reply}"))
    return found


def _length(sample: Sample) -> str:
    return next(name for name, end in LENGTHS if sample.duration <= end) if sample.duration > 0 else ""


def _cut(
    score: Score, by: str, known: Sequence[tuple[Sample, Part]], name_of: Callable[[Sample], str], smallest: int
) -> list[Slice]:
    groups: dict[str, list[Part]] = {}
    for sample, part in known:
        groups.setdefault(name_of(sample), []).append(part)
    found = []
    for name, parts in sorted(groups.items()):
        value = combined(parts)
        scored = len(parts) if score.lower_is_better else sum(part.denominator > 0 for part in parts)
        if name and scored >= smallest and value is not None:
            found.append(Slice(score, by, name, scored, value, interval(parts, resamples=_RESAMPLES)))
    return found if len(found) > 1 else []
