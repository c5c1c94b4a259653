"""Losses, as sums: whoever knows how many targets a whole step has divides once."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from qwen2_audio.model.qwen2_audio import Qwen2Audio
from qwen2_audio.training.collate import Pack


def next_token_loss(model: Qwen2Audio, batch: Pack) -> Tensor:
    """Sum of the cross-entropies of all targets of a pack, in nats; the head runs on those positions only."""
    audio = None
    if batch.clips:
        mels, frames = [clip.mel.to(model.device) for clip in batch.clips], [clip.frames for clip in batch.clips]
        frozen = not any(p.requires_grad for p in model.audio_tower.parameters())
        with torch.set_grad_enabled(not frozen):
            states = model.audio_tower(mels, frames)
        audio = model.multi_modal_projector(states)
    ids, at, targets = (tensor.to(model.device) for tensor in (batch.ids, batch.predict_at, batch.targets))
    logits = model(ids, batch.lengths, audio, logits_at=at)
    return cross_entropy(logits.float(), targets, reduction="sum")
