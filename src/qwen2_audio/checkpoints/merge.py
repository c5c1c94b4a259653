"""Putting what a training run gives into a model: whole tensors replace, low-rank corrections are added."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from qwen2_audio.errors import CheckpointError
from qwen2_audio.model.qwen2_audio import Qwen2Audio

A, B = ".lora_A", ".lora_B"


def merge_trained(model: Qwen2Audio, path: Path) -> list[str]:
    """Put a trainer's result into `model`: `NAME.lora_A` and `NAME.lora_B` are added to `NAME.weight` as scale * B @ A.

    Nothing is left out: a tensor that the model does not have, a matrix without its partner or one of another shape is
    an error, and then the model is as it was.

    Returns:
        the names of the weights that changed.

    Raises:
        CheckpointError: the file cannot be read, or is of another model.
    """
    tensors, scale = _read(path)
    state = model.state_dict()
    changes: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        stem = name.removesuffix(A).removesuffix(B)
        target = name if stem == name else f"{stem}.weight"
        if target not in state:
            raise CheckpointError(f"{path} trains {target}, which this model does not have; it is of another model")
        if stem != name and not {stem + A, stem + B} <= tensors.keys():
            raise CheckpointError(f"{path} holds only one half of the correction of {target}; it is damaged")
        if name.endswith(B):
            continue
        try:
            new = tensor if stem == name else state[target].float() + scale * (tensors[stem + B] @ tensor)
        except RuntimeError:
            new = tensor
        if new.shape != state[target].shape:
            shapes = f"{list(new.shape)} instead of {list(state[target].shape)}"
            raise CheckpointError(f"{path} has {target} in the shape {shapes}; it is of another model")
        changes[target] = new
    for target, new in changes.items():
        state[target].copy_(new)
    return sorted(changes)


def _read(path: Path) -> tuple[dict[str, Tensor], float]:
    try:
        with safe_open(path, framework="pt") as file:
            scale = float((file.metadata() or {})["lora_scale"])
            tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
    except KeyError:
        raise CheckpointError(f"{path} is not what a training run gives (it has no lora_scale)") from None
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
    return tensors, scale
