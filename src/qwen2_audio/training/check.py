"""Reading a whole data file as training would, and saying what is in it and what is wrong with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from qwen2_audio.config import HOP_LENGTH, SAMPLE_RATE
from qwen2_audio.errors import Qwen2AudioError
from qwen2_audio.processing.processor import Processor
from qwen2_audio.training.datasets import Example, build_example, build_pair
from qwen2_audio.training.rows import BareRow, PreferenceRow, parse_row
from qwen2_audio.training.sources import Source, open_source

_AT_ONCE = 256


@dataclass(slots=True)
class DataReport:
    """What `check_data` found.

    Attributes:
        errors: line or row number (from 1) and what is wrong there.
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
    data: str, processor: Processor, *, workers: int = 2, progress: Callable[[int, int], None] | None = None
) -> DataReport:
    """Build every example of a source of rows, its recordings included.

    Args:
        data: see `qwen2_audio.training.sources`.
        progress: called with (rows read, rows) now and then.

    Raises:
        UsageError: the file cannot be read. What is wrong inside is in the report.
    """
    source = open_source(data)
    report = DataReport()
    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(source), _AT_ONCE):
            part = range(start, min(start + _AT_ONCE, len(source)))
            built = pool.map(lambda index: _build(source, index, processor), part)
            for index, result in zip(part, built, strict=True):
                _enter(report, source.line(index), result)
            if progress:
                progress(part.stop, len(source))
    return report


def _build(source: Source, index: int, processor: Processor) -> tuple[str, list[Example]] | str:
    """The kind of a row and its examples, or what is wrong with it."""
    try:
        row, folder = source.row(index), source.folder
        parsed = parse_row(row, folder)
        if isinstance(parsed, PreferenceRow):
            return "preference", list(build_pair(row, folder, processor))
        return "bare" if isinstance(parsed, BareRow) else "chat", [build_example(row, folder, processor)]
    except Qwen2AudioError as error:
        return str(error)
    except json.JSONDecodeError as error:
        return f"not JSON: {error}"
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        return f"cannot be read as a row: {error}"


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
