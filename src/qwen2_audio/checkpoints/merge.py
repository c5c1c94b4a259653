"""Putting what was trained into a model: whole tensors replace, low-rank corrections are added."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from qwen2_audio.checkpoints.adapter import Correction, is_adapter, read_adapter
from qwen2_audio.errors import CheckpointError
from qwen2_audio.model.qwen2_audio import Qwen2Audio

A, B, MAGNITUDE = ".lora_A", ".lora_B", ".lora_magnitude"


@dataclass(frozen=True, slots=True)
class Trained:
    """What a training run, or an adapter, changes.

    Attributes:
        whole: tensors that replace the model's, by their published names.
        corrections: low-rank corrections, by the names of the weights that they are added to.
    """

    whole: dict[str, Tensor]
    corrections: dict[str, Correction]


def merge_trained(model: Qwen2Audio, path: Path) -> list[str]:
    """Put a training run's result, or an adapter in peft's format (a folder), into `model`.

    Nothing is left out: a tensor that the model does not have, a matrix without its partner or one of another shape is
    an error, and then the model is as it was.

    Returns:
        the names of the weights that changed.

    Raises:
        CheckpointError: it cannot be read, or is of another model.
    """
    trained = Trained(*read_adapter(path)) if is_adapter(path) else read_trained(path)
    state = model.state_dict()
    changes: dict[str, Tensor] = {}
    for target in [*trained.whole, *trained.corrections]:
        if target not in state:
            raise CheckpointError(f"{path} trains {target}, which this model does not have; it is of another model")
        correction = trained.corrections.get(target)
        shape = tuple(trained.whole[target].shape) if correction is None else correction.shape
        if shape != tuple(state[target].shape):
            other = f"{list(shape)} instead of {list(state[target].shape)}"
            raise CheckpointError(f"{path} has {target} in the shape {other}; it is of another model")
        changes[target] = trained.whole[target] if correction is None else correction.apply(state[target])
    for target, new in changes.items():
        state[target].copy_(new)
    return sorted(changes)


def own_weights(model: Qwen2Audio) -> None:
    """Copy the weights of a model whose file is memory-mapped, so that they can be written to."""
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()


def read_trained(path: Path) -> Trained:
    """The result of a training run: `NAME.lora_A`, `NAME.lora_B` (and `NAME.lora_magnitude`) correct `NAME.weight`."""
    try:
        with safe_open(path, framework="pt") as file:
            scale = float((file.metadata() or {})["lora_scale"])
            tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
    except KeyError:
        raise CheckpointError(f"{path} is not what a training run gives (it has no lora_scale)") from None
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
    whole = {name: tensor for name, tensor in tensors.items() if not name.endswith((A, B, MAGNITUDE))}
    stems = sorted({name.rpartition(".")[0] for name in tensors.keys() - whole.keys()})
    corrections = {}
    for stem in stems:
        if not {stem + A, stem + B} <= tensors.keys():
            raise CheckpointError(f"{path} holds only one half of the correction of {stem}.weight; it is damaged")
        corrections[f"{stem}.weight"] = Correction(
            tensors[stem + A], tensors[stem + B], scale, tensors.get(stem + MAGNITUDE)
        )
    return Trained(whole, corrections)
