"""Log-mel features, equal to Whisper's extractor.

n_fft 400, hop 160, periodic Hann window, centred with reflect padding, last frame dropped, power spectrum, Slaney mel
scale with Slaney norm, log10 with floor 1e-10, clamped to 8 below the maximum, then (x + 4) / 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qwen2_audio.config import (
    HOP_LENGTH,
    MAX_SAMPLES,
    SAMPLE_RATE,
    audio_tokens,
    mel_frames,
)
from qwen2_audio.errors import AudioError
from qwen2_audio.processing.windows import check_length

N_FFT = 400
TAIL_FRAMES = 2
"""Mel frames past the last valid one that the encoder's convolutions reach."""


@dataclass(frozen=True, slots=True)
class Clip:
    """One recording as the encoder wants it.

    Attributes:
        mel: float32 [mel_bins, frames + tail], tail at most 2.
        frames: number of valid mel frames.
    """

    mel: Tensor
    frames: int

    @property
    def tokens(self) -> int:
        """Number of audio tokens that this clip becomes."""
        return audio_tokens(self.frames)

    @property
    def seconds(self) -> float:
        """Duration, to the nearest mel frame."""
        return self.frames * HOP_LENGTH / SAMPLE_RATE


def hz_to_mel(hz: NDArray[np.float64]) -> NDArray[np.float64]:
    """Slaney's scale: linear below 1 kHz, logarithmic above."""
    linear = 3.0 * hz / 200.0
    return np.where(hz < 1000.0, linear, 15.0 + np.log(np.maximum(hz, 1.0) / 1000.0) * (27.0 / np.log(6.4)))


def mel_to_hz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    """The inverse of `hz_to_mel`."""
    return np.where(mel < 15.0, 200.0 * mel / 3.0, 1000.0 * np.exp(np.log(6.4) / 27.0 * (mel - 15.0)))


@lru_cache(maxsize=4)
def mel_filters(bins: int) -> Tensor:
    """The Slaney mel filter bank, float32 [bins, n_fft / 2 + 1], 0 to 8 kHz."""
    top = hz_to_mel(np.array([SAMPLE_RATE / 2.0]))[0]
    edges = mel_to_hz(np.linspace(0.0, top, bins + 2))
    bin_hz = np.linspace(0.0, SAMPLE_RATE / 2.0, N_FFT // 2 + 1)
    slopes = edges[:, None] - bin_hz[None]
    widths = np.diff(edges)
    rising, falling = -slopes[:-2] / widths[:-1, None], slopes[2:] / widths[1:, None]
    filters = np.maximum(0.0, np.minimum(rising, falling))
    filters *= (2.0 / (edges[2:] - edges[:-2]))[:, None]
    return torch.from_numpy(filters.astype(np.float32))


def log_mel(samples: NDArray[np.float32], bins: int) -> Clip:
    """Features of one clip.

    Args:
        samples: float32 [samples] at 16 kHz, one channel, 20 ms to 30 s.
        bins: number of mel bins, 80 or 128.

    Raises:
        AudioError: the clip is too short, too long or holds NaN or infinity.
    """
    count = samples.shape[0]
    check_length(count)
    if not np.isfinite(samples).all():
        raise AudioError("the recording holds samples that are not numbers (NaN or infinity); repair or re-export it")
    frames = mel_frames(count)
    padded = min((frames + TAIL_FRAMES) * HOP_LENGTH + N_FFT, MAX_SAMPLES)
    wave = torch.zeros(padded)
    wave[:count] = torch.from_numpy(np.ascontiguousarray(samples, dtype=np.float32))
    spectrum = torch.stft(wave, N_FFT, HOP_LENGTH, window=torch.hann_window(N_FFT), return_complex=True)
    power = spectrum[:, :-1].abs() ** 2
    with torch.autocast("cpu", enabled=False):  # whoever asks may be training in bfloat16
        loudness = (mel_filters(bins) @ power).clamp(min=1e-10).log10()
    if not bool(loudness.isfinite().all()):
        raise AudioError("the recording holds samples of absurd size; scale it to the range -1 to 1")
    loudness = torch.maximum(loudness, loudness.max() - 8.0)
    return Clip(((loudness + 4.0) / 4.0)[:, : frames + TAIL_FRAMES].contiguous(), frames)
