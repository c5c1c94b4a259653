"""The alignment is monotonic and best; the projector's start finds a planted map."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qwen2_audio.training.alignment import BLANK_COSINE, best_path, fit_projector, heard_at


def paths(frames: int, tokens: int) -> list[list[int]]:
    """All monotonic alignments: choose the frames at which the next token starts."""
    return [
        [sum(start <= t for start in starts) for t in range(frames)]
        for starts in combinations(range(1, frames), tokens - 1)
    ]


@given(st.integers(1, 8), st.integers(0, 4), st.integers(0, 10**6))
def test_best_path(tokens: int, extra: int, seed: int) -> None:
    scores = torch.randn(tokens + extra, tokens, generator=torch.Generator().manual_seed(seed))
    path = best_path(scores)
    steps = path.diff()
    assert (path[0], path[-1]) == (0, tokens - 1)
    assert ((steps == 0) | (steps == 1)).all()
    best = max(sum(float(scores[t, i]) for t, i in enumerate(p)) for p in paths(tokens + extra, tokens))
    assert float(scores[torch.arange(len(path)), path].sum()) == pytest.approx(best, abs=1e-4)


def test_best_path_follows_a_clear_diagonal() -> None:
    wanted = torch.tensor([0, 0, 1, 2, 2, 2, 3])
    assert torch.equal(best_path(torch.nn.functional.one_hot(wanted, 4).float()), wanted)


@given(st.integers(1, 5), st.integers(0, 6), st.integers(0, 10**6))
def test_tokens_are_heard_where_that_is_likeliest_of_all(tokens: int, extra: int, seed: int) -> None:
    """Of all ways to hear the tokens in order, apart from one another; every embedding between counts as no token."""
    generator = torch.Generator().manual_seed(seed)
    audio, names = (
        torch.randn(2 * tokens + 1 + extra, 3, generator=generator),
        torch.randn(tokens, 3, generator=generator),
    )
    like = torch.nn.functional.cosine_similarity(audio[:, None], names[None], dim=-1)
    found = heard_at(audio, names)
    assert (found.diff() > 1).all()
    assert len(found) == tokens

    def total(path: list[int]) -> float:
        return sum(float(like[t, i // 2]) if i % 2 else BLANK_COSINE for t, i in enumerate(path))

    best = max(paths(len(audio), 2 * tokens + 1), key=total)
    spans = [[t for t, i in enumerate(best) if i == 2 * token + 1] for token in range(tokens)]
    assert found.tolist() == [max(span, key=lambda t: like[t, token]) for token, span in enumerate(spans)]


def test_tokens_for_which_there_is_no_room_are_not_heard() -> None:
    assert len(heard_at(torch.randn(4, 3), torch.randn(2, 3))) == 0


def test_fit_projector_finds_a_planted_map() -> None:
    """Features are a linear image of the token spoken, for a random while each; quiet frames lie in between."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    embeddings = normal(40, 24)
    to_features = normal(24, 32) / 24**0.5
    features, loudness, tokens, spoken = [], [], [], []
    for _ in range(150):
        ids = torch.randint(0, 40, (int(torch.randint(3, 9, (1,), generator=generator)),), generator=generator)
        times = torch.randint(1, 6, ids.shape, generator=generator)
        frames = ids.repeat_interleave(times)
        quiet = torch.zeros(3, 32)
        features.append(torch.cat([quiet, embeddings[frames] @ to_features + 0.02 * normal(len(frames), 32), quiet]))
        loudness.append(torch.cat([torch.full((3,), -1.0), torch.ones(len(frames)), torch.full((3,), -1.0)]))
        tokens.append(ids)
        spoken.append(frames)
    weight, bias, hit_rate = fit_projector(features, loudness, tokens, embeddings, rounds=10)
    assert weight.shape == (24, 32)
    assert bias.shape == (24,)
    assert hit_rate > 0.9
    heard = torch.cat([clip[3:-3] for clip in features]) @ weight.T + bias
    right = torch.cat(spoken)
    nearest = torch.nn.functional.normalize(heard, dim=-1) @ torch.nn.functional.normalize(embeddings, dim=-1).T
    assert (nearest.argmax(-1) == right).float().mean() > 0.9
