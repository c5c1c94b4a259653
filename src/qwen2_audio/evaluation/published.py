"""What others reached on the same data: the tables of published.json, and where our scores belong in them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from qwen2_audio.evaluation.scores import Score

_FILE = "published.json"
_TITLES = {
    "librispeech": "LibriSpeech",
    "common_voice_15": "Common Voice 15",
    "fleurs": "Fleurs",
    "aishell2": "AISHELL-2",
    "covost2": "CoVoST2",
    "meld": "MELD",
    "vocalsound": "VocalSound",
    "air_bench_chat": "AIR-Bench chat",
}
_METRICS = {"ASR": ("wer",), "S2TT": ("bleu",), "SER": ("accuracy",), "VSC": ("accuracy",)}


@dataclass(frozen=True, slots=True)
class PublishedTable:
    """What is published for one data set.

    Attributes:
        section: of published.json, such as "ASR".
        dataset: its key there, such as "librispeech".
        title: what people call it.
        unit: what the numbers are, such as "WER %, lower is better".
        metrics: of ours that measure the same.
        columns: its parts: splits, languages, directions, devices.
        systems: a number, or None, for each column; in the unit of the table.
    """

    section: str
    dataset: str
    title: str
    unit: str
    metrics: tuple[str, ...]
    columns: tuple[str, ...]
    systems: Mapping[str, tuple[float | None, ...]]

    @property
    def lower_is_better(self) -> bool:
        return "lower is better" in self.unit

    @property
    def digits(self) -> int:
        """After the point, as published."""
        return max(len(str(x).partition(".")[2]) for row in self.systems.values() for x in row if x is not None)

    def best(self, column: int) -> float:
        """The best number published for a column."""
        found = [row[column] for row in self.systems.values()]
        return (min if self.lower_is_better else max)(x for x in found if x is not None)

    def ours(self, scores: Sequence[Score]) -> tuple[Score | None, ...]:
        """The score of each column; None where it was not measured, or not with a metric of the table."""
        by_source = {score.source: score for score in scores if score.metric in self.metrics}
        return tuple(by_source.get(_source(self.section, self.dataset, column)) for column in self.columns)


@cache
def published() -> tuple[PublishedTable, ...]:
    """All tables, in the order in which they are published."""
    content = json.loads(files("qwen2_audio.evaluation").joinpath(_FILE).read_text(encoding="utf-8"))
    tables = []
    for section, datasets in content.items():
        if section == "source":
            continue
        for dataset, rows in datasets.items():
            if dataset == "metric":
                continue
            systems = {name: tuple(values) for name, values in rows.items() if name != "columns"}
            tables.append(
                PublishedTable(
                    section=section,
                    dataset=dataset,
                    title=_TITLES[dataset],
                    unit=datasets["metric"],
                    metrics=_METRICS.get(section, ("judge",)),
                    columns=tuple(rows["columns"]),
                    systems=systems,
                )
            )
    return tuple(tables)


def provenance() -> str:
    """Where the published numbers come from, for a footnote."""
    return str(json.loads(files("qwen2_audio.evaluation").joinpath(_FILE).read_text(encoding="utf-8"))["source"])


def in_table_unit(score: Score, value: float) -> float:
    """A value of a score in the unit of the published tables: error rates in percent, all else as it is."""
    return 100 * value if score.lower_is_better else value


def _source(section: str, dataset: str, column: str) -> str:
    """The source of our samples whose score belongs there; "" where no task measures it."""
    from qwen2_audio.evaluation.tasks import TASKS

    return next(
        (task.source or task.name for task in TASKS.values() if task.published == (section, dataset, column)), ""
    )
