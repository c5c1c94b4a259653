"""Distillation of voice chat: who is asked aloud learns from the language model without LoRA, which reads the same words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div

from qwen2_audio.model.qwen2_audio import Qwen2Audio
from qwen2_audio.training.collate import Pack
from qwen2_audio.training.lora import without_lora

BETWEEN = 4
"""Tokens between what is asked and the line break that the answer is predicted from: the marks of turns, and "assistant"."""
BETWEEN_WEIGHT = 8.0
"""Of their states beside those of the answer: in them lies what was asked, before any word of the answer tells it."""
FIRST, FIRST_WEIGHT = 8, 3.0
"""Tokens of an answer that count more, since they decide what it is about, and how much."""
_FLOOR, _MOST = 1e-4, 25.0
"""Of a variance that distances are shares of, and of such a share: entries that hardly vary must not outweigh the others."""


def read(model: Qwen2Audio, batch: Pack, at: Tensor | None) -> tuple[Tensor, list[Tensor]]:
    """What the language model was before LoRA makes of a pack without recordings: hidden states at the targets
    [targets, hidden_size]; and what `tapped` gives at `at`."""
    with torch.no_grad(), without_lora(model), tapped(model, at) as layers:
        hidden: Tensor = model.language_model.model(model.embed(batch.ids.to(model.device), None), batch.lengths)
    return hidden[batch.predict_at.to(model.device)], layers


@contextmanager
def tapped(model: Qwen2Audio, at: Tensor | None) -> Iterator[list[Tensor]]:
    """A list that fills with the states of each layer of the language model, [places, hidden_size], as it runs over a pack.

    Args:
        at: int64 [places], the tokens whose states are wanted; None: of none, and the list stays empty.
    """
    layers: list[Tensor] = []
    if at is None:
        yield layers
        return
    where = at.to(model.device)

    def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
        layers.append(output[where])

    hooks = [layer.register_forward_hook(keep) for layer in model.language_model.model.layers]
    try:
        yield layers
    finally:
        for hook in hooks:
            hook.remove()


def divergences(ours: Tensor, readers: Tensor) -> Tensor:
    """Kullback-Leibler divergence from logits [targets, vocab_size] to those of the reader, float32 [targets], in nats."""
    mine, theirs = (logits.float().log_softmax(-1) for logits in (ours, readers))
    return kl_div(mine, theirs, reduction="none", log_target=True).sum(-1)


@dataclass(frozen=True, slots=True)
class Places:
    """Where states are compared: at the tokens from which answers are predicted, then at those between question and answer.

    Attributes:
        at: int64 [places], tokens of the pack.
        owners: int64 [places], the target that each counts with.
        weights: float32 [places], how much it counts.
        of_targets: float32 [targets], how much the target itself counts.
    """

    at: Tensor
    owners: Tensor
    weights: Tensor
    of_targets: Tensor


def places(batch: Pack, targets: Tensor) -> Places:
    """Those of the answers that are some of a pack's targets, int64 [targets]."""
    at, sequences = batch.predict_at[targets], batch.sequence_of_targets[targets]
    first = torch.searchsorted(sequences, sequences)  # of its own answer
    count = torch.arange(len(at))
    starts = first.unique()
    between = at[starts][:, None] - torch.arange(1, BETWEEN + 1)
    return Places(
        torch.cat([at, between.flatten()]),
        torch.cat([count, starts.repeat_interleave(BETWEEN)]),
        torch.cat([torch.ones(len(at)), torch.full((between.numel(),), BETWEEN_WEIGHT)]),
        torch.where(count - first < FIRST, FIRST_WEIGHT, 1.0),
    )


def state_losses(ours: list[Tensor], readers: list[Tensor], where: Places) -> Tensor:
    """How far the states of all layers are from the reader's, as shares of the variance that these have in the pack, averaged
    over layers and entries: float32 [targets]; the first target of an answer bears those between question and answer, too."""
    apart = torch.zeros(len(ours[0]), device=ours[0].device)
    for mine, theirs in zip(ours, readers, strict=True):
        mine, theirs = mine.float(), theirs.float()
        scale = (theirs - theirs.mean(0)).pow(2).mean(0) + _FLOOR
        apart = apart + ((mine - theirs).pow(2) / scale).clamp(max=_MOST).mean(-1) / len(ours)
    owners, weights = where.owners.to(apart.device), where.weights.to(apart.device)
    return apart.new_zeros(len(where.of_targets)).index_add(0, owners, apart * weights)
