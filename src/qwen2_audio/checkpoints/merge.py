"""Putting what was trained into a model: whole tensors replace, low-rank corrections are added."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from qwen2_audio.checkpoints.adapter import Correction, is_adapter, read_adapter
from qwen2_audio.checkpoints.sample import SAMPLE, differs
from qwen2_audio.errors import CheckpointError
from qwen2_audio.model.linear import Linear
from qwen2_audio.model.qwen2_audio import Qwen2Audio

A, B, MAGNITUDE = ".lora_A", ".lora_B", ".lora_magnitude"


@dataclass(frozen=True, slots=True)
class Trained:
    """What a training run, or an adapter, changes.

    Attributes:
        whole: tensors that replace the model's, by their published names.
        corrections: low-rank corrections, by the names of the weights that they are added to.
        sample: of the model that it was trained on, see `sample.sample_of`; "" where that is not known.
    """

    whole: dict[str, Tensor]
    corrections: dict[str, Correction]
    sample: str = ""


def merge_trained(model: Qwen2Audio, path: Path) -> list[str]:
    """Put a training run's result, or an adapter in peft's format (a folder), into `model`.

    Nothing is left out: a tensor that the model does not have, a matrix without its partner or one of another shape is
    an error, and then the model is as it was.

    Returns:
        the names of the weights that changed.

    Raises:
        CheckpointError: it cannot be read, or is of another model.
    """
    state, names = model.state_dict(), []
    for target, new in _changes(state, path):
        state[target].copy_(new)
        names.append(target)
    return sorted(names)


def merged_copy(model: Qwen2Audio, path: Path) -> Qwen2Audio:
    """As `merge_trained`, into a model of its own, which shares every tensor that does not change with `model`.

    Linear layers that changed are not packed in it, and decode steps are not compiled; see `kernels.steps.lay_out`.
    """
    state = model.state_dict(keep_vars=True)
    packed = [layer.packed for layer in model.modules() if isinstance(layer, Linear) and layer.packed is not None]
    shared: dict[int, Any] = {id(each): each for each in (*state.values(), *packed)}
    targets = []
    for target, new in _changes(state, path):
        old = state[target]
        shared[id(old)] = nn.Parameter(new.to(old.device, old.dtype), requires_grad=False)
        targets.append(target)
    changed = copy.deepcopy(model, shared)
    for parent in {target.rpartition(".")[0].rpartition(".")[0] for target in targets}:
        for layer in changed.get_submodule(parent).children():
            if isinstance(layer, Linear):
                layer.packed = None
    return changed


def _changes(state: Mapping[str, Tensor], path: Path) -> Iterator[tuple[str, Tensor]]:
    """The names and new values, float32, of all weights that change, one at a time; all of them fit. See `merge_trained`."""
    trained = read_changes(path)
    targets = [*trained.whole, *trained.corrections]
    for target in targets:
        if target not in state:
            raise CheckpointError(f"{path} trains {target}, which this model does not have; it is of another model")
        correction = trained.corrections.get(target)
        shape = tuple(trained.whole[target].shape) if correction is None else correction.shape
        if shape != tuple(state[target].shape):
            other = f"{list(shape)} instead of {list(state[target].shape)}"
            raise CheckpointError(f"{path} has {target} in the shape {other}; it is of another model")
    other = differs({name: state[name] for name in state.keys() - trained.whole.keys()}, trained.sample or "{}")
    if other:
        raise other_model(path, other)
    for target in targets:
        correction = trained.corrections.get(target)
        yield target, trained.whole[target] if correction is None else correction.apply(state[target].detach().cpu())


def other_model(path: Path, name: str) -> CheckpointError:
    """The error of what was trained on a model whose weight of that name is another."""
    return CheckpointError(f"{path} was trained on another model, whose {name} differs; give that model as the base")


def read_changes(path: Path) -> Trained:
    """What a training run's result, or an adapter in peft's format (a folder), changes."""
    return Trained(*read_adapter(path)) if is_adapter(path) else read_trained(path)


def own_weights(model: Qwen2Audio) -> None:
    """Copy the weights of a model whose file is memory-mapped, so that they can be written to."""
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()


def read_trained(path: Path) -> Trained:
    """The result of a training run: `NAME.lora_A`, `NAME.lora_B` (and `NAME.lora_magnitude`) correct `NAME.weight`."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            scale, sample = float(metadata["lora_scale"]), metadata.get(SAMPLE, "")
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
    return Trained(whole, corrections, sample)
