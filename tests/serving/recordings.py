"""Recordings of speech as files in memory."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import soundfile

from qwen2_audio.config import SAMPLE_RATE
from qwen2_audio.processing.audio import load_audio

EXAMPLES = Path(__file__).parents[2] / "examples"
PAUSE = 2.0


def flac(wave: np.ndarray) -> bytes:
    """A file of samples at 16 kHz."""
    file = io.BytesIO()
    soundfile.write(file, wave, SAMPLE_RATE, format="FLAC")
    return file.getvalue()


def talk(sentences: int) -> bytes:
    """A sentence of about 4 s several times, 2 s of silence before, between and behind: one window each."""
    silence = np.zeros(int(PAUSE * SAMPLE_RATE), np.float32)
    return flac(np.concatenate([silence, *[load_audio(EXAMPLES / "sentence.flac"), silence] * sentences]))


def sentence_seconds() -> float:
    """Length of that sentence."""
    return len(load_audio(EXAMPLES / "sentence.flac")) / SAMPLE_RATE
