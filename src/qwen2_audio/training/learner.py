"""The module that engines wrap: its forward is a stage's loss, so that every layer runs inside one call."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from qwen2_audio.model.qwen2_audio import Qwen2Audio
from qwen2_audio.processing.mel import Clip
from qwen2_audio.training.collate import Pack
from qwen2_audio.training.stages import Shown, Stage

_SHORTEST = 40
"""Mel frames of the clip that stands in where a pack has none."""


class Learner(nn.Module):
    """A model and the way in which its losses are computed."""

    def __init__(self, model: Qwen2Audio, *, bfloat16: bool, device: torch.device, everywhere: bool) -> None:
        """
        Args:
            bfloat16: products and activations in bfloat16 (autocast).
            everywhere: run the encoder for packs without recordings, too (on silence that nothing hears): processes that
                share its layers wait for each other there.
        """
        super().__init__()
        self.model = model
        self._bfloat16, self._device, self._everywhere = bfloat16, device, everywhere

    def forward(self, stage: Stage, batch: Pack, share: float) -> tuple[Tensor, Shown]:
        """The stage's loss of a pack times `share`, and what it shows."""
        if self._everywhere and not batch.clips:
            silence = Clip(torch.zeros(self.model.config.audio.num_mel_bins, _SHORTEST), _SHORTEST)
            batch = replace(batch, clips=[silence], hears=[], spoken=[[]])
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._bfloat16):
            loss, shown = stage.sums(self.model, batch)
        return loss * share, shown
