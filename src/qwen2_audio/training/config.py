"""`TrainConfig`: everything a training run depends on, read from YAML."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from qwen2_audio.errors import UsageError

LANGUAGE_LAYERS = r"language_model\.model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """One run.

    Attributes:
        stage: "pretrain", "sft" (both learn the next token) or "dpo" (learns from pairs of answers).
        model: the checkpoint to start from: a folder or any name that `load` takes.
        start: safetensors file with tensors that replace the model's first (the projector's closed form), or "".
        data: JSON-lines file; see `qwen2_audio.training.datasets`.
        out: folder for the run's state, log and result.
        train: regular expression of the parameters trained in full.
        lora: regular expression of the linear layers that get a LoRA correction, "" for none.
        spoken_weight: weight of `SpokenTokenLoss` beside the next-token loss, 0 for none; it needs rows with "spoken".
        augmented: share of the recordings that are changed at random, each time anew; see `training.augment`.
        dpo_beta: how closely "dpo" keeps to the reference; greater is closer.
        dpo_sft_weight: weight of the chosen answers' own next-token loss beside it.
        batch_tokens: tokens in one step's pack, on each process.
        recompute: keep only the layers' inputs and compute the rest again in the backward pass: a third more work for a
            fraction of the memory.
        steps: optimizer steps; the data is read in order and again from its start when it ends.
        minutes: when above 0, the schedule follows the clock and the run ends after so many minutes of training.
        save_every: steps between two saved states.
        device: "auto", "cpu", "cuda", ...
        precision: of products and activations (weights that learn stay in float32): "float32", "bfloat16" (autocast),
            or "auto": bfloat16 where the device multiplies it natively.
        resume: "auto": go on where the run in `out` was stopped; "never": refuse a folder that holds one.
        workers: threads that read and prepare recordings ahead of the model; 0: none.
    """

    model: str
    data: str
    out: str
    stage: str = "pretrain"
    start: str = ""
    train: str = r"multi_modal_projector\..*"
    lora: str = LANGUAGE_LAYERS
    lora_rank: int = 16
    lora_scale: float = 2.0
    lora_learning_rate: float = 5e-4
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    warmup: float = 0.02
    spoken_weight: float = 0.0
    augmented: float = 0.0
    dpo_beta: float = 0.1
    dpo_sft_weight: float = 0.0
    batch_tokens: int = 1536
    steps: int = 1000
    minutes: float = 0.0
    save_every: int = 50
    recompute: bool = False
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"
    resume: str = "auto"
    workers: int = 0

    def __post_init__(self) -> None:
        kinds = {"str": str, "int": int, "float": int | float, "bool": bool}
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, kinds[str(field.type)]) or (isinstance(value, bool) and field.type != "bool"):
                hint = " (YAML takes 1e-3 for a text; write 1.0e-3)" if field.type == "float" else ""
                raise UsageError(f"{field.name} must be of type {field.type}, got {value!r}{hint}")
        for name in ("lora_rank", "batch_tokens", "steps", "save_every", "clip_norm", "dpo_beta"):
            _check(getattr(self, name) > 0, name, "above 0", getattr(self, name))
        for name in ("minutes", "spoken_weight", "dpo_sft_weight", "workers"):
            _check(getattr(self, name) >= 0, name, "at least 0", getattr(self, name))
        for name, known in _CHOICES.items():
            _check(getattr(self, name) in known, name, f"one of {', '.join(known)}", getattr(self, name))
        _check(0 <= self.warmup < 1, "warmup", "a share of the run, at least 0 and below 1", self.warmup)
        _check(0 <= self.augmented <= 1, "augmented", "a share, 0 to 1", self.augmented)


def _check(valid: bool, name: str, rule: str, got: object) -> None:
    if not valid:
        raise UsageError(f"{name} must be {rule}, got {got!r}")


_CHOICES = {
    "stage": ("pretrain", "sft", "dpo"),
    "precision": ("auto", "float32", "bfloat16"),
    "resume": ("auto", "never"),
}


def load_train_config(path: Path, changes: Sequence[str] = ()) -> TrainConfig:
    """Read a YAML file; an unknown key is an error that names the nearest valid one.

    Args:
        changes: `key=value` texts that replace what the file says; values are read as YAML.
    """
    import yaml

    try:
        values: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise UsageError(f"{path} must hold `name: value` lines")
        for change in changes:
            key, equals, value = change.partition("=")
            if not equals:
                raise UsageError(f"{change!r} changes nothing; write key=value")
            values[key] = "" if not value else yaml.safe_load(value)
    except (OSError, yaml.YAMLError) as error:
        raise UsageError(f"cannot read the training configuration {path}: {error}") from error
    known = {field.name: field for field in fields(TrainConfig)}
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            raise UsageError(f"{path}: unknown key {key!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    try:
        return TrainConfig(**values)
    except TypeError as error:
        raise UsageError(f"{path}: {error}") from error
