"""QLoRA (Dettmers et al. 2023): what is frozen lies in 4 bits, and only corrections in full precision learn."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import nn

from qwen2_audio.errors import UsageError
from qwen2_audio.training.lora import lora_layers


def quantize_frozen(model: nn.Module, device: torch.device) -> None:
    """Put the frozen base of every corrected layer into 4-bit NormalFloat with doubly quantised constants.

    Raises:
        UsageError: bitsandbytes is not installed, does not run here, or there is no LoRA.
    """
    try:
        bitsandbytes: Any = import_module("bitsandbytes")
    except ImportError as error:
        raise UsageError(f"quantize=nf4 needs bitsandbytes: pip install bitsandbytes ({error})") from None
    layers = lora_layers(model)
    if not layers:
        raise UsageError("quantize=nf4 is for frozen layers with a correction; set learn=lora for a part of the model")
    if any(layer.lora_magnitude is not None for layer in layers.values()):
        raise UsageError("quantize=nf4 and kind=dora do not go together; use kind=lora")
    for layer in layers.values():
        base = layer.base
        small = bitsandbytes.nn.Linear4bit(
            base.in_features,
            base.out_features,
            bias=base.bias is not None,
            compute_dtype=torch.bfloat16 if device.type == "cuda" else torch.float32,
            compress_statistics=True,
            quant_type="nf4",
        )
        small.weight = bitsandbytes.nn.Params4bit(base.weight.data, requires_grad=False, quant_type="nf4")
        if base.bias is not None:
            small.bias = base.bias
        layer.base = small.to(device)
