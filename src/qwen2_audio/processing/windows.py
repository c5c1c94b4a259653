"""Cutting long recordings: the encoder has positions for 30 s and no more."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray

from qwen2_audio.config import MAX_CLIP_SECONDS, MAX_SAMPLES, MIN_SAMPLES, SAMPLE_RATE
from qwen2_audio.errors import AudioWarning

_HOP = SAMPLE_RATE // 100
_PAUSE_HOPS = 20


def windows(samples: NDArray[np.float32], name: str) -> list[NDArray[np.float32]]:
    """Cut a recording into consecutive windows of at most 30 s; warns when there is more than one."""
    count = samples.shape[0]
    if count <= MAX_SAMPLES:
        return [samples]
    cuts = list(range(0, count, MAX_SAMPLES))
    if count - cuts[-1] < MIN_SAMPLES:  # too short a rest to stand alone: share it with the window before
        cuts[-1] -= SAMPLE_RATE
    warnings.warn(
        f"{name} is {count / SAMPLE_RATE:.1f} s long; it is heard as {len(cuts)} consecutive parts "
        f"of at most {MAX_CLIP_SECONDS} s",
        AudioWarning,
        stacklevel=4,
    )
    return _between(samples, cuts)


def split_at_pauses(samples: NDArray[np.float32], longest: float) -> list[NDArray[np.float32]]:
    """Cut speech into consecutive pieces of at most `longest` seconds, each at the quietest place of its second half.

    Nothing is lost: the pieces laid end to end are the recording.
    """
    count, limit = samples.shape[0], int(longest * SAMPLE_RATE)
    cuts = [0]
    if count > limit:
        energy = np.add.reduceat(samples.astype(np.float64) ** 2, np.arange(0, count, _HOP))
        energy = np.convolve(energy, np.ones(_PAUSE_HOPS), "same")  # a pause is 0.2 s of little
        while count - cuts[-1] > limit:
            first, last = (cuts[-1] + limit // 2) // _HOP, min(cuts[-1] + limit, count - MIN_SAMPLES) // _HOP
            cuts.append((first + int(energy[first:last].argmin())) * _HOP)
    return _between(samples, cuts)


def _between(samples: NDArray[np.float32], cuts: list[int]) -> list[NDArray[np.float32]]:
    ends = [*cuts[1:], samples.shape[0]]
    return [samples[start:end] for start, end in zip(cuts, ends, strict=True)]
