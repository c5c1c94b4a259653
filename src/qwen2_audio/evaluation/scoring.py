"""Scoring: answers in, one score a source out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from qwen2_audio.errors import UsageError
from qwen2_audio.evaluation.accuracy import accuracy
from qwen2_audio.evaluation.bleu import bleu
from qwen2_audio.evaluation.bootstrap import interval
from qwen2_audio.evaluation.error_rate import error_rate
from qwen2_audio.evaluation.profiles import PROFILES, check_known
from qwen2_audio.evaluation.samples import Answer
from qwen2_audio.evaluation.scores import Score

METRICS = ("wer", "cer", "bleu", "accuracy", "prefix", "string_match", "choice", "word_f1")
"""What can be scored without a judge."""


def score(
    answers: Sequence[Answer], metric: str, *, profile: str = "official", language: str | None = None
) -> list[Score]:
    """Score answers, put together by their samples' source.

    Answers with an `error` are counted in `Score.failed`. `official` leaves them out, as the official scripts never see them;
    for `clean` they are empty answers. Where `official` has none left, the source's score is nan of 0 samples.

    Args:
        metric: one of `METRICS`.
        profile: "official" or "clean"; see qwen2_audio.evaluation.profiles.
        language: ISO code of what is said (of BLEU: of the translation); None: each sample's own (of BLEU: the source's name).

    Returns:
        One score a source, sorted by source, with their 95 % bootstrap intervals.

    Raises:
        UsageError: an unknown name, no answers, answers that cannot be scored so, or a missing library.
    """
    check_known("metric", metric, METRICS)
    check_known("profile", profile, PROFILES)
    if not answers:
        raise UsageError("there are no answers to score")
    by_source: dict[str, list[Answer]] = {}
    for answer in answers:
        by_source.setdefault(answer.sample.source, []).append(answer)
    return [_score_source(by_source[source], metric, profile, language) for source in sorted(by_source)]


def _score_source(answers: Sequence[Answer], metric: str, profile: str, language: str | None) -> Score:
    failed = [answer for answer in answers if answer.error]
    if profile == "clean":
        scored = [replace(answer, response="") if answer.error else answer for answer in answers]
    else:
        scored = [answer for answer in answers if not answer.error]
    if not scored:
        return Score(answers[0].sample.source, metric, profile, math.nan, 0, len(failed))
    if metric in ("wer", "cer"):
        result = error_rate(scored, metric, profile, language)
    elif metric == "bleu":
        result = bleu(scored, profile, language)
    else:
        result = accuracy(scored, metric, profile)
    return replace(result, failed=len(failed), interval=interval(result.parts))
