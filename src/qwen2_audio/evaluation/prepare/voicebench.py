"""VoiceBench's parquet files, which hold the recordings too, to rows; the recordings are written beside them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qwen2_audio.errors import UsageError
from qwen2_audio.evaluation.prepare.rows import Absent, Row
from qwen2_audio.evaluation.tasks.voicebench import CHOICES, OPEN, source_of

_PARTS = {"sd-qa": "usa-*.parquet"}
"""Of subsets that ask the same questions in the accents of several regions: the one that the benchmark is reported of."""
_REFERENCES = ("reference", "output")
"""Columns that hold the reference; which of them there is differs by subset."""


def read(folder: Path, absent: Absent) -> Iterator[Row]:
    """Rows of the subsets that are there; names those that are not. What is asked is only spoken: the prompt is empty.

    Raises:
        UsageError: pyarrow is not installed, a file has no recordings or no references, or they cannot be written beside it.
    """
    for subset in (*OPEN, *CHOICES):
        pattern = _PARTS.get(subset, "*.parquet")
        files = sorted((folder / subset).glob(pattern))
        if not files:
            absent(folder / subset / pattern)
        for file in files:
            yield from _rows(file, subset)


def _rows(file: Path, subset: str) -> Iterator[Row]:
    for number, line in enumerate(_read(file)):
        reference = next((line[key] for key in _REFERENCES if line.get(key)), "")
        sound = line.get("audio")
        if not isinstance(sound, dict) or not sound.get("bytes") or not isinstance(line.get("prompt"), str):
            raise UsageError(f"{file}, row {number + 1}: there must be audio.bytes and prompt; fetch it again")
        audio = file.with_suffix("") / f"{number:05}.wav"
        _keep(audio, sound["bytes"])
        yield Row(
            id=f"{subset}-{file.stem}-{number}",
            audio=audio,
            prompt="",
            gt=str(reference),
            source=source_of(subset),
            language="en",
            chat=True,
            more={"question": line["prompt"], "task_name": subset},
        )


def _keep(audio: Path, data: bytes) -> None:
    """Write a recording, unless just this one is there."""
    beside = audio.with_suffix(".part")
    try:
        if audio.is_file() and audio.read_bytes() == data:
            return
        audio.parent.mkdir(exist_ok=True)
        beside.write_bytes(data)
        beside.replace(audio)
    except OSError as error:
        raise UsageError(f"cannot keep {audio}: {error.strerror}; its folder must be one to write into") from error


def _read(file: Path) -> Iterator[dict[str, Any]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UsageError("reading parquet files needs the package pyarrow: pip install pyarrow") from None
    try:
        yield from parquet.read_table(file).to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise UsageError(f"cannot read {file}: {error}; fetch it again") from error
