"""Distillation of voice chat: who is asked aloud learns from the language model without LoRA, which reads the same words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
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


def read(model: Qwen2Audio, batch: Pack, states: bool) -> tuple[Tensor, list[Tensor]]:
    """What the language model was before LoRA makes of a pack without recordings: hidden states at the targets
    [targets, hidden_size]; and each layer's at `_places`, where they are wanted."""
    with torch.no_grad(), without_lora(model), tapped(model, batch, None, states) as layers:
        hidden: Tensor = model.language_model.model(model.embed(batch.ids.to(model.device), None), batch.lengths)
    return hidden[batch.predict_at.to(model.device)], layers


@contextmanager
def tapped(model: Qwen2Audio, batch: Pack, targets: Tensor | None, wanted: bool = True) -> Iterator[list[Tensor]]:
    """A list that fills with the states of each layer of the language model, [places, hidden_size], as it runs over a pack.

    Args:
        targets: those of the pack whose places are wanted, all when None.
    """
    layers: list[Tensor] = []
    at = _places(batch, targets)[0].to(model.device) if wanted else None

    def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
        layers.append(output[at])

    hooks = [layer.register_forward_hook(keep) for layer in model.language_model.model.layers] if wanted else []
    try:
        yield layers
    finally:
        for hook in hooks:
            hook.remove()


def divergences(ours: Tensor, readers: Tensor) -> Tensor:
    """Kullback-Leibler divergence from logits [targets, vocab_size] to those of the reader, float32 [targets], in nats."""
    mine, theirs = (logits.float().log_softmax(-1) for logits in (ours, readers))
    return kl_div(mine, theirs, reduction="none", log_target=True).sum(-1)


def state_losses(ours: list[Tensor], readers: list[Tensor], batch: Pack, targets: Tensor) -> Tensor:
    """How far the states of all layers are from the reader's, as shares of the variance that these have in the pack, averaged
    over layers and entries: float32 [targets]; the first target of an answer bears those between question and answer, too."""
    apart = torch.zeros(len(ours[0]), device=ours[0].device)
    for mine, theirs in zip(ours, readers, strict=True):
        mine, theirs = mine.float(), theirs.float()
        scale = (theirs - theirs.mean(0)).pow(2).mean(0) + _FLOOR
        apart = apart + ((mine - theirs).pow(2) / scale).clamp(max=_MOST).mean(-1) / len(ours)
    _, owners, weights = (part.to(apart.device) for part in _places(batch, targets))
    return apart.new_zeros(len(targets)).index_add(0, owners, apart * weights)


def first_weights(batch: Pack, targets: Tensor) -> Tensor:
    """float32 [targets]: FIRST_WEIGHT for the first tokens of an answer, 1 for the others."""
    owners = batch.sequence_of_targets[targets]
    rank = torch.arange(len(owners)) - torch.searchsorted(owners, owners)
    return torch.where(rank < FIRST, FIRST_WEIGHT, 1.0)


def _places(batch: Pack, targets: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Where states are compared: int64 [places], the tokens from which targets are predicted, then those between question and
    answer; int64 [places], the target that each counts with; float32 [places], how much."""
    at, owners = batch.predict_at, batch.sequence_of_targets
    if targets is not None:
        at, owners = at[targets], owners[targets]
    first = torch.searchsorted(owners, owners.unique())
    between = at[first][:, None] - torch.arange(1, BETWEEN + 1)
    places = torch.cat([at, between.flatten()])
    weights = torch.ones(len(places))
    weights[len(at) :] = BETWEEN_WEIGHT
    return places, torch.cat([torch.arange(len(at)), first.repeat_interleave(BETWEEN)]), weights
