"""Rows for a run to ask, and what a test keeps of its report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qwen2_audio.evaluation.samples import Answer
from qwen2_audio.evaluation.scores import Score

WORDS = "one two three four five six seven eight nine ten eleven".split()


def rows_in(folder: Path, count: int = 11, *, unreadable: Sequence[int] = ()) -> Path:
    """Three words each, of different lengths in seconds."""
    rows = [
        {
            "id": f"r{n}",
            "audio": f"{n}.wav",
            "prompt": "Say it",
            "gt": f"say {WORDS[n]} {'unreadable' if n in unreadable else 'again'}",
            "duration": (n * 7) % 11 + 1,
        }
        for n in range(count)
    ]
    file = folder / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


Written = list[tuple[list[Score], dict[str, Any], list[Answer]]]
