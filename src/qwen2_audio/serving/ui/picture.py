"""What the model hears as a picture: the waveform above its spectrogram, with the cuts between windows."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray

from qwen2_audio.config import SAMPLE_RATE

COLUMNS, WAVE_ROWS, TONE_ROWS = 640, 44, 84
_FFT = 1024
_LOWEST_HZ = 60.0
_RANGE = 7.0
"""Powers of ten between the loudest and what is drawn as silence."""
_INK = (99, 91, 255)


def picture(samples: NDArray[np.float32], cuts: tuple[float, ...]) -> bytes:
    """A PNG of `COLUMNS` pixels' width whose opacity is loudness, so that it looks right on light and dark pages.

    Args:
        samples: float32 [samples] at 16 kHz.
        cuts: where windows after the first begin, as shares (0 to 1) of the length.
    """
    from PIL import Image

    opacity = np.concatenate([_wave(samples), _tones(samples)])
    for cut in cuts:
        column = min(int(cut * COLUMNS), COLUMNS - 1)
        opacity[::6, column] = opacity[1::6, column] = opacity[2::6, column] = 1.0
    image = np.empty((*opacity.shape, 4), dtype=np.uint8)
    image[..., :3] = _INK
    image[..., 3] = np.round(255 * opacity.clip(0, 1))
    file = io.BytesIO()
    Image.fromarray(image).quantize(64).save(file, "PNG", optimize=True)
    return file.getvalue()


def _wave(samples: NDArray[np.float32]) -> NDArray[np.float64]:
    """[WAVE_ROWS, COLUMNS]: a bar from the middle, as high as the loudest sample of its column."""
    edges = np.linspace(0, samples.shape[0], COLUMNS + 1).astype(int)[:-1]
    peaks = np.maximum.reduceat(np.abs(samples), edges).astype(np.float64)
    heights = peaks / max(float(peaks.max()), 1e-4)
    rows = np.abs(np.linspace(-1, 1, WAVE_ROWS))[:, None]
    return np.where(rows <= np.maximum(heights, 0.03), 0.85, 0.0)


def _tones(samples: NDArray[np.float32]) -> NDArray[np.float64]:
    """[TONE_ROWS, COLUMNS]: loudness of frequencies from 60 Hz (bottom) to 8 kHz, each step up the same ratio."""
    padded = np.pad(samples, _FFT // 2)
    starts = np.linspace(0, max(padded.shape[0] - _FFT, 0), COLUMNS).astype(int)
    frames = np.stack([padded[start : start + _FFT] for start in starts]) * np.hanning(_FFT)
    power = np.abs(np.fft.rfft(frames, axis=1)) ** 2
    edges = np.geomspace(_LOWEST_HZ, SAMPLE_RATE / 2, TONE_ROWS + 1) * _FFT / SAMPLE_RATE
    lows = edges[:-1].astype(int)
    highs = np.maximum(np.ceil(edges[1:]).astype(int), lows + 1)
    bands = np.stack([power[:, low:high].mean(axis=1) for low, high in zip(lows, highs, strict=True)])
    loudness = np.log10(np.maximum(bands, 1e-10))
    share = (loudness - max(float(loudness.max()), -3.0) + _RANGE) / _RANGE
    return np.asarray(share.clip(0, 1)[::-1] ** 1.8)
