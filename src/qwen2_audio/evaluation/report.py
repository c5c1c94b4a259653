"""The report of a run: report.md, .json, .csv and .html with charts beside them, and scores.json."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwen2_audio.errors import UsageError
from qwen2_audio.evaluation import plots
from qwen2_audio.evaluation.findings import confusions, failures, worst
from qwen2_audio.evaluation.published import in_table_unit, published
from qwen2_audio.evaluation.report_content import (
    EDITS,
    Results,
    chart_name,
    content,
    edit_counts,
    gather,
    metric_digits,
    profiles_of,
    unit,
)
from qwen2_audio.evaluation.report_html import html
from qwen2_audio.evaluation.report_markdown import markdown
from qwen2_audio.evaluation.samples import Answer
from qwen2_audio.evaluation.scores import Score

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCORES = "scores.json"
_WORST = 50
"""Of each source, in report.json."""
_HEAD = (
    "section", "set", "column", "system", "profile", "metric", "unit", "value", "low", "high", "samples", "failed", *EDITS,
)  # fmt: skip


def write_report(
    run_folder: Path, scores: Sequence[Score], run: Mapping[str, Any], answers: Sequence[Answer] = ()
) -> None:
    """Write all files of a report. What needs no library comes first, so that a missing one does not cost the scores.

    Args:
        scores: of whole sources, and of their parts under names like "mmau_test_mini/task=music".
        run: configuration and versions; the model's name under "model" or "answerer" -> "model".
        answers: of the run; without them there are no slices and no list of failures.

    Raises:
        UsageError: a file cannot be written, or matplotlib is missing.
    """
    plain = [{**_score(score), "details": dict(score.details)} for score in scores]
    _write(run_folder / SCORES, _json({"scores": plain, "run": run}))
    results = gather(scores, run, answers)
    _write(run_folder / "report.csv", _csv(results))
    _write(run_folder / "report.json", _json(_report(results)))
    charts = {}
    for name, figure in _charts(results):
        plots.save(figure, run_folder, name)
        charts[name] = (run_folder / f"{name}.svg").read_text(encoding="utf-8")
    document = content(results)
    _write(run_folder / "report.md", markdown(document))
    _write(run_folder / "report.html", html(document, charts))


def _charts(results: Results) -> Iterator[tuple[str, Figure]]:
    """Every chart that the document shows, by its name there."""
    for name, scores in results.unpublished().items():
        title = f"{name}, {'lower' if scores[0].lower_is_better else 'higher'} is better"
        yield chart_name(name), plots.own_bars(title, scores, metric_digits(scores[0].metric))
    rows = {table.dataset: results.beside(table) for table in published()}
    # a profile that is there twice says nothing new on the radar: the first has the line
    first = [score for row in rows.values() for score in next(iter(row.values())) if score is not None]
    yield "radar", plots.radar(results.label, first)
    for table in published():
        if any(score for row in rows[table.dataset].values() for score in row):
            yield table.dataset, plots.bars(table, rows[table.dataset])
    by_length = [one for one in results.slices if one.by == "length" and one.score.lower_is_better]
    if by_length:
        yield "by_length", plots.by_length(by_length)


def _score(score: Score) -> dict[str, Any]:
    return {
        "source": score.source, "metric": score.metric, "profile": score.profile, "value": score.value,
        "interval": score.interval, "samples": score.samples, "failed": score.failed,
    }  # fmt: skip


def _report(results: Results) -> dict[str, Any]:
    """report.json: values in the unit of `Score`, published tables in their own, ours in the same beside them."""
    tables = []
    for table in published():
        rows: dict[str, Any] = {name: list(values) for name, values in table.systems.items()}
        ours = results.beside(table)
        for system, row in ours.items():
            rows[system] = [None if x is None else in_table_unit(x, x.value) for x in row]
        name = {"section": table.section, "set": table.dataset, "unit": table.unit}
        tables.append({**name, "columns": list(table.columns), "systems": rows, "profiles": profiles_of(ours)})
    return {
        "model": results.model,
        "scores": [{**_score(score), "details": dict(score.details)} for score in results.scores],
        "published": tables,
        "slices": [
            {**_score(one.score), "by": one.by, "slice": one.name, "value": one.value, "interval": one.interval,
             "samples": one.samples, "failed": None}
            for one in results.slices
        ],
        "worst": [
            {"source": score.source, "metric": score.metric, "profile": score.profile, "id": part.id,
             "numerator": part.numerator, "denominator": part.denominator, "counts": dict(part.counts),
             "reference": part.reference, "response": part.response}
            for score in results.scores
            for part in worst(score, _WORST)
        ],
        "confusions": [
            {"source": score.source, "metric": score.metric, "profile": score.profile, "reference": one.reference,
             "response": one.response, "times": one.times}
            for score in results.scores
            for one in confusions(score, _WORST)
        ],
        "failures": [
            {"source": one.source, "id": one.id, "reason": one.reason}
            for one in failures(results.scores, results.answers)
        ],
        "run": results.run,
    }  # fmt: skip


def _csv(results: Results) -> str:
    """A row a number, ours and the published, so that a table program can sort and pivot them."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(_HEAD)
    places: dict[int, tuple[str, str, str]] = {}
    for table in published():
        for row in results.beside(table).values():
            for column, score in zip(table.columns, row, strict=True):
                if score is not None:
                    places[id(score)] = table.section, table.dataset, column
        metric, what = table.metrics[0], table.unit.partition(",")[0]
        for system, values in table.systems.items():
            for column, value in zip(table.columns, values, strict=True):
                if value is not None:
                    writer.writerow([table.section, table.dataset, column, system, "", metric, what, value, *[""] * 7])
    for score in results.scores:
        known = [score.value, *(score.interval or ())]
        ours = [*(round(in_table_unit(score, x), 6) if math.isfinite(x) else "" for x in known), "", ""][:3]
        place = places.get(id(score), ("", score.source, ""))
        edits = edit_counts(score) or ("", "", "")
        about = [results.label, score.profile, score.metric, unit(score)]
        writer.writerow([*place, *about, *ours, score.samples, score.failed, *edits])
    return file.getvalue()


def _json(value: Any) -> str:
    return json.dumps(_finite(value), indent=2, ensure_ascii=False) + "\n"


def _finite(value: Any) -> Any:
    """The same in what JSON knows: no nan, no infinity; paths and the like as text."""
    if isinstance(value, Mapping):
        return {str(key): _finite(inside) for key, inside in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_finite(inside) for inside in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int) else str(value)


def _write(path: Path, text: str) -> None:
    """Beside, then renamed: there is never half a file under the name. Lone surrogates of an answer become "?"."""
    part = path.with_name(path.name + ".part")
    try:
        part.write_bytes(text.encode("utf-8", "replace"))
        part.replace(path)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}; choose another folder") from error
