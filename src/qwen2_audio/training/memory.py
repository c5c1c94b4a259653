"""Trading work for memory."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from qwen2_audio.model.qwen2_audio import Qwen2Audio
from qwen2_audio.training.lora import lora_layers


def recompute_layers(model: Qwen2Audio) -> None:
    """Make every layer of the language model, and of an encoder that learns, forget what lies between its input and its
    output; the backward pass computes it again (Chen et al. 2016). Values and gradients stay the same."""
    layers = list(model.language_model.model.layers)
    if any(parameter.requires_grad for parameter in model.audio_tower.parameters()):
        layers += list(model.audio_tower.layers)
    for layer in layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)


def multiply_in_bfloat16(model: Qwen2Audio, given: Collection[str] = ()) -> None:
    """Round once what autocast would round at every product: weights of linear layers that do not learn. Not those of DoRA, of
    which it takes the lengths, nor a head that is the embeddings, nor what is `given` by name, since the run will write it; on
    a CPU only those that have a correction."""
    corrected = {layer.base: layer for layer in lora_layers(model).values()}
    embeddings = model.language_model.model.embed_tokens.weight
    written = {parameter for name, parameter in model.named_parameters() if name in given}
    for layer in [module for module in model.modules() if isinstance(module, nn.Linear)]:
        correction = corrected.get(layer)
        if correction is None and (
            model.device.type == "cpu"
            or layer.weight.requires_grad
            or layer.weight is embeddings
            or layer.weight in written
        ):
            continue
        if correction is None or correction.lora_magnitude is None:
            layer.bfloat16()
