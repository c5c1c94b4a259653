"""Two runs over the same samples, set by set: which is better, how sure that is, and in which answers they differ most."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from qwen2_audio.errors import UsageError
from qwen2_audio.evaluation.bootstrap import combined, paired
from qwen2_audio.evaluation.document import Block, Cell, Section, Table, Text, compared, shortened
from qwen2_audio.evaluation.findings import split_breakdowns
from qwen2_audio.evaluation.published import in_table_unit
from qwen2_audio.evaluation.report import SCORES
from qwen2_audio.evaluation.report_content import NOTHING, metric_digits, number, unit
from qwen2_audio.evaluation.report_markdown import markdown
from qwen2_audio.evaluation.samples import Answer, read_answers
from qwen2_audio.evaluation.scores import Part, Score

_Kind: TypeAlias = tuple[str, str, str]
"""Source, metric, profile."""
_CHANGED = 10
_HEAD = (
    "Set", "Metric", "Profile", "A", "B", "Difference", "95 % interval", "p", "Better", "Worse", "Same", "Left out",
)  # fmt: skip
_NOTE = (
    "The difference is B less A, with the 95 % interval of a paired bootstrap over samples; p is from a two-sided "
    "randomisation test. Better and worse count samples, as seen from B. Marked is what differs from the reference."
)
_JUDGED = "Of judged sets the values alone are compared: a run's folder holds the answers, not the marks of each."


@dataclass(frozen=True, slots=True)
class _Run:
    """A run's folder, read.

    Attributes:
        scores: of whole sources as scores.json has them, by source, metric and profile.
        answers: by source and id.
    """

    folder: Path
    scores: Mapping[_Kind, Score]
    answers: Mapping[str, Mapping[str, Answer]]


def compare_runs(a: Path, b: Path) -> str:
    """The comparison of two runs' folders in Markdown.

    The answers are scored anew, so that what differs is the answers and nothing else. Where a run failed to answer a sample
    that the other answered, the sample is left out of both, and counted.

    Raises:
        UsageError: a folder is no finished run, or the runs are of different samples, metrics or profiles.
    """
    runs = _read(a), _read(b)
    _check_alike(*runs)
    rows: list[tuple[Cell, ...]] = []
    changed: list[Block] = []
    for kind in runs[0].scores:
        source, metric, profile = kind
        if metric == "judge":
            rows.append(_judged(runs[0].scores[kind], runs[1].scores[kind]))
            continue
        score_a, score_b, left_out = _scored(*runs, kind)
        rows.append(_row(score_a, score_b, left_out))
        table = _changed(score_a, score_b)
        if table.rows:
            changed.append(Section(f"{source}: {unit(score_a)}, {profile}", (table,)))
    blocks: list[Block] = [Text(f"A: {a}. B: {b}."), Table(_HEAD, tuple(rows), frozenset({0, 1, 2})), Text(_NOTE)]
    if any(metric == "judge" for _, metric, _ in runs[0].scores):
        blocks.append(Text(_JUDGED))
    if changed:
        blocks.append(Section("The answers that changed most", tuple(changed)))
    return markdown(Section("Comparison of two runs", tuple(blocks)))


def _read(folder: Path) -> _Run:
    path = folder / SCORES
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        scores = [_score(one) for one in held["scores"]]
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}; give the folder of a finished run") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{path} does not hold the scores of a run ({error!r:.80}); score the run again") from error
    whole, _parts_of_these = split_breakdowns(scores)
    answers: dict[str, dict[str, Answer]] = {}
    for file in sorted(folder.glob("answers.*.jsonl")):
        for answer in read_answers(file):
            answers.setdefault(answer.sample.source, {})[answer.sample.id] = answer
    by_kind = {(score.source, score.metric, score.profile): score for score in whole}
    return _Run(folder, by_kind, answers)


def _score(one: Mapping[str, Any]) -> Score:
    value = math.nan if one["value"] is None else float(one["value"])
    return Score(
        one["source"], one["metric"], one["profile"], value, one["samples"], one["failed"], details=one["details"]
    )


def _check_alike(a: _Run, b: _Run) -> None:
    """That both runs measured the same in the same way."""
    if other := sorted(a.scores.keys() ^ b.scores.keys()):
        source, metric, profile = other[0]
        has, lacks = (a, b) if other[0] in a.scores else (b, a)
        raise UsageError(
            f"cannot compare: {has.folder} has a score of {source} by {metric}, profile {profile}, and {lacks.folder} has not; "
            "compare runs of the same tasks, scored alike"
        )
    for kind, score in a.scores.items():
        both = score.details, b.scores[kind].details
        told = ("judge", "mode", *(["address"] if all("address" in details for details in both) else []))
        judges = [tuple(details.get(name) for name in told) for details in both]
        if judges[0] != judges[1]:
            raise UsageError(
                f"cannot compare {kind[0]}: {a.folder} was judged by {judges[0]}, {b.folder} by {judges[1]}; "
                "judge both alike"
            )
        for run in (a, b):
            if score.metric != "judge" and kind[0] not in run.answers:
                raise UsageError(f"cannot compare {kind[0]}: {run.folder} holds no answers to it in answers.*.jsonl")
    for source in sorted(a.answers.keys() | b.answers.keys()):
        _check_samples(source, a, b)


def _check_samples(source: str, a: _Run, b: _Run) -> None:
    of_a, of_b = a.answers.get(source, {}), b.answers.get(source, {})
    advice = "compare runs over the same samples"
    if other := of_a.keys() ^ of_b.keys():
        raise UsageError(
            f"cannot compare {source}: samples are in one of {a.folder} and {b.folder} only, {len(other)} of them, "
            f"such as {min(other)!r}; {advice}"
        )
    if other := {name for name in of_a if of_a[name].sample.gt != of_b[name].sample.gt}:
        raise UsageError(
            f"cannot compare {source}: the reference of {min(other)!r} in {a.folder} is another than in {b.folder}; {advice}"
        )


def _scored(a: _Run, b: _Run, kind: _Kind) -> tuple[Score, Score, int]:
    """Scores of the samples that both runs answered and that count (nan if there are none), and how many others there are."""
    from qwen2_audio.evaluation.scoring import score

    source, metric, profile = kind
    failed = {name for run in (a, b) for name, answer in run.answers[source].items() if answer.error}
    answered = [[one for name, one in run.answers[source].items() if name not in failed] for run in (a, b)]
    scores = [
        score(answers, metric, profile=profile)[0] if answers else replace(run.scores[kind], parts=())
        for run, answers in zip((a, b), answered, strict=True)
    ]
    both = {part.id for part in scores[0].parts} & {part.id for part in scores[1].parts}
    kept = [replace(one, parts=tuple(part for part in one.parts if part.id in both)) for one in scores]
    values = [combined(one.parts) for one in kept]
    first, second = (
        replace(one, value=math.nan if value is None else value) for one, value in zip(kept, values, strict=True)
    )
    return first, second, len(a.answers[source]) - len(both)


def _row(a: Score, b: Score, left_out: int) -> tuple[str, ...]:
    values = number(a, a.value), number(b, b.value)
    if NOTHING in values:
        return (a.source, unit(a), a.profile, *values, *[NOTHING] * 6, str(left_out))
    found = paired(a, b)
    better, worse, same = _gains(a, b)
    interval = f"{_signed(a, found.low)} to {_signed(a, found.high)}"
    changes = _signed(a, found.value), interval, "< 0.001" if found.p < 0.001 else f"{found.p:.3f}"
    counts = map(str, (better, worse, same, left_out))
    return (a.source, unit(a), a.profile, *values, *changes, *counts)


def _judged(a: Score, b: Score) -> tuple[str, ...]:
    values = number(a, a.value), number(b, b.value), _signed(a, b.value - a.value)
    return (a.source, unit(a), a.profile, *values, *[NOTHING] * 6)


def _signed(score: Score, value: float) -> str:
    return f"{in_table_unit(score, value):+.{metric_digits(score.metric)}f}"


def _gains(a: Score, b: Score) -> tuple[int, int, int]:
    """How many samples got better, got worse and stayed as they were."""
    gains = [_gain(a, one, two) for one, two in _pairs(a, b)]
    return sum(gain > 0 for gain in gains), sum(gain < 0 for gain in gains), gains.count(0)


def _pairs(a: Score, b: Score) -> list[tuple[Part, Part]]:
    of_b = {part.id: part for part in b.parts}
    return [(part, of_b[part.id]) for part in a.parts]


def _gain(score: Score, a: Part, b: Part) -> float:
    """By how much B is better: fewer errors, or more points."""
    return a.numerator - b.numerator if score.lower_is_better else b.numerator - a.numerator


def _changed(a: Score, b: Score) -> Table:
    """The answers that changed most, whichever way."""
    pairs = [(one, two) for one, two in _pairs(a, b) if _gain(a, one, two)]
    pairs.sort(key=lambda pair: -abs(_gain(a, *pair)))
    rows: list[tuple[Cell, ...]] = []
    for one, two in pairs[:_CHANGED]:
        change = f"{one.numerator:.4g} → {two.numerator:.4g}"
        responses: list[Cell] = [shortened(part.response) for part in (one, two)]
        if a.lower_is_better:
            responses = [compared(part.reference, part.response, int(part.denominator))[1] for part in (one, two)]
        rows.append(
            (one.id, "better" if _gain(a, one, two) > 0 else "worse", change, shortened(one.reference), *responses)
        )
    numbers = "Errors" if a.lower_is_better else "Score"
    return Table(("Sample", "B is", numbers, "Reference", "A", "B"), tuple(rows), frozenset({0, 1, 3, 4, 5}))
