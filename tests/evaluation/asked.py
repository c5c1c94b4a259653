"""Answers made from pairs of reference and response, and the one score among scores."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from qwen2_audio.evaluation.samples import Answer, Sample
from qwen2_audio.evaluation.scores import Score

DATA = Path(os.environ.get("QWEN2_AUDIO_DATA", "no data"))
"""A folder of recordings and anchors, where there is one."""


def answers(*pairs: tuple[str, str], language: str = "", source: str = "here", more: Any = None) -> list[Answer]:
    return [
        Answer(Sample(str(number), (), "", gt, source, language=language, more=more or {}), response)
        for number, (gt, response) in enumerate(pairs, 1)
    ]


def one(found: list[Score]) -> Score:
    (result,) = found
    return result
