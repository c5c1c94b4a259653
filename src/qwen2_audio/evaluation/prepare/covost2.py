"""CoVoST 2's translations and Common Voice's clips to rows."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from qwen2_audio.evaluation.prepare.rows import Absent, Row, read_table
from qwen2_audio.evaluation.tasks.covost2 import DIRECTIONS, prompt_of, source_of

_LOCALES = {"zh": "zh-CN"}


def read(folder: Path, absent: Absent) -> Iterator[Row]:
    """Rows of the directions that are there; names those that are not."""
    for direction in DIRECTIONS:
        spoken, target = (_LOCALES.get(language, language) for language in direction.split("-"))
        whole = folder / spoken / f"covost_v2.{spoken}_{target}.tsv"
        test = whole.with_suffix(".test.tsv")  # as the data set's own script writes it
        if not whole.is_file() and not test.is_file():
            absent(whole)
            continue
        yield from _rows(test if test.is_file() else whole, direction, absent, all_of_it=test.is_file())


def _validated(table: Path) -> Collection[str] | None:
    """Clips that a release of Common Voice still has, as its own list says, by which the data set's own script goes, too."""
    return {line["path"] for line in read_table(table, ("path",), delimiter="\t")} if table.is_file() else None


def _rows(table: Path, direction: str, absent: Absent, *, all_of_it: bool) -> Iterator[Row]:
    columns = ("path", "translation", *(() if all_of_it else ("split",)))
    clips = _validated(table.parent / "validated.tsv")
    for line in read_table(table, columns, delimiter="\t"):
        if not all_of_it and line["split"] != "test":  # what is test_covost was of the first version's test set
            continue
        audio = table.parent / "clips" / line["path"]
        if clips is not None and line["path"] not in clips:
            absent(audio)
            continue
        yield Row(
            id=f"{direction}-{audio.stem}",
            audio=audio,
            prompt=prompt_of(direction),
            gt=line["translation"],
            source=source_of(direction),
            language=direction.split("-")[0],
            speaker=line.get("client_id", ""),
        )
