"""A row to be written, and how the tables of data sets are read."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from qwen2_audio.errors import UsageError

Absent: TypeAlias = Callable[[Path], None]
"""Told of every file and folder of a data set that is not there."""
_QUICK = (".wav", ".flac")
"""Formats whose length stands in their header."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row in the official shape; see `qwen2_audio.evaluation.samples.Sample` for the names."""

    id: str
    audio: Path
    prompt: str
    gt: str
    source: str
    language: str = ""
    speaker: str = ""
    chat: bool = False
    more: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self, base: Path) -> dict[str, Any]:
        """As it is written into a file in the folder `base`."""
        path = self.audio.resolve()
        row: dict[str, Any] = {
            "id": self.id,
            "audio": str(path.relative_to(base) if path.is_relative_to(base) else path),
            "prompt": self.prompt,
            "gt": self.gt,
            "source": self.source,
            "language": self.language,
            "speaker": self.speaker,
        }
        if self.chat:
            row["chat"] = True
        duration = _seconds(path)
        if duration:
            row["duration"] = duration
        if self.more:
            row["more"] = dict(self.more)
        return row


def _seconds(path: Path) -> float:
    """Length of a recording, where that is quick to know; else 0. What is wrong with the file shows when it is heard."""
    if path.suffix.lower() not in _QUICK:
        return 0.0
    import soundfile

    try:
        return round(float(soundfile.info(path).duration), 3)
    except (OSError, RuntimeError):  # soundfile's own error is a RuntimeError
        return 0.0


def missing_among(rows: Iterable[Row]) -> list[Path]:
    """The recordings that are not there."""
    listed: dict[Path, set[str]] = {}
    missing = []
    for row in rows:
        folder = row.audio.parent
        if folder not in listed:  # one listing a folder, not one look a file: there are many, often far away
            listed[folder] = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()
        if row.audio.name not in listed[folder]:
            missing.append(row.audio)
    return missing


def below(folder: Path, name: str) -> Path:
    """`folder/name` where that is a folder, else `folder` itself: people point at either."""
    return folder / name if (folder / name).is_dir() else folder


def read_text(path: Path) -> str:
    """A text file.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8-sig", errors="replace")  # some sets hold single bytes of other encodings
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}; check the path") from error


def read_table(path: Path, columns: Sequence[str], *, delimiter: str, quoted: bool = False) -> Iterator[dict[str, str]]:
    """Rows of a table with a head line, of which `columns` must be there.

    Args:
        quoted: whether quotation marks enclose values (CSV); else they are text like any other (the TSV of Common Voice).

    Raises:
        UsageError: it cannot be read, or a column or a value is missing.
    """
    text = read_text(path)
    if quoted:
        table = csv.DictReader(io.StringIO(text), delimiter=delimiter)
    else:
        table = csv.DictReader(text.rstrip("\n").split("\n"), delimiter=delimiter, quoting=csv.QUOTE_NONE)
    for column in columns:
        if column not in (table.fieldnames or ()):
            raise UsageError(f"{path} has no column {column!r}, only {', '.join(table.fieldnames or ()) or 'none'}")
    for row in table:
        for column in columns:
            if row[column] is None:
                raise UsageError(f"{path}, line {table.line_num}: there is no {column!r}")
        yield {column: row[column] for column in table.fieldnames or () if row[column] is not None}


def read_json(path: Path) -> Any:
    """A JSON file.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise UsageError(f"{path} is no JSON: {error}; fetch it again") from error


def read_items(path: Path, keys: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The objects of a JSON list, of which `keys` must be there.

    Raises:
        UsageError: it cannot be read, is no list of objects, or a key is missing.
    """
    items = read_json(path)
    if not isinstance(items, list):
        raise UsageError(f"{path} must be a list of objects, got {type(items).__name__}")
    for number, item in enumerate(items, 1):
        missing = [key for key in keys if not isinstance(item, dict) or key not in item]
        if missing:
            raise UsageError(f"{path}, item {number} has no {missing[0]!r}")
        yield item
