"""Which token is being spoken in which audio frame, and a closed-form start for the projector.

From a random projector the language model needs thousands of steps before it hears anything. Instead: spread the tokens of
each transcript evenly over its frames, solve for the linear map from frame features to token embeddings, let the map say
where each token really is (dynamic programming, tokens in order), solve again, and repeat. No time stamps are needed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

BLANK_COSINE = 0.4
"""Likeness to every token up to which an audio embedding carries none."""


def fit_projector(
    features: Sequence[Tensor],
    loudness: Sequence[Tensor],
    tokens: Sequence[Tensor],
    embeddings: Tensor,
    *,
    rounds: int = 8,
    ridge: float = 1.0,
    gain: float = 1.5,
) -> tuple[Tensor, Tensor, float]:
    """Fit the projector's weight and bias.

    Args:
        features: one [frames, d_model] a clip, what the audio encoder gives.
        loudness: one [frames] a clip, the mean log-mel value; quiet frames carry no token.
        tokens: one int64 [tokens] a clip, the transcript.
        embeddings: [vocab, hidden_size], the language model's.
        ridge: regularisation, relative to the mean feature variance.
        gain: how much longer than the regression's answer the projected vectors are made (it shrinks towards the mean).

    Returns:
        weight [hidden_size, d_model], bias [hidden_size], and the share of voiced frames whose nearest embedding (among the
        tokens of all transcripts) is the token that the alignment put there.
    """
    voiced = [level > level.min() + 0.35 * (level.max() - level.min()) for level in loudness]
    x = [clip[mask] for clip, mask in zip(features, voiced, strict=True)]
    pairs = [(clip, ids) for clip, ids in zip(x, tokens, strict=True) if len(clip) >= len(ids) > 0]
    paths = [torch.arange(len(clip)) * len(ids) // len(clip) for clip, ids in pairs]
    stacked = torch.cat([clip for clip, _ in pairs]).double()
    mean_x = stacked.mean(0)
    centred = stacked - mean_x
    gram = centred.T @ centred
    gram += ridge * gram.diagonal().mean() * 1e-3 * torch.eye(gram.shape[0], dtype=gram.dtype)
    used = torch.cat([ids for _, ids in pairs]).unique()
    mean_e = embeddings[used].double().mean(0)
    hit_rate = 0.0
    for _ in range(rounds):
        spoken = torch.cat([ids[path] for (_, ids), path in zip(pairs, paths, strict=True)])
        target = embeddings[spoken].double() - mean_e
        weight = torch.linalg.solve(gram, centred.T @ target)
        predicted = (centred @ weight).float()
        scores = _cosine(predicted, embeddings[used] - mean_e.float())
        hit_rate = float((used[scores.argmax(-1)] == spoken).float().mean())
        column = {int(token): i for i, token in enumerate(used)}
        start = 0
        for i, (clip, ids) in enumerate(pairs):
            part = scores[start : start + len(clip)][:, [column[int(token)] for token in ids]]
            paths[i] = best_path(part)
            start += len(clip)
    weight = gain * weight.T
    bias = mean_e - weight @ mean_x
    return weight.float(), bias.float(), hit_rate


def best_path(scores: Tensor) -> Tensor:
    """The monotonic alignment of most total score: int64 [frames], rising from 0 to tokens - 1 by steps of 0 or 1.

    Args:
        scores: [frames, tokens], frames >= tokens.
    """
    table = scores.numpy()  # many tiny steps: numpy is ten times quicker at them
    frames, tokens = table.shape
    total = np.full(tokens, -np.inf)
    total[0] = table[0, 0]
    moved = np.zeros((frames, tokens), dtype=bool)
    for t in range(1, frames):
        shifted = np.concatenate([[-np.inf], total[:-1]])
        moved[t] = shifted > total
        total = np.maximum(total, shifted) + table[t]
    path = np.empty(frames, dtype=np.int64)
    at = tokens - 1
    for t in range(frames - 1, -1, -1):
        path[t] = at
        at -= int(moved[t, at])
    return torch.from_numpy(path)


def heard_at(audio: Tensor, tokens: Tensor) -> Tensor:
    """At which audio embedding each token is heard: int64 [tokens], rising, with at least one other between any two; empty
    where there are too few.

    Args:
        audio: [frames, hidden_size], the mean of all token embeddings taken off.
        tokens: [tokens, hidden_size], their embeddings, likewise.
    """
    scores = torch.full((len(audio), 2 * len(tokens) + 1), BLANK_COSINE)
    if len(audio) < scores.shape[1]:
        return torch.empty(0, dtype=torch.int64)
    scores[:, 1::2] = _cosine(audio, tokens).cpu()
    on = best_path(scores)[:, None] == torch.arange(scores.shape[1])[1::2]
    return scores[:, 1::2].masked_fill(~on, -torch.inf).argmax(0)


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    return torch.nn.functional.normalize(a, dim=-1) @ torch.nn.functional.normalize(b, dim=-1).T
