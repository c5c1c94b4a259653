"""Augmentation: another vocal tract, room, microphone, noise and level, so that clean speech sounds like recordings."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import soxr
import torch
from numpy.typing import NDArray

from qwen2_audio.processing.mel import Clip, hz_to_mel, mel_to_hz

RATE = 16_000
LONGEST = 28.0  # seconds, for a voice made slower: with the padding it must stay below 30
Wave = NDArray[np.float32]


def augment(wave: Wave, rng: np.random.Generator) -> Wave:
    """A randomly changed copy of `wave`, float32 [samples] at 16 kHz."""
    if rng.random() < 0.7:
        wave = shift_voice(wave, max(float(rng.uniform(0.84, 1.2)), len(wave) / (LONGEST * RATE)))
    if rng.random() < 0.4:
        wave = room(wave, rng)
    if rng.random() < 0.5:
        wave = tilt(wave, rng)
    if rng.random() < 0.2:
        wave = band_limit(wave, float(rng.uniform(3200, 7000)))
    if rng.random() < 0.6:
        wave = noise(wave, float(rng.uniform(5, 35)), rng)
    room_left = max(30 * RATE - len(wave), 0)
    before, after = int(rng.uniform(0, 0.5) * RATE), int(rng.uniform(0, 0.6) * RATE)
    wave = np.pad(wave, (min(before, room_left // 2), min(after, room_left // 2)))
    if rng.random() < 0.8:  # no digital silence around the speech
        wave = wave + rng.normal(0, 10 ** rng.uniform(-4.5, -2.8), wave.shape).astype(np.float32)
    level = 10 ** rng.uniform(-1.4, -0.05)
    return (wave * (level / max(float(np.abs(wave).max()), 1e-6))).astype(np.float32)


def shift_voice(wave: Wave, factor: float) -> Wave:
    """Play faster (factor above 1: higher, quicker, smaller vocal tract) or slower."""
    return np.asarray(soxr.resample(wave, RATE * factor, RATE), dtype=np.float32)


def room(wave: Wave, rng: np.random.Generator) -> Wave:
    """A small room: exponentially decaying noise as impulse response."""
    seconds = rng.uniform(0.05, 0.5)
    t = np.arange(int(seconds * RATE)) / RATE
    response = rng.normal(0, 1, t.shape) * np.exp(-t * 6.9 / seconds)
    response *= 10 ** rng.uniform(-1.6, -0.5) / np.sqrt((response**2).sum())
    response[0] = 1.0
    return _convolve(wave, response)


def tilt(wave: Wave, rng: np.random.Generator) -> Wave:
    """A gentle random equaliser of four bands."""
    gains = rng.uniform(-6, 6, 5)
    return _equalise(wave, np.array([0, 500, 1500, 4000, 8000]), gains)


def band_limit(wave: Wave, cut: float) -> Wave:
    """A telephone or a poor codec: nothing above `cut` Hz."""
    return _equalise(wave, np.array([0, cut, cut * 1.1, 8000]), np.array([0.0, 0.0, -60.0, -60.0]))


def noise(wave: Wave, snr: float, rng: np.random.Generator) -> Wave:
    """Steady noise of a random colour, `snr` dB below the speech."""
    white = rng.standard_normal(wave.shape, dtype=np.float32)
    coloured = _equalise(white, np.array([0, 300, 2000, 8000]), rng.uniform(-25, 0, 4))
    ratio = np.sqrt(np.mean(wave**2) / max(float(np.mean(coloured**2)), 1e-12)) * 10 ** (-snr / 20)
    return (wave + coloured * ratio).astype(np.float32)


def _equalise(wave: Wave, at: NDArray[np.floating], gains_db: NDArray[np.floating]) -> Wave:
    spectrum = np.fft.rfft(wave)
    hz = np.linspace(0, RATE / 2, spectrum.shape[0])
    return np.fft.irfft(spectrum * 10 ** (np.interp(hz, at, gains_db) / 20), wave.shape[0]).astype(np.float32)


def _convolve(wave: Wave, response: NDArray[np.floating]) -> Wave:
    size = wave.shape[0] + response.shape[0] - 1
    out = np.fft.irfft(np.fft.rfft(wave, size) * np.fft.rfft(response, size), size)
    return out[: wave.shape[0]].astype(np.float32)


def augment_mel(clip: Clip, rng: np.random.Generator) -> Clip:
    """A randomly changed copy of a clip's features: another vocal tract, and bands and moments that cannot be heard
    (SpecAugment, Park et al. 2019)."""
    mel = clip.mel
    if rng.random() < 0.6:
        mel = warp(mel, float(rng.uniform(0.87, 1.15)))
    if rng.random() < 0.6:
        mel = mel.clone()
        bins, frames = mel.shape
        quiet = float(mel.mean())
        for _ in range(int(rng.integers(0, 3))):
            width = int(rng.integers(1, 11))
            at = int(rng.integers(0, bins - width))
            mel[at : at + width] = quiet
        for _ in range(int(rng.integers(0, 1 + frames // 150))):
            width = int(rng.integers(1, 25))
            at = int(rng.integers(0, max(frames - width, 1)))
            mel[:, at : at + width] = quiet
    return replace(clip, mel=mel)


def warp(mel: torch.Tensor, factor: float) -> torch.Tensor:
    """Features [mel_bins, frames] in which each frequency holds what stood at `factor` times it: above 1 a longer vocal
    tract, below 1 a shorter one."""
    bins = mel.shape[0]
    top = hz_to_mel(np.array([RATE / 2.0]))[0]
    hz = mel_to_hz(np.linspace(0.0, top, bins + 2)[1:-1])
    at = np.clip(hz_to_mel(hz * factor) / top * (bins + 1) - 1, 0, bins - 1)
    low = np.minimum(at.astype(int), bins - 2)
    share = torch.from_numpy((at - low).astype(np.float32))[:, None]
    return mel[low] * (1 - share) + mel[low + 1] * share
