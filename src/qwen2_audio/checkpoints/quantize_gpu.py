"""A language model whose weights are rounded further for a GPU: int4 by our own layers, int8 and fp8 by torchao's.

Only the language model's: a step of decoding reads all of its weights for a few rows, and takes as long as that; what the
encoder does is arithmetic, which smaller weights do not make quicker.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from qwen2_audio.checkpoints.int4 import Int4Linear, put_into_int4
from qwen2_audio.errors import UsageError
from qwen2_audio.model.linear import Linear


def round_language_model(model: nn.Module, kind: str) -> None:
    """Round the weights of the language model's linear layers, its head included, where they lie.

    Args:
        kind: "int8": a scale for each output; widened before they are multiplied, which saves memory and costs time. "int4": a
            scale and a least value for each 64 weights; multiplied as they lie. "fp8": a scale for each output, and what comes
            in is rounded too, row by row.

    Raises:
        UsageError: this torchao, or this GPU, does not do that, or not to layers of these sizes.
    """
    language = model.get_submodule("language_model")
    if kind == "int4":
        put_into_int4(language)
        return
    layers = {name: layer for name, layer in language.named_modules() if isinstance(layer, Linear)}
    told = logging.getLogger("torchao")
    level = told.level
    told.setLevel(logging.ERROR)  # it tells of each of its parts that is for another GPU
    try:
        from torchao.quantization import quantize_

        if kind == "fp8":
            _fill_empty_rows(list(layers.values()))
        quantize_(language, _format(kind), lambda layer, _: isinstance(layer, Linear))
    except torch.OutOfMemoryError:
        raise
    except (ImportError, AssertionError, NotImplementedError, RuntimeError, ValueError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UsageError(f"torchao cannot round to {kind} here: {first:.200}; use another quantize, or none") from error
    finally:
        told.setLevel(level)
    left = [f"{name} {[*layer.weight.shape]}" for name, layer in layers.items() if not _is_torchaos(layer.weight)]
    if left:
        raise UsageError(f"torchao does not round {left[0]} to {kind}; use another quantize, or none")


def _format(kind: str) -> Any:
    from torchao import quantization as ao

    plain = {"set_inductor_config": False}  # of the whole process
    if kind == "int8":
        return ao.Int8WeightOnlyConfig(**plain)
    return ao.Float8DynamicActivationFloat8WeightConfig(granularity=ao.PerRow(), **plain)


@torch.no_grad()
def _fill_empty_rows(layers: Sequence[Linear]) -> None:
    """A row of zeros has no scale and would give no numbers: make one weight of it as good as zero."""
    for layer in layers:
        empty = layer.weight.abs().amax(1) == 0
        layer.weight[:, 0] += empty * 1e-6


def _is_torchaos(weight: Tensor) -> bool:
    return type(weight).__module__.startswith("torchao.")


def is_rounded(model: nn.Module) -> bool:
    """Whether `round_language_model` was at `model`."""
    return any(map(_is_torchaos, model.parameters())) or any(isinstance(m, Int4Linear) for m in model.modules())
