"""Prompts that somebody else has rendered: their placeholders, when recordings become windows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from qwen2_audio.processing.chat_template import PLACEHOLDER
from qwen2_audio.processing.windows import windows

_NUMBERED = re.compile(rf"Audio \d+: {re.escape(PLACEHOLDER)}\n|{re.escape(PLACEHOLDER)}|<\|AUDIO\|>")


def spread_windows(prompt: str, waves: Sequence[Any], before: int) -> tuple[str, list[Any]]:
    """Give each window of a recording over 30 s its own placeholder; numbered parts are counted anew.

    Args:
        waves: float32 [samples] at 16 kHz, of each recording of the prompt.
        before: recordings of other prompts, for the warning's count.

    Returns:
        The prompt, and all windows.
    """
    parts = [windows(wave, f"recording {number}") for number, wave in enumerate(waves, before + 1)]
    if all(len(part) == 1 for part in parts):
        return prompt, [part[0] for part in parts]
    waiting, number = iter(parts), 0

    def spread(match: re.Match[str]) -> str:
        nonlocal number
        count = len(next(waiting, [None]))
        if not match[0].startswith("Audio "):
            return match[0] * count
        lines = [f"Audio {number + i + 1}: {PLACEHOLDER}\n" for i in range(count)]
        number += count
        return "".join(lines)

    return _NUMBERED.sub(spread, prompt), [window for part in parts for window in part]
