"""MELD's `test_sent_emo.csv` and its clips to rows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from qwen2_audio.evaluation.prepare.rows import Absent, Row, below, read_table
from qwen2_audio.evaluation.task import SER_PROMPT

_COLUMNS = ("Utterance", "Speaker", "Emotion", "Dialogue_ID", "Utterance_ID")
_SUFFIXES = (".wav", ".flac", ".mp4")


def read(folder: Path, absent: Absent) -> Iterator[Row]:
    """Rows of the test set; of a clip, sound that was extracted from it comes before the clip itself."""
    root = below(folder, "MELD.Raw")
    table = root / "test_sent_emo.csv"
    if not table.is_file():
        absent(table)
        return
    clips = below(root, "output_repeated_splits_test")
    for line in read_table(table, _COLUMNS, delimiter=",", quoted=True):
        name = f"dia{line['Dialogue_ID']}_utt{line['Utterance_ID']}"
        candidates = [clips / f"{name}{suffix}" for suffix in _SUFFIXES]
        audio = next((path for path in candidates if path.is_file()), candidates[-1])
        yield Row(
            id=name,
            audio=audio,
            prompt=SER_PROMPT,
            gt=line["Emotion"],
            source="meld_test",
            language="en",
            speaker=line["Speaker"],
            more={"text": line["Utterance"]},
        )
