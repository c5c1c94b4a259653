"""A judge's marks to scores: AIR-Bench's chat part in its published groups, and open questions whose answers are marked alone.

An answer with an error, and one about which the judge gave no mark that can be read, adds nothing to the mean, in either
profile: nobody knows its mark. It keeps its part, with denominator 0, it is counted in `Score.failed`, and what the judge did
reply stands in the details under `failures`.

Profiles of AIR-Bench:

- "official": the mean over each order, then the mean of both, as cal_score.py prints them: an answer of which only one order
  could be read counts in that order, and in `Score.failed`.
- "clean": only answers of which both orders could be read.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from qwen2_audio.errors import UsageError
from qwen2_audio.evaluation.chat_client import Reply
from qwen2_audio.evaluation.judge import (
    ALONE,
    ORDERS,
    Judge,
    Progress,
    Request,
    comparison,
    read_mark,
    read_pair,
    single,
)
from qwen2_audio.evaluation.profiles import PROFILES, check_known
from qwen2_audio.evaluation.samples import Answer, Sample
from qwen2_audio.evaluation.scores import Part, Score
from qwen2_audio.evaluation.tasks.air_bench import CHAT_GROUPS, source_of

_STRATA = {task: task.removesuffix("_QA") if group == "mixed" else group for task, group in CHAT_GROUPS.items()}
"""What each task's answers are averaged with: its group, but each of the mixed tasks stands by itself."""
_GROUPS: dict[str, dict[str, float]] = {
    **{group: {group: 1.0} for group in ("speech", "sound", "music")},
    "mixed": {"speech_and_sound": 0.5, "speech_and_music": 0.5},
}
"""The weights of the averages in each published column."""
_AVERAGE = {stratum: weight / len(_GROUPS) for group in _GROUPS.values() for stratum, weight in group.items()}


@dataclass(frozen=True, slots=True)
class _Judged:
    """An answer, what the judge replied in each order, and the marks of reference and model that it gave.

    Attributes:
        replies: none for an answer with an error.
        pairs: of reference and model, one an order; None where no marks could be read.
    """

    answer: Answer
    stratum: str
    replies: tuple[Reply, ...] = ()
    pairs: tuple[tuple[float, float] | None, ...] = (None, None)

    @property
    def failed(self) -> bool:
        return None in self.pairs


@dataclass(frozen=True, slots=True)
class _Mark:
    """What one order of one answer adds to a score, and with which weight."""

    order: int
    weight: float
    reference: float
    model: float


def score_by_judge(
    answers: Sequence[Answer], judge: Judge, *, profile: str = "official", progress: Progress | None = None
) -> list[Score]:
    """Answers of all judged tasks together: AIR-Bench's compared with the reference, all others marked alone.

    Raises:
        UsageError: see `score_air_bench` and `score_judged`.
    """
    compared = [answer for answer in answers if answer.sample.more.get("task_name") in _STRATA]
    alone = [answer for answer in answers if answer.sample.more.get("task_name") not in _STRATA]
    return [
        *(score_air_bench(compared, judge, profile=profile, progress=progress) if compared else ()),
        *(score_judged(alone, judge, progress=progress) if alone else ()),
    ]


def rehearse_judge(samples: Sequence[Sample]) -> None:
    """Ask nobody, but put all questions together, with the references as answers.

    Raises:
        UsageError: a sample without what the judge must be told.
    """
    for sample in samples:
        answer = Answer(sample, sample.gt)
        if sample.more.get("task_name") in _STRATA:
            _compared(answer, ORDERS[0])
        else:
            _alone(answer)


def score_air_bench(
    answers: Sequence[Answer], judge: Judge, *, profile: str = "official", progress: Progress | None = None
) -> list[Score]:
    """Marks from 1 to 10 of AIR-Bench's chat part, beside the reference's, in both orders.

    Args:
        answers: to samples whose `more` has AIR-Bench's `task_name` and `meta_info`; all four groups together, where the
            leaderboard's average is wanted.
        profile: "official" or "clean", see above.
        progress: called as replies come.

    Returns:
        A score for each group that there is ("air_bench_chat_speech", "..._sound", "..._music", "..._mixed") and, if all
        four have marks, "air_bench_chat_average". `value` is the model's mean mark, nan where no mark could be read.

    Raises:
        UsageError: an unknown profile, a sample without what the judge must be told, or what `Judge.ask` raises.
    """
    check_known("profile", profile, PROFILES)
    judged = _judge(answers, judge, progress)
    scores = [
        _score(source_of(group), weights, judged, judge, profile)
        for group, weights in _GROUPS.items()
        if any(one.stratum in weights for one in judged)
    ]
    if len(scores) == len(_GROUPS) and not any(math.isnan(score.value) for score in scores):
        average = _score(source_of("average"), _AVERAGE, judged, judge, profile)
        scores.append(replace(average, details={**average.details, "failures": []}))  # they stand in the groups
    return scores


def score_judged(answers: Sequence[Answer], judge: Judge, *, progress: Progress | None = None) -> list[Score]:
    """Marks from 1 to 5 of answers to open questions, one score a source, sorted: VoiceBench's, or a user's own.

    The judge sees the question (`more["question"]`, else the prompt), the reference and a description (`more["meta_info"]`)
    as far as there are any, and is asked once at temperature 0, whatever its mode. VoiceBench itself takes the mean of three
    replies of gpt-4o-mini at temperature 0.5 with its own wording: near, but not the same; hence the profile "clean".

    Raises:
        UsageError: what `Judge.ask` raises, or a sample has neither a question nor a reference.
    """
    judge = replace(judge, mode="deterministic")
    asked = [answer for answer in answers if not answer.error]
    replies = iter(judge.ask([Request(answer.sample.id, ALONE, _alone(answer)) for answer in asked], progress))
    by_source: dict[str, list[tuple[Answer, Reply | None]]] = {}
    for answer in answers:
        by_source.setdefault(answer.sample.source, []).append((answer, None if answer.error else next(replies)))
    return [_score_alone(source, replied, judge) for source, replied in sorted(by_source.items())]


def _judge(answers: Sequence[Answer], judge: Judge, progress: Progress | None) -> list[_Judged]:
    judged = [_Judged(answer, _stratum(answer.sample)) for answer in answers]
    asked = [answer for answer in answers if not answer.error]
    requests = [Request(answer.sample.id, order, _compared(answer, order)) for answer in asked for order in ORDERS]
    replies = iter(judge.ask(requests, progress))
    return [one if one.answer.error else _marked(one, (next(replies), next(replies)), judge.mode) for one in judged]


def _marked(one: _Judged, replies: tuple[Reply, Reply], mode: str) -> _Judged:
    """With the marks as reference and model, in whichever order the judge saw them."""
    first, second = (None if reply.error else read_pair(reply.text, mode) for reply in replies)
    return replace(one, replies=replies, pairs=(first, second and (second[1], second[0])))


def _stratum(sample: Sample) -> str:
    task = str(sample.more.get("task_name"))
    check_known(f"task_name of sample {sample.id!r}", task, list(_STRATA))
    return _STRATA[task]


def _compared(answer: Answer, order: str) -> str:
    sample = answer.sample
    description = _told(sample, "meta_info", sample.more.get("meta_info"))
    question = _told(sample, "question", sample.more.get("question") or sample.prompt)
    return comparison(description, question, sample.gt, answer.response, order)


def _told(sample: Sample, name: str, text: object) -> str:
    if not isinstance(text, str) or not text.strip():
        raise UsageError(
            f"sample {sample.id!r} has no {name}, which the judge must be told, got {text!r:.80}; "
            "make the rows with: qwen2-audio data prepare air_bench_chat"
        )
    return text


def _alone(answer: Answer) -> str:
    sample = answer.sample
    question, description = str(sample.more.get("question") or sample.prompt), str(sample.more.get("meta_info") or "")
    if not question.strip() and not sample.gt.strip():
        raise UsageError(
            f'sample {sample.id!r} has neither a question nor a reference to judge by; add "prompt", "gt" or '
            '"more": {"question": ...}'
        )
    return single(question, sample.gt, "" if description == question else description, answer.response)


def _score(source: str, strata: Mapping[str, float], every: Sequence[_Judged], judge: Judge, profile: str) -> Score:
    """The score of some strata with their weights: of each the mean over both orders' means.

    It is written as one quotient of sums over answers, so that it can be resampled and compared like any other score.
    """
    from qwen2_audio.evaluation.bootstrap import interval

    judged = [one for one in every if one.stratum in strata]
    marks = _weighted(judged, strata, profile)
    parts = tuple(
        Part(
            one.answer.sample.id,
            sum(mark.weight * mark.model for mark in own),
            sum(mark.weight for mark in own),
            one.answer.sample.gt,
            one.answer.response,
            {"marks": len(own), "wins": sum(mark.model > mark.reference for mark in own)},
        )
        for one, own in zip(judged, marks, strict=True)
    )
    every_mark = [mark for own in marks for mark in own]
    value = _summary(every_mark)["model"]
    failed = sum(one.failed for one in judged)
    details = {
        **_settings(judge, "1 to 10", ORDERS, [reply for one in judged for reply in one.replies]),
        **_summary(every_mark),
        "by_order": {
            name: _summary([mark for mark in every_mark if mark.order == order]) for order, name in enumerate(ORDERS)
        },
        "answers": {stratum: sum(one.stratum == stratum for one in judged) for stratum in strata},
        **_failed([(one.answer, one.replies, one.pairs) for one in judged], ORDERS),
    }
    return Score(
        source=source,
        metric="judge",
        profile=profile,
        value=math.nan if value is None else value,
        samples=len(judged) - failed,
        failed=failed,
        interval=interval(parts, seed=0),
        parts=parts,
        details=details,
    )


def _weighted(judged: Sequence[_Judged], strata: Mapping[str, float], profile: str) -> list[list[_Mark]]:
    """The marks of each answer. All of a stratum and order weigh the same; where nothing failed, an answer weighs 1 on average.

    A stratum or order without any mark weighs nothing: the others take its place, and `answers` and `by_order` show it.
    """
    counted = [(None, None) if profile == "clean" and one.failed else one.pairs for one in judged]
    weights: dict[tuple[str, int], float] = {}
    for stratum, weight in strata.items():
        of_stratum = [pairs for one, pairs in zip(judged, counted, strict=True) if one.stratum == stratum]
        marks = [sum(pairs[order] is not None for pairs in of_stratum) for order in range(len(ORDERS))]
        orders = sum(map(bool, marks))
        weights |= {
            (stratum, order): len(judged) * weight / orders / number for order, number in enumerate(marks) if number
        }
    return [
        [_Mark(order, weights[one.stratum, order], *pair) for order, pair in enumerate(pairs) if pair is not None]
        for one, pairs in zip(judged, counted, strict=True)
    ]


def _summary(marks: Sequence[_Mark]) -> dict[str, Any]:
    """How many marks there are, their means, and how often the model's is above the reference's."""
    return {
        "marks": len(marks),
        "model": _mean((mark.weight, mark.model) for mark in marks),
        "reference": _mean((mark.weight, mark.reference) for mark in marks),
        "win_rate": _mean((mark.weight, mark.model > mark.reference) for mark in marks),
    }


def _mean(weighted: Iterable[tuple[float, float]]) -> float | None:
    """The weighted mean, None of nothing."""
    pairs = list(weighted)
    return sum(weight * value for weight, value in pairs) / sum(weight for weight, _ in pairs) if pairs else None


def _score_alone(source: str, replied: Sequence[tuple[Answer, Reply | None]], judge: Judge) -> Score:
    from qwen2_audio.evaluation.bootstrap import interval

    marks = [None if reply is None or reply.error else read_mark(reply.text) for _, reply in replied]
    parts = tuple(
        Part(answer.sample.id, mark or 0.0, float(mark is not None), answer.sample.gt, answer.response)
        for (answer, _), mark in zip(replied, marks, strict=True)
    )
    given = [mark for mark in marks if mark is not None]
    known = [
        (answer, () if reply is None else (reply,), (mark,))
        for (answer, reply), mark in zip(replied, marks, strict=True)
    ]
    return Score(
        source=source,
        metric="judge",
        profile="clean",
        value=sum(given) / len(given) if given else math.nan,
        samples=len(given),
        failed=len(replied) - len(given),
        interval=interval(parts, seed=0),
        parts=parts,
        details={
            **_settings(judge, "1 to 5", (ALONE,), [reply for _, reply in replied if reply is not None]),
            "marks": len(given),
            **_failed(known, (ALONE,)),
        },
    )


def _settings(judge: Judge, scale: str, orders: Sequence[str], replies: Sequence[Reply]) -> dict[str, Any]:
    """Who judged, and how. The addresses are those that the replies came from, as far as these tell."""
    settings = {"judge": judge.model, "mode": judge.mode, "scale": scale, "orders": list(orders)}
    addresses = sorted({reply.address for reply in replies} - {""})
    if addresses:
        settings["address"] = ", ".join(addresses)
    return settings | ({"seed": judge.seed} if judge.mode == "official" else {})


def _failed(
    judged: Sequence[tuple[Answer, Sequence[Reply], Sequence[object]]], orders: Sequence[str]
) -> dict[str, Any]:
    """What has no mark, and why: answers that were none, and replies without a mark that can be read."""
    failures = [
        {"id": answer.sample.id, "position": order, "reply": reply.text, "error": reply.error or "no mark can be read"}
        for answer, replies, marks in judged
        for order, reply, mark in zip(orders, replies, marks, strict=False)  # an answer with an error has no replies
        if mark is None
    ]
    answers = sum(bool(answer.error) for answer, _, _ in judged)
    return {"failed_answers": answers, "failed_replies": len(failures), "failures": failures}
