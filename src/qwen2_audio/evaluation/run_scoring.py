"""The scores of a run: which of its answers are scored together, by whom, and a rehearsal before anything is asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from qwen2_audio.errors import UsageError
from qwen2_audio.evaluation.samples import Answer, Sample
from qwen2_audio.evaluation.scores import Score
from qwen2_audio.evaluation.task import Task

if TYPE_CHECKING:
    from qwen2_audio.evaluation.judge import Judge

_QUOTIENTS = ("wer", "cer", "accuracy", "prefix", "string_match", "choice", "word_f1")
"""Metrics whose score is a quotient of sums, so that a running score costs little."""


def rehearse(tasks: Sequence[Task], samples: Mapping[str, Sequence[Sample]], profile: str) -> None:
    """Score the references as if they were the answers: what cannot be scored shows now, not after hours of asking.

    Raises:
        UsageError: an unknown profile, a missing library, samples without what the metric needs.
    """
    from qwen2_audio.evaluation.air_bench import rehearse_judge
    from qwen2_audio.evaluation.profiles import PROFILES, check_known

    check_known("profile", profile, PROFILES)
    for task in tasks:
        if task.metric == "judge":
            rehearse_judge(samples[task.name])
        else:
            for answers in _parts([Answer(sample, sample.gt) for sample in samples[task.name]], task):
                _score(answers, task, profile)


def running_sums(answers: Sequence[Answer], task: Task, profile: str) -> tuple[float, float]:
    """Numerator and denominator that answers add to the running score; 0 and 0 where there is none."""
    if task.metric not in _QUOTIENTS:
        return 0.0, 0.0
    try:
        parts = [part for score in _score(answers, task, profile) for part in score.parts]
    except UsageError:  # nothing of this batch can be scored, but maybe of all; the final score tells
        return 0.0, 0.0
    return sum(part.numerator for part in parts), sum(part.denominator for part in parts)


def score_run(
    tasks: Sequence[Task], answers: Mapping[str, Sequence[Answer]], profile: str, judge: Judge | None
) -> tuple[list[Score], list[str]]:
    """Scores in the order of the tasks, the judged ones last, and what kept others from being scored."""
    scores: list[Score] = []
    problems: list[str] = []
    judged = [answer for task in tasks if task.metric == "judge" for answer in answers[task.name]]
    for task in tasks:
        for part in _parts(answers[task.name], task) if task.metric != "judge" else ():
            try:
                scores += _score(part, task, profile)
            except UsageError as error:
                problems.append(str(error))
    if judged and judge is not None:
        from qwen2_audio.evaluation.air_bench import score_by_judge

        try:
            scores += score_by_judge(judged, judge, profile=profile)
        except UsageError as error:
            problems.append(str(error))
    return scores, problems


def _parts(answers: Sequence[Answer], task: Task) -> list[list[Answer]]:
    """Answers to be scored together: those of a source, and, relabelled, of the parts that it is broken down by."""
    parts: dict[str, list[Answer]] = {}
    for answer in answers:
        sample = answer.sample
        parts.setdefault(sample.source, []).append(answer)
        for key in task.breakdown:
            if key in sample.more:
                source = f"{sample.source}/{key}={sample.more[key]}"
                parts.setdefault(source, []).append(replace(answer, sample=replace(sample, source=source)))
    return [parts[source] for source in sorted(parts)]


def _score(answers: Sequence[Answer], task: Task, profile: str) -> list[Score]:
    from qwen2_audio.evaluation.scoring import score

    return score(answers, task.metric, profile=profile)
