"""What stands in a report, in its order: scores, the published numbers, slices, the worst answers, failures, settings."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

from qwen2_audio.evaluation.document import Block, Cell, Chart, Section, Table, Text, compared, shortened
from qwen2_audio.evaluation.findings import Slice, confusions, failures, slices, split_breakdowns, worst
from qwen2_audio.evaluation.plots import RADAR_CAPTION
from qwen2_audio.evaluation.published import PublishedTable, in_table_unit, provenance, published
from qwen2_audio.evaluation.samples import Answer
from qwen2_audio.evaluation.scores import Part, Score

EDITS = ("substitutions", "deletions", "insertions")
NOTHING = "–"
_NAMES = {
    "wer": "WER %",
    "cer": "CER %",
    "bleu": "BLEU",
    "accuracy": "accuracy",
    "prefix": "accuracy (prefix)",
    "string_match": "accuracy (string match)",
    "choice": "accuracy (choice)",
    "word_f1": "accuracy (half of the words)",
    "judge": "judge's mark",
}
_DIGITS = {"wer": 2, "cer": 2, "bleu": 1, "judge": 2}
_WHISKER = "The whisker is the 95 % interval."
_OTHER_PROFILE = "This run's numbers are of the profile {}; the published ones compare with official."
_BARE = (
    "The published transcripts, translations, emotions and vocal sounds are of bare prompts, and do not compare with this "
    "run's. Here bare prompts were"
)
_WORST = 10
_SHOWN = 10
"""Rows of a list that may be long; the rest stands in report.json."""


@dataclass(frozen=True, slots=True)
class Results:
    """What a report is made of.

    Attributes:
        model: its name, for people.
        scores: of whole sources.
        slices: of all of them.
    """

    model: str
    scores: tuple[Score, ...]
    slices: tuple[Slice, ...]
    answers: tuple[Answer, ...]
    run: Mapping[str, Any]

    def beside(self, table: PublishedTable) -> dict[str, tuple[Score | None, ...]]:
        """Our rows of a published table by their names: one for each profile that measured something of it."""
        profiles = dict.fromkeys(score.profile for score in self.scores)
        rows = {profile: table.ours([one for one in self.scores if one.profile == profile]) for profile in profiles}
        rows = {profile: row for profile, row in rows.items() if any(row)}
        if len(rows) > 1:
            return {f"{self.model} (this run, {profile})": row for profile, row in rows.items()}
        return {self.label: next(iter(rows.values()), (None,) * len(table.columns))}

    @property
    def asked_otherwise(self) -> str:
        """How bare prompts were asked, where that is not as those of the published numbers were: "" where it is, and where none
        was asked."""
        answerer = self.run.get("answerer")
        asked = answerer.get("bare_prompts", "") if isinstance(answerer, Mapping) else ""
        return str(asked) if any(not answer.sample.chat for answer in self.answers) else ""

    @property
    def label(self) -> str:
        """This run's name beside others'."""
        return f"{self.model} (this run)"

    def unpublished(self) -> dict[str, list[Score]]:
        """By what their numbers are, the scores that have no place in a published table."""
        placed = {id(score) for table in published() for row in self.beside(table).values() for score in row}
        found: dict[str, list[Score]] = {}
        for score in self.scores:
            if id(score) not in placed:
                found.setdefault(unit(score), []).append(score)
        return found


def profiles_of(rows: Mapping[str, Sequence[Score | None]]) -> dict[str, str]:
    """By the names of rows in a published table, the profile of their scores; "" of a row without any."""
    return {name: next((score.profile for score in row if score is not None), "") for name, row in rows.items()}


def gather(scores: Sequence[Score], run: Mapping[str, Any], answers: Sequence[Answer]) -> Results:
    """Find out what there is to say."""
    whole, parts = split_breakdowns(scores)
    cut = [one for score in whole for one in slices(score, answers)]
    answerer = run.get("answerer", {})
    model = run.get("model") or (answerer.get("model") if isinstance(answerer, Mapping) else "") or "this model"
    name = str(model).rstrip("/").rpartition("/")[2] or str(model)
    return Results(name, tuple(whole), (*cut, *parts), tuple(answers), run)


def unit(score: Score) -> str:
    """What the numbers of a score are, such as "WER %"; of a judge's marks also their range."""
    name = _NAMES.get(score.metric, score.metric)
    return f"{name} ({score.details['scale']})" if "scale" in score.details else name


def number(score: Score, value: float, digits: int = 0) -> str:
    """A value of a score for people, in the unit of the published tables.

    Args:
        digits: after the point, if more than data sets of the usual size warrant.
    """
    return f"{in_table_unit(score, value):.{max(digits, metric_digits(score.metric))}f}" if isfinite(value) else NOTHING


def metric_digits(metric: str) -> int:
    """After the point."""
    return _DIGITS.get(metric, 3)


def chart_name(unit: str) -> str:
    """The file of the chart of scores without published numbers."""
    return "scores_" + re.sub(r"\W+", "_", unit.lower()).strip("_")


def ends(score: Score, interval: tuple[float, float] | None, digits: int = 0) -> str:
    """An interval for people."""
    return NOTHING if interval is None else "–".join(number(score, end, digits) for end in interval)


def edit_counts(score: Score) -> tuple[int, ...] | None:
    """Substitutions, deletions and insertions of an error rate; None for other metrics, and where nothing was scored."""
    if not score.lower_is_better or not score.samples:
        return None
    return tuple(int(score.details.get(name, sum(part.counts.get(name, 0) for part in score.parts))) for name in EDITS)


def content(results: Results) -> Section:
    """The whole report."""
    sections = [_scores(results), _published(results), _slices(results), _worst(results), _failures(results)]
    blocks: list[Block] = [section for section in sections if section.blocks]
    summary = f"Sets: {len({score.source for score in results.scores})}."
    if any(score.failed for score in results.scores):
        summary += " Some samples gave no answer, or got no mark: the column Failed counts them."
    return Section(f"Evaluation of {results.model}", (Text(summary), *blocks, _settings(results)))


def _scores(results: Results) -> Section:
    rows = []
    for score in results.scores:
        edits = edit_counts(score)
        rows.append(
            (
                score.source, unit(score), score.profile, number(score, score.value),
                ends(score, score.interval), str(score.samples), str(score.failed),
                " / ".join(map(str, edits)) if edits else NOTHING,
            )
        )  # fmt: skip
    head = ("Set", "Metric", "Profile", "Score", "95 % interval", "Scored", "Failed", "Sub / del / ins")
    note = "Intervals are from a bootstrap over the answers of a set."
    caption = f"Sets without published numbers. {_WHISKER}"
    charts = [
        Chart(chart_name(name), f"Sets without published numbers: {name}", caption) for name in results.unpublished()
    ]
    return Section("Scores", (Table(head, tuple(rows), frozenset({0, 1, 2})), Text(note), *charts))


def _published(results: Results) -> Section:
    blocks: list[Block] = []
    if limit := results.run.get("limit"):
        blocks.append(Text(f"Only the first {limit} samples of each set were asked; the published numbers are of all."))
    blocks.append(Text(f"Published numbers: {provenance()}. {NOTHING}: not published, or not measured in this run."))
    if asked := results.asked_otherwise:
        blocks.append(Text(f"{_BARE} {asked}."))
    blocks.append(Chart("radar", "All published sets, relative to the best published number", RADAR_CAPTION))
    for table in published():
        rows: list[tuple[Cell, ...]] = []
        for name, values in table.systems.items():
            rows.append((name, *(NOTHING if x is None else f"{x:.{table.digits}f}" for x in values)))
        ours = results.beside(table)
        rows += [(name, *(_with_interval(score, table.digits) for score in row)) for name, row in ours.items()]
        mine = frozenset(range(len(table.systems), len(rows)))
        inside: list[Block] = [Table(("System", *table.columns), tuple(rows), frozenset({0}), mine)]
        profile = (
            "".join(profiles_of(ours).values()) if len(ours) == 1 else ""
        )  # of several, each row's name has its own
        scored = "" if profile in ("", "official") else _OTHER_PROFILE.format(profile)
        if scored:
            inside.append(Text(scored))
        if any(score for row in ours.values() for score in row):
            inside.append(Chart(table.dataset, f"{table.title}: {table.unit}", f"{_WHISKER} {scored}".strip()))
        blocks.append(Section(f"{table.title}: {table.unit}", tuple(inside)))
    return Section("Beside the published numbers", tuple(blocks))


def _with_interval(score: Score | None, digits: int) -> str:
    if score is None:
        return NOTHING
    value = number(score, score.value, digits)
    return value if score.interval is None else f"{value} ({ends(score, score.interval, digits)})"


def _slices(results: Results) -> Section:
    blocks: list[Block] = []
    for by in dict.fromkeys(one.by for one in results.slices):
        found = [one for one in results.slices if one.by == by]
        inside: list[Block] = []
        if by == "length" and any(one.score.lower_is_better for one in found):
            caption = f"n is the number of recordings. {_WHISKER} Recordings of unknown length are left out."
            inside.append(Chart("by_length", "Error rates by length of recording", caption))
        rows, left = [], 0
        for of in dict.fromkeys(one.of for one in found):
            mine = [one for one in found if one.of == of]
            shown = mine[:_SHOWN] if by == "speaker" else mine
            left += len(mine) - len(shown)
            rows += [_slice_row(one) for one in shown]
        head = ("Set", "Metric", "Profile", by.capitalize(), "Scored", "Score", "95 % interval")
        inside.append(Table(head, tuple(rows), frozenset({0, 1, 2, 3})))
        if left:
            inside.append(Text(f"Of each set the {_SHOWN} worst are shown; {left} more stand in report.json."))
        blocks.append(Section(f"By {by}", tuple(inside)))
    return Section("Where it is good and where not", tuple(blocks))


def _slice_row(one: Slice) -> tuple[str, ...]:
    score = one.score
    value, interval = number(score, one.value), ends(score, one.interval)
    return (score.source, unit(score), score.profile, one.name, str(one.samples), value, interval)


def _worst(results: Results) -> Section:
    blocks = []
    for score in results.scores:
        table = _confusion_table(score) or _worst_table(score)
        if table.rows:
            blocks.append(Section(f"{score.source}: {unit(score)}, {score.profile}", (table,)))
    return Section("The worst answers", tuple(blocks))


def _confusion_table(score: Score) -> Table | None:
    rows = [(one.reference, shortened(one.response), str(one.times)) for one in confusions(score, _WORST)]
    return Table(("Reference", "Response instead", "Times"), tuple(rows), frozenset({0, 1})) if rows else None


def _worst_table(score: Score) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for part in worst(score, _WORST):
        if score.lower_is_better:
            reference, response = compared(part.reference, part.response, int(part.denominator))
            edits = " / ".join(str(part.counts.get(name, 0)) for name in EDITS)
            rows.append((part.id, reference, response, f"{part.numerator:g} of {part.denominator:g}", edits))
        else:
            rows.append((part.id, shortened(part.reference), shortened(part.response), _own_score(score, part)))
    texts = frozenset({0, 1, 2})
    if score.lower_is_better:
        head = "Sample", "Reference, normalised", "Response, normalised", "Errors", "Sub / del / ins"
        return Table(head, tuple(rows), texts)
    return Table(("Sample", "Reference", "Response", unit(score)), tuple(rows), texts)


def _own_score(score: Score, part: Part) -> str:
    value = part.numerator / part.denominator
    return f"{value:.1f}" if score.metric in ("bleu", "judge") else f"{value:g}"


def _failures(results: Results) -> Section:
    failed = failures(results.scores, results.answers)
    rows = tuple((one.source, one.id, shortened(one.reason)) for one in failed[:_SHOWN])
    blocks: list[Block] = [Table(("Set", "Sample", "What was wrong"), rows, frozenset({0, 1, 2}))] if rows else []
    if len(failed) > _SHOWN:
        blocks.append(Text(f"{len(failed) - _SHOWN} more stand in report.json."))
    return Section("Failures", tuple(blocks))


def _settings(results: Results) -> Section:
    rows = tuple((name, shortened(value)) for name, value in flat(results.run))
    blocks: list[Block] = [Table(("Setting", "Value"), rows, frozenset({0, 1}))]
    details = []
    for score in results.scores:
        told = {name: value for name, value in score.details.items() if name not in (*EDITS, "failures")}
        if told:
            text = "; ".join(f"{name}: {value}" for name, value in flat(told))
            details.append((score.source, unit(score), score.profile, shortened(text)))
    if details:
        table = Table(("Set", "Metric", "Profile", "Details"), tuple(details), frozenset({0, 1, 2, 3}))
        blocks.append(Section("Scoring", (table,)))
    return Section("Settings and versions", tuple(blocks))


def flat(settings: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings as names with dots, and values as text."""
    for name, value in settings.items():
        inside = f"{path}.{name}" if path else str(name)
        if isinstance(value, Mapping):
            yield from flat(value, inside)
        elif isinstance(value, list | tuple):
            yield inside, ", ".join(map(str, value)) or "none"
        else:
            yield inside, "none" if value is None else str(value)
