"""Common Voice's `test.tsv` and clips to rows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from qwen2_audio.evaluation.prepare.rows import Absent, Row, below, read_table
from qwen2_audio.evaluation.task import ASR_PROMPT
from qwen2_audio.evaluation.tasks.common_voice_15 import LOCALES, source_of


def read(folder: Path, absent: Absent) -> Iterator[Row]:
    """Rows of the languages that are there; names those that are not."""
    root = below(folder, "cv-corpus-15.0-2023-09-08")
    for language, locale in LOCALES.items():
        table = root / locale / "test.tsv"
        if not table.is_file():
            absent(table)
            continue
        prompt = ASR_PROMPT.format(language=language)
        for line in read_table(table, ("client_id", "path", "sentence"), delimiter="\t"):
            audio = root / locale / "clips" / line["path"]
            yield Row(audio.stem, audio, prompt, line["sentence"], source_of(language), language, line["client_id"])
