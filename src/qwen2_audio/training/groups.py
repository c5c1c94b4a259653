"""What of the model learns, and how: its five parts, each frozen, in full or by LoRA, each with its own learning rate."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from qwen2_audio.checkpoints.sample import SAMPLE, differs
from qwen2_audio.errors import UsageError
from qwen2_audio.model.qwen2_audio import Qwen2Audio
from qwen2_audio.training.config import GROUPS, GroupConfig, TrainConfig
from qwen2_audio.training.lora import add_lora, is_lora, lora_layers

_PARTS = {
    "encoder": ("audio_tower.",),
    "projector": ("multi_modal_projector.",),
    "language_model": ("language_model.model.layers.", "language_model.model.norm."),
    "embeddings": ("language_model.model.embed_tokens.",),
    "head": ("language_model.lm_head.",),
}
_NEVER = "audio_tower.embed_positions.weight"
"""Sines and cosines, not weights."""


def group_of(name: str) -> str:
    """The part of the model that a parameter or layer belongs to."""
    return next(group for group, starts in _PARTS.items() if f"{name}.".startswith(starts))


def choose_what_learns(model: Qwen2Audio, config: TrainConfig) -> None:
    """Freeze everything but what the configuration lets learn; put LoRA where it says so.

    Raises:
        UsageError: nothing learns, a group cannot learn in the way that it should, or `start` was trained on another model.
    """
    if config.start:
        _check_base(model, Path(config.start))
    if config.embeddings.learn == "lora":
        raise UsageError("embeddings are no linear layer and cannot learn by lora; use embeddings.learn=full")
    tied = model.language_model.lm_head.weight is model.language_model.model.embed_tokens.weight
    if tied and config.head.learn != "frozen":
        raise UsageError("this model's head is its embeddings; let embeddings.learn say how both learn")
    model.requires_grad_(False)
    for group in GROUPS:
        settings: GroupConfig = getattr(config, group)
        if settings.learn != "frozen":
            _check_layers(model, group, settings)
        if settings.learn == "full":
            for name, parameter in model.named_parameters():
                if group_of(name) == group and name != _NEVER and _within(name, settings):
                    parameter.requires_grad_(True)
        elif settings.learn == "lora":
            names = _targets(model, group, settings)
            add_lora(model, names, settings.rank, settings.scale, dora=settings.kind == "dora")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UsageError("nothing learns; set learn=full or learn=lora for one of " + ", ".join(GROUPS))


def _targets(model: nn.Module, group: str, settings: GroupConfig) -> list[str]:
    linear = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and group_of(name) == group and _within(name, settings)
    ]
    known = sorted({name.rpartition(".")[2] for name in linear})
    unknown = [target for target in settings.targets if target not in known]
    if unknown:
        raise UsageError(
            f"{group}.targets has {unknown[0]!r}, which is no linear layer of it; there are {', '.join(known)}"
        )
    return [name for name in linear if not settings.targets or name.rpartition(".")[2] in settings.targets]


def _layer_of(name: str) -> int | None:
    """The number of the transformer's layer that a parameter or module lies in; None outside of them."""
    number = name.partition(".layers.")[2].partition(".")[0]
    return int(number) if number else None


def _within(name: str, settings: GroupConfig) -> bool:
    """Whether a parameter or module of a group lies in the layers that learn."""
    return not settings.layers or _layer_of(name) in settings.layers


def _check_layers(model: nn.Module, group: str, settings: GroupConfig) -> None:
    known = {_layer_of(name) for name, _ in model.named_parameters() if group_of(name) == group} - {None}
    unknown = [number for number in settings.layers if number not in known]
    if unknown:
        there = f"there are 0 to {len(known) - 1}" if known else "it has none"
        raise UsageError(f"{group}.layers has {unknown[0]!r}, which is no layer of it; {there}")


def optimizer_groups(model: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """Parameter groups for the optimizer, with "peak" the learning rate at the schedule's top."""
    groups = []
    for group in GROUPS:
        parameters = [p for n, p in model.named_parameters() if p.requires_grad and group_of(n) == group]
        if parameters:
            groups.append(
                {"params": parameters, "lr": 0.0, "peak": getattr(config, group).learning_rate, "name": group}
            )
    return groups


def names_of_trained(model: nn.Module) -> list[str]:
    """The published names of what learns; LoRA's as `LAYER.lora_A`, `LAYER.lora_B`, `LAYER.lora_magnitude`."""
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def exported(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A trained state as it is written for others: corrections in half precision, their scales multiplied into B."""
    scales = {f"{name}.lora_B": layer.scale for name, layer in lora_layers(model).items()}
    out = {name: tensor.float() * scales.get(name, 1.0) for name, tensor in state.items()}
    return {name: tensor.half() if is_lora(name) else tensor for name, tensor in out.items()}


def _check_base(model: nn.Module, path: Path) -> None:
    """Raise `UsageError` where another run's result was trained on another model than this one, in which nothing learns yet."""
    with _opened(path) as file:
        sample = (file.metadata() or {}).get(SAMPLE, "{}")
    other = differs(model.state_dict(), sample)
    if other:
        raise UsageError(f"{path} was trained on another model, whose {other} differs; give that one as model")


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (OSError, SafetensorError, ValueError) as error:
        raise UsageError(f"cannot start from {path}: {error}") from error


def start_from(model: nn.Module, path: Path) -> list[str]:
    """Go on from what another run trained (or from whole tensors). A correction of a lower rank fills the first rows of a
    greater one, which then computes the same. Returns the names of the tensors: they are part of what the run gives, even those
    that no longer learn.

    Raises:
        UsageError: the file cannot be read, or does not fit the model.
    """
    with _opened(path) as file:
        scale = float((file.metadata() or {}).get("lora_scale", 1.0))
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    layers, state = lora_layers(model), model.state_dict()
    for name, tensor in tensors.items():
        if name not in state:
            hint = "; let that part learn by lora" if is_lora(name) else ""
            if name.rpartition(".")[0] in layers:
                hint = " apart from a correction; merge it first (qwen2-audio merge), and give that folder as the model"
            raise UsageError(f"{path} holds {name}, which the model does not have{hint}")
        if name.endswith(".lora_B"):
            tensor = tensor.float() * (scale / layers[name.removesuffix(".lora_B")].scale)
        own = state[name]
        grown = is_lora(name) and all(a <= b for a, b in zip(tensor.shape, own.shape, strict=True))
        if tensor.shape != own.shape and not grown:
            raise UsageError(f"{path} has {name} in the shape {list(tensor.shape)} instead of {list(own.shape)}")
        with torch.no_grad():
            if name.endswith(".lora_B"):
                own.zero_()
            own[tuple(slice(size) for size in tensor.shape)] = tensor.to(own.dtype)
    for name, layer in layers.items():
        if layer.lora_magnitude is not None and f"{name}.lora_magnitude" not in tensors and f"{name}.lora_A" in tensors:
            corrected = layer.base.weight + layer.scale * layer.lora_B @ layer.lora_A
            layer.lora_magnitude.data.copy_(corrected.detach().norm(dim=1))
    return list(tensors)
