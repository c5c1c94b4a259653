"""The loss that ties audio embeddings to the tokens being spoken: right where it matters, silent where nothing is known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from qwen2_audio.processing.mel import Clip
from qwen2_audio.training.collate import Pack
from qwen2_audio.training.losses import SpokenTokenLoss

EMBEDDINGS = torch.randn(40, 16, generator=torch.Generator().manual_seed(0))
LOSS = SpokenTokenLoss(EMBEDDINGS, vocabulary=list(range(20)))
EMPTY = torch.zeros(0, dtype=torch.int64)


def batch(*spoken: list[int], tokens: int = 6) -> Pack:
    """Clips of `tokens` audio tokens each, in which these tokens are said."""
    clip = Clip(torch.zeros(80, 4 * tokens), 4 * tokens)
    clips = [clip] * len(spoken)
    return Pack(EMPTY, [], clips, list(range(len(clips))), list(spoken), EMPTY, EMPTY, torch.zeros(0))


def said(tokens: list[int]) -> Tensor:
    """The audio embeddings of someone who speaks so clearly that they are those of the tokens."""
    return EMBEDDINGS[tokens].clone()


def test_clear_speech_costs_little_and_other_words_much() -> None:
    audio = said([3, 3, 7, 7, 25, 25])
    right = float(LOSS(audio, batch([3, 7, 25])))
    assert 0 <= right < 0.1  # 25 is not in the common vocabulary: what is said competes all the same
    assert float(LOSS(audio, batch([3, 25, 7]))) > right + 10


def test_sum_over_clips_whose_words_are_known() -> None:
    torch.manual_seed(1)
    audio = torch.randn(18, 16)
    alone = [float(LOSS(audio[start : start + 6], batch(ids))) for start, ids in ((0, [1, 2]), (12, [3]))]
    assert float(LOSS(audio, batch([1, 2], [], [3]))) == pytest.approx(sum(alone), rel=1e-5)
    assert float(LOSS(audio, batch([], [], []))) == 0


def test_too_many_words_for_the_clip_count_nothing() -> None:
    assert float(LOSS(torch.randn(6, 16), batch([1, 2, 3, 4, 5, 6, 7]))) == 0


def test_descent_makes_the_speech_clear() -> None:
    torch.manual_seed(2)
    audio = torch.randn(6, 16, requires_grad=True)
    optimizer = torch.optim.Adam([audio], lr=0.1)
    losses = []
    for _ in range(100):
        optimizer.zero_grad()
        loss = LOSS(audio, batch([5, 9]))
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    assert losses[-1] < 0.1 * losses[0]
