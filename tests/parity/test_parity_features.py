"""Mel features and length arithmetic equal those of `transformers`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import WhisperFeatureExtractor

from qwen2_audio.config import MAX_MEL_FRAMES, audio_tokens, encoder_frames, mel_frames
from qwen2_audio.processing.mel import TAIL_FRAMES, log_mel, mel_filters
from tests.tiny import sound_of

LENGTHS = [321, 400, 799, 1601, 16000, 16159, 79_999, 123_457, 478_999, 479_521, 479_680, 479_681, 479_999, 480_000]


def extract(samples: np.ndarray, bins: int) -> tuple[torch.Tensor, int]:
    extractor = WhisperFeatureExtractor(feature_size=bins)
    out = extractor(samples, sampling_rate=16000, return_attention_mask=True, return_tensors="pt", padding="max_length")
    return out["input_features"][0], int(out["attention_mask"].sum())


@pytest.mark.parametrize("bins", [80, 128])
@pytest.mark.parametrize("samples", LENGTHS)
def test_log_mel(samples: int, bins: int) -> None:
    """Valid frames and the two behind them, that the convolutions reach."""
    wave = sound_of(samples, seed=samples)
    theirs, frames = extract(wave, bins)
    clip = log_mel(wave, bins)
    assert clip.frames == frames == mel_frames(samples)
    assert clip.mel.shape == (bins, min(frames + TAIL_FRAMES, MAX_MEL_FRAMES))
    torch.testing.assert_close(clip.mel, theirs[:, : clip.mel.shape[1]], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["silence", "click at the end", "loud", "constant"])
def test_log_mel_of_extremes(kind: str) -> None:
    wave = np.zeros(12_345, np.float32)
    if kind == "click at the end":
        wave[-1] = 1.0
    elif kind == "loud":
        wave = np.clip(20 * sound_of(12_345), -1, 1)
    elif kind == "constant":
        wave += 0.5
    theirs, _ = extract(wave, 128)
    mel = log_mel(wave, 128).mel
    torch.testing.assert_close(mel, theirs[:, : mel.shape[1]], atol=1e-4 if kind == "constant" else 1e-5, rtol=0)


@pytest.mark.parametrize("bins", [80, 128])
def test_filter_bank(bins: int) -> None:
    theirs = torch.from_numpy(WhisperFeatureExtractor(feature_size=bins).mel_filters.T).float()
    torch.testing.assert_close(mel_filters(bins), theirs, atol=1e-8, rtol=0)


def test_token_arithmetic(pair: Any) -> None:
    frames = torch.arange(3, MAX_MEL_FRAMES + 1)
    theirs_frames, theirs_tokens = pair.their_model.model.audio_tower._get_feat_extract_output_lengths(frames)
    assert [encoder_frames(m) for m in frames.tolist()] == theirs_frames.tolist()
    assert [audio_tokens(m) for m in frames.tolist()] == theirs_tokens.tolist()
