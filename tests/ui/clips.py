"""Recordings as the page holds them, and what decodes them, without processes of its own."""

from __future__ import annotations

import io
from typing import Any

import soundfile

from qwen2_audio.config import SAMPLE_RATE
from qwen2_audio.processing.conversation import AudioPart
from qwen2_audio.serving.settings import Settings
from qwen2_audio.serving.ui.clips import Clips, new_clip
from qwen2_audio.serving.ui.hearing import Hearing
from tests.tiny import sound


def clip(seconds: float = 1.0, name: str = "a.wav") -> Any:
    """Noise."""
    return new_clip(AudioPart((sound(seconds), SAMPLE_RATE)), name)


class PlainMedia:
    """Decodes in this process."""

    async def from_base64(self, data: str, format: str = "") -> AudioPart:
        import base64

        samples, rate = soundfile.read(io.BytesIO(base64.b64decode(data)), dtype="float32")
        return AudioPart((samples, rate))

    async def from_url(self, url: str, told: list[str] | None = None) -> AudioPart:
        return AudioPart((sound(0.5), SAMPLE_RATE))


def hearing_of(**limits: Any) -> Hearing:
    """With settings that are told."""
    return Hearing(PlainMedia(), Clips(), Settings(**limits))  # type: ignore[arg-type]
