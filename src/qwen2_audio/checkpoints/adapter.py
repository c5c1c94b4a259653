"""Adapters in peft's format: the same corrections in a folder that peft reads, and the folders that it writes.

Adapters name layers as the classes of their time did; both generations are read (see `names`), the later one is written.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from qwen2_audio.checkpoints.load import read_json
from qwen2_audio.checkpoints.names import canonical, modern
from qwen2_audio.checkpoints.sample import SAMPLE
from qwen2_audio.checkpoints.save import new_folder, write_json
from qwen2_audio.errors import CheckpointError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX, _A, _B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"
_MAGNITUDE = ".lora_magnitude_vector"
_PROJECTOR = "multi_modal_projector"
_REFUSED = ("use_qalora", "lora_bias", "trainable_token_indices", "alora_invocation_tokens")
_CHANGE_THE_BASE = ("pissa", "olora", "corda", "lora_ga", "loftq")
"""Ways to begin that take the correction's first value out of the weight that it is added to, or round that weight."""


@dataclass(frozen=True, slots=True)
class Correction:
    """scale * B @ A, to be added to a weight [out, in]; with DoRA the rows of the sum then get new lengths.

    Attributes:
        A: [rank, in].
        B: [out, rank].
        magnitude: [out], the rows' lengths (DoRA), or None.
    """

    A: Tensor
    B: Tensor
    scale: float
    magnitude: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in); (0, 0) where the ranks of both do not fit."""
        return (self.B.shape[0], self.A.shape[1]) if self.B.shape[1] == self.A.shape[0] else (0, 0)

    def apply(self, weight: Tensor) -> Tensor:
        """The corrected weight, float32."""
        corrected = weight.float() + self.scale * (self.B @ self.A)
        if self.magnitude is None:
            return corrected
        return corrected * (self.magnitude / corrected.norm(dim=1))[:, None]


def is_adapter(path: Path) -> bool:
    """Whether a folder holds an adapter in peft's format."""
    return (path / CONFIG).is_file()


def read_adapter(folder: Path) -> tuple[dict[str, Tensor], dict[str, Correction], str]:
    """Whole tensors and corrections of an adapter, by the published names of the weights, and the sample of its base, if any.

    Raises:
        CheckpointError: it cannot be read, is no LoRA, or uses a variant that adding scale * B A would not do justice to.
    """
    config = read_json(folder / CONFIG)
    if config.get("peft_type") != "LORA":
        raise CheckpointError(
            f"{folder} is an adapter of the kind {config.get('peft_type')}; only LORA can be merged here"
        )
    if not isinstance(config.get("lora_alpha"), int | float):
        raise CheckpointError(f"{folder / CONFIG} has no lora_alpha, a number; it is damaged")
    refused = [key for key in _REFUSED if config.get(key)]
    if refused:
        raise CheckpointError(f"{folder} uses {refused[0]}, which is not merged here; merge it with peft")
    begun = str(config.get("init_lora_weights")).lower()
    if begun.startswith(_CHANGE_THE_BASE):
        raise CheckpointError(
            f"{folder} began as {begun}, which changes the weights below it; merge it with peft, or let peft "
            "save it as LoRA (path_initial_model_for_weight_conversion)"
        )
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            sample = (file.metadata() or {}).get(SAMPLE, "")
            tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot read {folder / WEIGHTS}: {error}") from error
    whole: dict[str, Tensor] = {}
    corrections: dict[str, Correction] = {}
    for name, tensor in tensors.items():
        stem = name.removeprefix(_PREFIX)
        if stem.endswith(_A):
            other = tensors.get(name.removesuffix(_A) + _B)
            if other is None:
                raise CheckpointError(f"{folder} holds only one half of the correction {name}; it is damaged")
            layer, rank = stem.removesuffix(_A), tensor.shape[0]
            alpha = float(_of_layer(config.get("alpha_pattern"), layer, config["lora_alpha"]))
            scale = alpha / (rank**0.5 if config.get("use_rslora") else rank)
            magnitude = tensors.get(name.removesuffix(_A) + _MAGNITUDE)
            if bool(config.get("use_dora")) != (magnitude is not None):
                raise CheckpointError(
                    f"{folder} says use_dora={config.get('use_dora')}, which {name} contradicts; it is damaged"
                )
            corrections[_published(layer + ".weight")] = Correction(tensor, other, scale, magnitude)
        elif stem.endswith(_MAGNITUDE):
            continue
        elif stem.endswith(_B):
            if name.removesuffix(_B) + _A not in tensors:
                raise CheckpointError(f"{folder} holds only one half of the correction {name}; it is damaged")
        else:
            whole[_published(stem)] = tensor
    return whole, corrections, sample


def _of_layer(pattern: dict[str, Any] | None, layer: str, default: Any) -> Any:
    """What peft's rank_pattern or alpha_pattern says of a layer: keys are regular expressions of the end of its name."""
    found = (value for key, value in (pattern or {}).items() if re.fullmatch(rf"(.*\.)?({key})", layer))
    return next(found, default)


def _published(name: str) -> str:
    return canonical(name) or name


def write_adapter(
    folder: Path, whole: dict[str, Tensor], corrections: dict[str, Correction], base: str, sample: str = ""
) -> None:
    """Write corrections, and a projector that was trained in full, as an adapter for peft.

    Args:
        base: the name of the model that it belongs to.
        sample: of its weights, see `sample.sample_of`.

    Raises:
        CheckpointError: there is more than peft's format holds, or the folder cannot be written.
    """
    beyond = [name for name in whole if not name.startswith(f"{_PROJECTOR}.")]
    if beyond or not corrections:
        what = f"{beyond[0]} was trained in full" if beyond else "there is no LoRA in it"
        raise CheckpointError(f"this cannot be an adapter: {what}; merge it into a model instead")
    dora = {correction.magnitude is not None for correction in corrections.values()}
    if len(dora) > 1:
        raise CheckpointError("this cannot be an adapter: some layers have DoRA, others LoRA; merge it instead")
    tensors: dict[str, Tensor] = {_PREFIX + modern(name): tensor for name, tensor in whole.items()}
    layers = {modern(name).removesuffix(".weight"): correction for name, correction in corrections.items()}
    for layer, correction in layers.items():
        tensors[f"{_PREFIX}{layer}{_A}"], tensors[f"{_PREFIX}{layer}{_B}"] = correction.A, correction.B
        if correction.magnitude is not None:
            tensors[f"{_PREFIX}{layer}{_MAGNITUDE}"] = correction.magnitude
    shapes = Counter((correction.A.shape[0], correction.scale) for correction in corrections.values())
    (rank, scale), _ = shapes.most_common(1)[0]
    others = {layer: c for layer, c in layers.items() if (c.A.shape[0], c.scale) != (rank, scale)}
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": scale * rank,
        "rank_pattern": {layer: correction.A.shape[0] for layer, correction in others.items()},
        "alpha_pattern": {layer: correction.scale * correction.A.shape[0] for layer, correction in others.items()},
        "use_dora": dora == {True},
        "lora_dropout": 0.0,
        "target_modules": sorted(layers),
        "modules_to_save": [_PROJECTOR] if whole else None,
        "bias": "none",
        "inference_mode": True,
    }
    metadata = {"format": "pt"} | ({SAMPLE: sample} if sample else {})
    with new_folder(folder) as part:
        write_json(part / CONFIG, config)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, part / WEIGHTS, metadata)
