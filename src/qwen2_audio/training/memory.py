"""Trading work for memory."""

from __future__ import annotations

from functools import partial

from torch.utils.checkpoint import checkpoint

from qwen2_audio.model.qwen2_audio import Qwen2Audio


def recompute_layers(model: Qwen2Audio) -> None:
    """Make every layer of the language model, and of an encoder that learns, forget what lies between its input and its
    output; the backward pass computes it again (Chen et al. 2016). Values and gradients stay the same."""
    layers = list(model.language_model.model.layers)
    if any(parameter.requires_grad for parameter in model.audio_tower.parameters()):
        layers += list(model.audio_tower.layers)
    for layer in layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
