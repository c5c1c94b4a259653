"""Fleurs' `test.tsv`, which has no head line, and its recordings to rows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from qwen2_audio.errors import UsageError
from qwen2_audio.evaluation.prepare.rows import Absent, Row, below, read_text
from qwen2_audio.evaluation.task import ASR_PROMPT
from qwen2_audio.evaluation.tasks.fleurs import LOCALE

_COLUMNS = 7
"""number of the sentence, file, sentence as written, sentence normalised, characters, samples, gender"""


def read(folder: Path, absent: Absent) -> Iterator[Row]:
    """Rows of Mandarin; the reference is the sentence as Fleurs normalised it."""
    root = below(below(folder, "data"), LOCALE)
    table = root / "test.tsv"
    if not table.is_file():
        absent(table)
        return
    prompt = ASR_PROMPT.format(language="zh")
    for number, line in enumerate(read_text(table).splitlines(), 1):
        values = line.split("\t")
        if len(values) != _COLUMNS:
            raise UsageError(f"{table}, line {number}: {_COLUMNS} columns must stand there, got {len(values)}")
        audio = root / "audio" / "test" / values[1]
        yield Row(audio.stem, audio, prompt, values[3], "fleurs_zh", "zh")  # the same sentence has several readers
