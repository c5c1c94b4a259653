"""Reading a whole data file as training would, and saying what is in it and what is wrong with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qwen2_audio.config import HOP_LENGTH, SAMPLE_RATE
from qwen2_audio.errors import Qwen2AudioError, UsageError
from qwen2_audio.processing.processor import Processor
from qwen2_audio.training.datasets import Example, build_example, build_pair
from qwen2_audio.training.rows import BareRow, PreferenceRow, parse_row

_AT_ONCE = 256


@dataclass(slots=True)
class DataReport:
    """What `check_data` found.

    Attributes:
        errors: line number (from 1) and what is wrong there.
        kinds: rows of each kind: "chat", "bare", "preference".
        clips, seconds: recordings heard, and how long they are together.
        lengths: tokens of each good row (of a preference: its longer answer).
        targets: tokens that are learnt, in all rows together.
    """

    errors: list[tuple[int, str]] = field(default_factory=list)
    kinds: dict[str, int] = field(default_factory=dict)
    clips: int = 0
    seconds: float = 0.0
    lengths: list[int] = field(default_factory=list)
    targets: int = 0

    def histogram(self) -> dict[str, int]:
        """Rows by number of tokens, in steps that double: {"1 - 64": 3, "65 - 128": 10, ...}."""
        out: dict[str, int] = {}
        low, high = 1, 64
        while self.lengths and low <= max(self.lengths):
            out[f"{low} - {high}"] = sum(low <= length <= high for length in self.lengths)
            low, high = high + 1, high * 2
        return out


def check_data(
    path: Path, processor: Processor, *, workers: int = 2, progress: Callable[[int, int], None] | None = None
) -> DataReport:
    """Build every example of a JSON-lines file, its recordings included.

    Args:
        progress: called with (rows read, rows) now and then.

    Raises:
        UsageError: the file cannot be read. What is wrong inside is in the report.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"cannot read the training data {path}: {getattr(error, 'strerror', None) or error}"
        ) from error
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    report = DataReport()
    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(numbered), _AT_ONCE):
            part = numbered[start : start + _AT_ONCE]
            built = pool.map(lambda item: _build(item[1], path.parent, processor), part)
            for (number, _), result in zip(part, built, strict=True):
                _enter(report, number, result)
            if progress:
                progress(start + len(part), len(numbered))
    return report


def _build(line: str, folder: Path, processor: Processor) -> tuple[str, list[Example]] | str:
    """The kind of a row and its examples, or what is wrong with it."""
    try:
        row: Any = json.loads(line)
        parsed = parse_row(row, folder)
        if isinstance(parsed, PreferenceRow):
            return "preference", list(build_pair(row, folder, processor))
        return "bare" if isinstance(parsed, BareRow) else "chat", [build_example(row, folder, processor)]
    except Qwen2AudioError as error:
        return str(error)
    except ValueError as error:
        return f"not JSON: {error}"


def _enter(report: DataReport, number: int, result: tuple[str, list[Example]] | str) -> None:
    if isinstance(result, str):
        report.errors.append((number, result))
        return
    kind, examples = result
    report.kinds[kind] = report.kinds.get(kind, 0) + 1
    report.clips += len(examples[0].clips)
    report.seconds += sum(clip.frames for clip in examples[0].clips) * HOP_LENGTH / SAMPLE_RATE
    report.lengths.append(max(len(example.ids) for example in examples))
    report.targets += sum(sum(example.learnt) for example in examples)
