"""LibriSpeech's folders of chapters, each with a `.trans.txt`, to rows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from qwen2_audio.errors import UsageError
from qwen2_audio.evaluation.prepare.rows import Absent, Row, below, read_text
from qwen2_audio.evaluation.tasks.librispeech import PROMPT, SPLITS, source_of

_ROWS = {"dev-clean": 2703, "dev-other": 2864, "test-clean": 2620, "test-other": 2939}


def read(folder: Path, absent: Absent) -> Iterator[Row]:
    """Rows of the splits that are there; names those that are not."""
    root = below(folder, "LibriSpeech")
    for split in SPLITS:
        if not (root / split).is_dir():
            absent(root / split)
            continue
        rows = [
            row
            for transcript in sorted((root / split).glob("*/*/*.trans.txt"))
            for row in _chapter(transcript, source_of(split))
        ]
        if len(rows) != _ROWS[split]:
            raise UsageError(
                f"{root / split} holds {len(rows)} utterances of {_ROWS[split]}; unpack {split}.tar.gz again, or move it away"
            )
        yield from rows


def _chapter(transcript: Path, source: str) -> Iterator[Row]:
    for number, line in enumerate(read_text(transcript).splitlines(), 1):
        name, _, text = line.partition(" ")
        if not text.strip():
            raise UsageError(f"{transcript}, line {number}: a name and a text must stand there, got {line!r:.80}")
        speaker = name.partition("-")[0]
        yield Row(name, transcript.parent / f"{name}.flac", PROMPT, text.strip(), source, "en", speaker)
