"""Speaking into the microphone; needs the optional package sounddevice."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen2_audio.cli.terminal import say
from qwen2_audio.config import SAMPLE_RATE
from qwen2_audio.errors import AudioError, UsageError


def record() -> tuple[NDArray[np.float32], int]:
    """Record until Enter is pressed: float32 [samples] and their rate.

    Raises:
        UsageError: sounddevice is not installed.
        AudioError: there is no microphone, or it gave no sound.
    """
    try:
        sounddevice = import_module("sounddevice")
    except ImportError:
        raise UsageError("/record needs the package sounddevice: pip install sounddevice") from None
    except OSError as error:
        raise AudioError(f"sounddevice cannot start ({error}); install PortAudio (Debian: libportaudio2)") from error
    blocks: list[NDArray[np.float32]] = []

    def keep(block: NDArray[np.float32], _frames: int, _time: Any, _status: Any) -> None:
        blocks.append(block[:, 0].copy())

    try:
        with sounddevice.InputStream(samplerate=SAMPLE_RATE, channels=1, dtype="float32", callback=keep):
            say("recording; press Enter to stop")
            input()
    except sounddevice.PortAudioError as error:
        raise AudioError(f"cannot record: {error}; is a microphone connected?") from error
    if not blocks:
        raise AudioError("the microphone gave no sound; speak a little longer")
    return np.concatenate(blocks), SAMPLE_RATE
