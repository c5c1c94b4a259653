"""What is measured: a data set (`Family`) and the questions that are put about it (`Task`). The tasks stand in `tasks/`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from qwen2_audio.errors import UsageError
from qwen2_audio.evaluation.samples import Sample, read_samples

METRICS = ("wer", "cer", "bleu", "accuracy", "prefix", "string_match", "choice", "word_f1", "judge")
"""How answers can be scored; "judge" by a model as in AIR-Bench, the rest by qwen2_audio.evaluation.scoring."""
ASR_PROMPT = "Detect the language and recognize the speech: <|{language}|>"
S2TT_PROMPT = "Detect the language and translate the speech into {target}: <|{language}|>"
SER_PROMPT = "Recognize the emotion with keywords in English:"
VSC_PROMPT = "Classify the human vocal sound to VocalSound in English:"


@dataclass(frozen=True, slots=True)
class Family:
    """A data set as people download it.

    Attributes:
        name: what `qwen2-audio data prepare` calls it; its rows are then in `<name>.jsonl`.
        title: what people call it.
        download: what to fetch, and from where.
        layout: how it must lie on the disk, one path a line.
        prepared: whether `data prepare` makes the rows; else the data set comes with a manifest.jsonl of them.
    """

    name: str
    title: str
    download: str
    layout: str
    prepared: bool = True

    def advice(self) -> str:
        """What to do for somebody who has no data yet, on one line."""
        layout = ", ".join(self.layout.split("\n"))
        advice = f"fetch {self.download}; it must lie as {layout}"
        if self.prepared:
            advice += f"; then run: qwen2-audio data prepare {self.name} FOLDER --out DATA/{self.name}.jsonl"
        return advice


@dataclass(frozen=True, slots=True)
class Task:
    """Rows of a data set that are asked alike and scored together; one score comes out for each `source` of theirs.

    Attributes:
        name: unique; where all rows have one source, it is that source.
        metric: one of `METRICS`.
        family: the data set.
        prompt: the exact instruction after the recordings, "" where every row has its own.
        language: ISO code of what is said, "" where it does not matter or differs.
        chat: asked in a chat; else in the base model's bare form.
        keep: which rows of the family's file belong to it, as keys and the values that they may have.
        source: what its rows' source is called, whatever the rows call it; "": as the rows say.
        published: section, data set and column of published.json where others' numbers stand.
        breakdown: keys of `Sample.more` by which the score is also shown in parts.
        file: the rows, where they are a user's own.
    """

    name: str
    metric: str
    family: Family
    prompt: str = ""
    language: str = ""
    chat: bool = False
    keep: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    source: str = ""
    published: tuple[str, str, str] | None = None
    breakdown: tuple[str, ...] = ()
    file: Path | None = None

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise UsageError(f"unknown metric {self.metric!r}; use one of {', '.join(METRICS)}")


def own_task(file: Path, metric: str, *, chat: bool = False, language: str = "") -> Task:
    """A task of the user's own: JSON lines in the official row shape.

    Args:
        chat: ask in a chat where a row does not say `"chat"`.
        language: of what is said, where a row does not say.

    Raises:
        UsageError: an unknown metric, or a language for BLEU.
    """
    if metric == "bleu" and language:
        raise UsageError(
            "the language is that of what is said; of a translation it stands in the rows' source, as in mine_en_zh_test"
        )
    name = re.sub(r"[^\w-]+", "_", file.stem)  # it becomes a part of file names
    family = Family(name, file.stem, f"the file {file}", '{"audio": ..., "prompt": ..., "gt": ...} a line', False)
    return Task(name, metric, family, language=language, chat=chat, file=file)


def load_samples(task: Task, data: Path | None, limit: int | None = None) -> list[Sample]:
    """The samples of a task.

    Args:
        data: the folder with the prepared data: `<family>.jsonl` or `<family>/manifest.jsonl`; a user's own file needs none.
        limit: only so many, the first ones.

    Raises:
        UsageError: the data are not there (the message says what to fetch from where), a row cannot be read or has no
            reference, two rows have the same id.
    """
    file = task.file or _find(task, data)
    samples = read_samples(file, chat=task.chat, keep=task.keep)
    if not samples:
        raise UsageError(f"{file} has no rows of {task.name} ({_held(file, task)}); {task.family.advice()}")
    seen: set[str] = set()
    for sample in samples:
        if sample.id in seen:
            raise UsageError(f"{file}: two rows of {task.name} have the id {sample.id!r}; give each its own")
        seen.add(sample.id)
    samples = [_completed(sample, task) for sample in samples]
    return samples if limit is None else samples[:limit]


def _completed(sample: Sample, task: Task) -> Sample:
    """What a row does not say is as the task has it."""
    return replace(
        sample,
        prompt=sample.prompt or task.prompt,
        language=sample.language or task.language,
        source=task.source or sample.source,
    )


def _find(task: Task, data: Path | None) -> Path:
    name = task.family.name
    if data is None:
        raise UsageError(f"{task.name} needs --data, the folder with {name}.jsonl; {task.family.advice()}")
    places = [data / f"{name}.jsonl", data / name / f"{name}.jsonl", data / name / "manifest.jsonl"]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        looked = f"{places[0]} or {places[-1]}"
        raise UsageError(f"no data for {task.name}: there is no {looked}; {task.family.advice()}")
    return found


def _held(file: Path, task: Task) -> str:
    wanted = "; ".join(f"{key} {' or '.join(map(repr, values))}" for key, values in task.keep.items()) or "any row"
    there = sorted({sample.source for sample in read_samples(file)})
    return f"wanted {wanted}; there are the sources {', '.join(there) or 'none'}"
