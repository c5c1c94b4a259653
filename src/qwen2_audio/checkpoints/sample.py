"""A few numbers out of a model's weights, kept beside what was trained on them: whether it is put into the same model again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor

SAMPLE = "base_sample"
"""Its name in the metadata of a safetensors file."""
_TENSORS, _NUMBERS = 6, 32
_TOLERANCE = 0.01
"""Root mean square of the difference, of that of the numbers: above what half precision rounds, below what training changes."""


def sample_of(weights: Mapping[str, Tensor]) -> str:
    """Some numbers out of some matrices of a model's layers, as one line."""
    names = sorted(name for name, tensor in weights.items() if tensor.ndim == 2 and ".layers." in name)
    chosen = names[:: max(1, len(names) // _TENSORS)][:_TENSORS]
    return json.dumps({name: _numbers(weights[name]) for name in chosen})


def differs(weights: Mapping[str, Tensor], sample: str) -> str:
    """The name of a matrix that is not the one that the sample was taken of; "" where all are, or are not there."""
    kept: dict[str, Any] = json.loads(sample)
    for name, numbers in kept.items():
        if name in weights:
            off = sum((a - b) ** 2 for a, b in zip(_numbers(weights[name]), numbers, strict=False))
            if off > _TOLERANCE**2 * sum(number**2 for number in numbers):
                return name
    return ""


def _numbers(tensor: Tensor) -> list[float]:
    flat = tensor.detach().flatten()
    return [float(f"{value:.5g}") for value in flat[:: max(1, len(flat) // _NUMBERS)][:_NUMBERS].float().tolist()]
