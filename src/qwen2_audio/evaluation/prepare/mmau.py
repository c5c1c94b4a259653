"""The lists of MMAU and of MMAR, which has its form, and their recordings to rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from qwen2_audio.evaluation.prepare.rows import Absent, Row, read_items

_MMAU_KEYS = ("task", "difficulty", "category", "sub-category")
_MMAR_KEYS = ("modality", "category", "sub-category", "language")


def read_mmau(folder: Path, absent: Absent) -> Iterator[Row]:
    """Rows of test-mini, the part whose answers are public."""
    return _read(folder / "mmau-test-mini.json", "audio_id", "mmau_test_mini", _MMAU_KEYS, absent)


def read_mmar(folder: Path, absent: Absent) -> Iterator[Row]:
    """Rows of MMAR."""
    return _read(folder / "MMAR-meta.json", "audio_path", "mmar", _MMAR_KEYS, absent)


def question_with_choices(question: str, choices: Sequence[str]) -> str:
    """The prompt; the wording is ours, neither benchmark prescribes one."""
    return "\n".join([question, "Choose the answer from these options:", *choices])


def _read(meta: Path, audio_key: str, source: str, kept: Sequence[str], absent: Absent) -> Iterator[Row]:
    if not meta.is_file():
        absent(meta)
        return
    for item in read_items(meta, ("id", audio_key, "question", "choices", "answer")):
        choices = [str(choice) for choice in item["choices"]]
        yield Row(
            id=str(item["id"]),
            audio=meta.parent / item[audio_key],
            prompt=question_with_choices(item["question"], choices),
            gt=str(item["answer"]),
            source=source,
            chat=True,
            more={"choices": choices} | {key: item[key] for key in kept if key in item},
        )
