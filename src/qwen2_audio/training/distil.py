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
from qwen2_audio.training.alignment import heard_at
from qwen2_audio.training.collate import Pack
from qwen2_audio.training.lora import without_lora

BETWEEN = 4
"""Tokens between what is asked and the line break that the answer is predicted from: the marks of turns, and "assistant"."""
BETWEEN_WEIGHT = 8.0
"""Of their states beside those of the answer: in them lies what was asked, before any word of the answer tells it."""
WORD_WEIGHT = 3.0
"""Of the states where a token of the question is heard, beside those of the answer."""
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
    """Where states are compared: at tokens from which answers are predicted, at those between question and answer, and where
    words of questions are heard.

    Attributes:
        at: int64 [places], tokens of the pack.
        read_at: int64 [places], those of the pack in writing.
        owners: int64 [places], the target that each counts with.
        weights: float32 [places], how much it counts.
        of_targets: float32 [targets], how much the target itself counts.
    """

    at: Tensor
    read_at: Tensor
    owners: Tensor
    weights: Tensor
    of_targets: Tensor


def places(model: Qwen2Audio, batch: Pack, written: Pack, audio: Tensor | None) -> Places:
    """Those of a pack and of the same in writing.

    Args:
        audio: audio embeddings of the pack, [audio_tokens, hidden_size].
    """
    at, sequences = batch.predict_at[batch.aloud], batch.sequence_of_targets[batch.aloud]
    count, first = torch.arange(len(at)), torch.searchsorted(sequences, sequences)  # the first of its own answer
    starts = first.unique()
    between = torch.arange(1, BETWEEN + 1)
    heard, words, owners = _words(model, batch, written, audio, starts.tolist())
    return Places(
        torch.cat([at, (at[starts][:, None] - between).flatten(), heard]),
        torch.cat([written.predict_at, (written.predict_at[starts][:, None] - between).flatten(), words]),
        torch.cat([count, starts.repeat_interleave(BETWEEN), owners]),
        torch.tensor([1.0, BETWEEN_WEIGHT, WORD_WEIGHT]).repeat_interleave(
            torch.tensor([len(at), len(starts) * BETWEEN, len(heard)])
        ),
        torch.where(count - first < FIRST, FIRST_WEIGHT, 1.0),
    )


def _words(
    model: Qwen2Audio, batch: Pack, written: Pack, audio: Tensor | None, owners: list[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Where the words of questions are heard, where they are read, and which of `owners`, one a question, they count with."""
    found = [torch.empty(3, 0, dtype=torch.int64)]
    embeddings = model.language_model.model.embed_tokens.weight.detach()
    mean = embeddings.mean(0, dtype=torch.float32)
    number = (batch.ids == model.config.audio_token_id).cumsum(0) - 1  # of the audio embedding at each token
    asked = [batch.asked[sequence] for sequence in batch.sequence_of_targets[batch.aloud].unique()]
    for owner, at, words in zip(owners, map(torch.tensor, asked), map(torch.tensor, written.asked), strict=True):
        if audio is None or not len(at) or not len(words):
            continue
        names = embeddings[written.ids[words].to(embeddings.device)]
        frames = heard_at(audio[number[at]].detach().float() - mean, names.float() - mean)
        if len(frames):
            found.append(torch.stack([at[frames], words, torch.full_like(words, owner)]))
    heard, read, owned = torch.cat(found, 1)
    return heard, read, owned


def state_losses(ours: list[Tensor], readers: list[Tensor], where: Places) -> Tensor:
    """How far the states of all layers are from the reader's, as shares of the variance that these have in the pack, averaged
    over layers and entries: float32 [targets]; the first target of an answer bears those of its question, too."""
    apart = torch.zeros(len(ours[0]), device=ours[0].device)
    for mine, theirs in zip(ours, readers, strict=True):
        mine, theirs = mine.float(), theirs.float()
        scale = (theirs - theirs.mean(0)).pow(2).mean(0) + _FLOOR
        apart = apart + ((mine - theirs).pow(2) / scale).clamp(max=_MOST).mean(-1) / len(ours)
    owners, weights = where.owners.to(apart.device), where.weights.to(apart.device)
    return apart.new_zeros(len(where.of_targets)).index_add(0, owners, apart * weights)
