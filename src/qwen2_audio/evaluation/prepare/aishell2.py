"""AISHELL-2's `wav.scp` and `trans.txt` of each device to rows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from qwen2_audio.errors import UsageError
from qwen2_audio.evaluation.prepare.rows import Absent, Row, below, read_text
from qwen2_audio.evaluation.task import ASR_PROMPT
from qwen2_audio.evaluation.tasks.aishell2 import DEVICES, source_of


def read(folder: Path, absent: Absent) -> Iterator[Row]:
    """Rows of the devices that are there; names those that are not."""
    root = below(folder, "AISHELL-DEV-TEST-SET")
    prompt = ASR_PROMPT.format(language="zh")
    for device in DEVICES:
        place = root / device / "test"
        if not place.is_dir():
            absent(place)
            continue
        recordings = _table(place / "wav.scp")
        texts = _table(place / "trans.txt")
        if recordings.keys() != texts.keys():
            odd = sorted(recordings.keys() ^ texts.keys())[0]
            raise UsageError(f"{place}: {odd!r} stands in only one of wav.scp and trans.txt; unpack the set again")
        for name, text in texts.items():
            audio = place / recordings[name]
            yield Row(f"{device}-{name}", audio, prompt, text, source_of(device), "zh", audio.parent.name)


def _table(path: Path) -> dict[str, str]:
    """Lines of a name, white space and a value."""
    table: dict[str, str] = {}
    for number, line in enumerate(read_text(path).splitlines(), 1):
        parts = line.split(maxsplit=1)
        if len(parts) < 2:
            raise UsageError(f"{path}, line {number}: a name and a value must stand there, got {line!r:.80}")
        table[parts[0]] = parts[1].strip()
    return table
