"""Packing examples: many sequences end to end, no padding."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qwen2_audio.processing.mel import Clip
from qwen2_audio.training.datasets import Example


@dataclass(frozen=True, slots=True)
class Pack:
    """Several examples laid end to end.

    Attributes:
        ids: int64 [tokens].
        lengths: tokens of each example.
        clips: all recordings, in order.
        spoken: for each recording the tokens said in it, [] where they are not known.
        predict_at: int64 [targets], positions whose logits are wanted.
        targets: int64 [targets], the tokens that follow them.
    """

    ids: Tensor
    lengths: list[int]
    clips: list[Clip]
    spoken: list[list[int]]
    predict_at: Tensor
    targets: Tensor


def pack(examples: Sequence[Example]) -> Pack:
    """Lay examples end to end. The first token of an example is never a target."""
    ids = [token for example in examples for token in example.ids]
    at, start = [], 0
    for example in examples:
        at += [start + i - 1 for i, learnt in enumerate(example.learnt) if learnt and i > 0]
        start += len(example.ids)
    tokens, predict_at = torch.tensor(ids), torch.tensor(at, dtype=torch.int64)
    clips = [clip for example in examples for clip in example.clips]
    spoken = [example.spoken for example in examples for _ in example.clips]
    return Pack(tokens, [len(e.ids) for e in examples], clips, spoken, predict_at, tokens[predict_at + 1])


def pack_by_tokens(examples: Iterable[Example], limit: int) -> Iterator[list[Example]]:
    """Group examples, in order, into lists of at most `limit` tokens (an example above it stands alone)."""
    group: list[Example] = []
    size = 0
    for example in examples:
        if group and size + len(example.ids) > limit:
            yield group
            group, size = [], 0
        group.append(example)
        size += len(example.ids)
    if group:
        yield group
