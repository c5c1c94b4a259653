"""Cutting long recordings: the encoder has positions for 30 s and no more."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray

from qwen2_audio.config import MAX_CLIP_SECONDS, MAX_SAMPLES, MIN_SAMPLES, SAMPLE_RATE
from qwen2_audio.errors import AudioError, AudioWarning

_HOP = SAMPLE_RATE // 100
_PAUSE_HOPS = 20


def windows(samples: NDArray[np.float32], name: str) -> list[NDArray[np.float32]]:
    """Cut a recording into consecutive windows of at most 30 s, at pauses; warns when there is more than one."""
    pieces = cut_windows(samples)
    if len(pieces) > 1:
        warnings.warn(
            f"{name} is {samples.shape[0] / SAMPLE_RATE:.1f} s long; it is heard as {len(pieces)} consecutive parts "
            f"of at most {MAX_CLIP_SECONDS} s",
            AudioWarning,
            stacklevel=4,
        )
    return pieces


def cut_windows(samples: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """`windows`, without a warning: for callers whose users were told."""
    return split_at_pauses(samples, MAX_CLIP_SECONDS, shortest=2 / 3)


def split_at_pauses(
    samples: NDArray[np.float32], longest: float, *, shortest: float = 0.5
) -> list[NDArray[np.float32]]:
    """Cut a recording into consecutive pieces of at most `longest` seconds, each at the quietest place behind its first
    half (or another share of `longest`), the last of several.

    Nothing is lost: the pieces laid end to end are the recording.
    """
    count, limit = samples.shape[0], int(longest * SAMPLE_RATE)
    if count <= limit:
        return [samples]
    energy = np.add.reduceat(samples.astype(np.float64) ** 2, np.arange(0, count, _HOP))
    energy = np.convolve(energy, np.ones(_PAUSE_HOPS), "same")  # a pause is 0.2 s of little
    cuts = [0]
    while count - cuts[-1] > limit:
        first, last = cuts[-1] + int(shortest * limit), min(cuts[-1] + limit, count - MIN_SAMPLES)
        places = energy[first // _HOP : last // _HOP + 1]
        cuts.append((last // _HOP - int(places[::-1].argmin())) * _HOP)
    ends = [*cuts[1:], count]
    return [samples[start:end] for start, end in zip(cuts, ends, strict=True)]


def check_length(samples: int) -> None:
    """Raise `AudioError` unless a clip of so many samples at 16 kHz can be encoded in one piece."""
    if samples == 0:
        raise AudioError("the recording is empty (0 samples); give one with sound in it")
    if samples < MIN_SAMPLES:
        raise AudioError(
            f"the recording is too short: {samples / SAMPLE_RATE * 1000:.1f} ms, "
            f"at least {MIN_SAMPLES / SAMPLE_RATE * 1000:.0f} ms are needed"
        )
    if samples > MAX_SAMPLES:
        raise AudioError(
            f"the clip is too long: {samples / SAMPLE_RATE:.1f} s, at most {MAX_CLIP_SECONDS} s fit into one part; "
            "split it (Conversation does so by itself)"
        )
