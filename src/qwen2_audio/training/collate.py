"""Packing examples: many sequences end to end, no padding."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
from torch import Tensor

from qwen2_audio.processing.mel import Clip
from qwen2_audio.training.datasets import Example

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Pack:
    """Several examples laid end to end.

    Attributes:
        ids: int64 [tokens].
        lengths: tokens of each example.
        clips: all recordings, in order, each once.
        hears: for each recording that the ids hold, in order, which of the clips it is.
        spoken: for each recording the tokens said in it, [] where they are not known.
        predict_at: int64 [targets], positions whose logits are wanted.
        targets: int64 [targets], the tokens that follow them.
        weights: float32 [targets], how much each counts in the loss.
        aloud: int64, which of the targets answer what was asked by voice alone, or in writing alone; see
            `Example.in_writing`.
        in_writing: those examples without recordings, a pack of its own with the same targets; None where there are none.
        rows: of pairs: the number of each row in the data.
        asked: for each example the tokens that `Example.asked` names.
        pieces: parts in which the head is run, 0 for as many as the targets need; processes that share it must agree.
    """

    ids: Tensor
    lengths: list[int]
    clips: list[Clip]
    hears: list[int]
    spoken: list[list[int]]
    predict_at: Tensor
    targets: Tensor
    weights: Tensor
    aloud: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    in_writing: Pack | None = None
    rows: list[int] = field(default_factory=list)
    asked: list[list[int]] = field(default_factory=list)
    pieces: int = 0

    @property
    def sequence_of_targets(self) -> Tensor:
        """int64 [targets], the example to which each target belongs."""
        return torch.bucketize(self.predict_at, torch.tensor(self.lengths).cumsum(0), right=True)

    @property
    def targets_of_sequences(self) -> Tensor:
        """int64 [examples], how many targets each has."""
        return torch.bincount(self.sequence_of_targets, minlength=len(self.lengths))


def pack(examples: Sequence[Example]) -> Pack:
    """Lay examples end to end. The first token of an example is never a target."""
    ids = [token for example in examples for token in example.ids]
    at: list[int] = []
    weights: list[float] = []
    aloud: list[int] = []
    asked: list[list[int]] = []
    start = 0
    for example in examples:
        own = [start + i - 1 for i, learnt in enumerate(example.learnt) if learnt and i > 0]
        if example.in_writing is not None:
            aloud += range(len(at), len(at) + len(own))
        at += own
        asked.append([start + i for i in example.asked])
        weights += [example.weight] * len(own)
        start += len(example.ids)
    tokens, predict_at = torch.tensor(ids), torch.tensor(at, dtype=torch.int64)
    read = torch.tensor([token for example in examples for token in example.read or example.ids])
    clips = [clip for example in examples for clip in example.clips]
    spoken = [example.spoken for example in examples for _ in example.clips]
    lengths, hears = [len(e.ids) for e in examples], list(range(len(clips)))
    written = [example.in_writing for example in examples if example.in_writing is not None]
    return Pack(
        read, lengths, clips, hears, spoken, predict_at, tokens[predict_at + 1], torch.tensor(weights),
        torch.tensor(aloud, dtype=torch.int64), pack(written) if written else None, asked=asked,
    )  # fmt: skip


def pack_pairs(pairs: Sequence[tuple[int, Example, Example]]) -> Pack:
    """Lay pairs of examples with the same clips end to end (first, second, first, second, ...); each clip is kept once.

    Args:
        pairs: the number of its row in the data, and both examples.
    """
    whole = pack([example for _, *both in pairs for example in both])
    clips: list[Clip] = []
    spoken: list[list[int]] = []
    hears: list[int] = []
    for _, first, _ in pairs:
        own = list(range(len(clips), len(clips) + len(first.clips)))
        hears += own + own
        clips += first.clips
        spoken += [first.spoken] * len(first.clips)
    return replace(whole, clips=clips, hears=hears, spoken=spoken, rows=[row for row, *_ in pairs])


def pack_by_tokens(items: Iterable[Item], limit: int, size_of: Callable[[Item], int]) -> Iterator[list[Item]]:
    """Group items, in order, into lists of at most `limit` tokens (one above it stands alone)."""
    group: list[Item] = []
    size = 0
    for item in items:
        if group and size + size_of(item) > limit:
            yield group
            group, size = [], 0
        group.append(item)
        size += size_of(item)
    if group:
        yield group
