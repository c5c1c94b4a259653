"""`TrainConfig`: everything a training run depends on, read from YAML."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from qwen2_audio.errors import UsageError


@dataclass(frozen=True, slots=True)
class GroupConfig:
    """How one part of the model learns.

    Attributes:
        learn: "frozen", "full" (all its weights) or "lora" (a low-rank correction of its linear layers).
        learning_rate: at the schedule's peak.
        rank: of the corrections.
        alpha: their scale is alpha / rank, or alpha / sqrt(rank) for "rslora".
        targets: last names of the linear layers that are corrected, all when empty.
        layers: numbers of the transformer's layers that learn, from 0; all, and what stands outside them, when empty.
        kind: "lora" (Hu et al. 2021), "rslora" (Kalajdzievski 2023) or "dora" (Liu et al. 2024).
    """

    learn: str = "frozen"
    learning_rate: float = 1e-4
    rank: int = 16
    alpha: float = 32.0
    targets: tuple[str, ...] = ()
    layers: tuple[int, ...] = ()
    kind: str = "lora"

    def __post_init__(self) -> None:
        _check_types(self)
        _check_choice(self, "learn", ("frozen", "full", "lora"))
        _check_choice(self, "kind", ("lora", "rslora", "dora"))
        _check(self.rank > 0, "rank", "above 0", self.rank)
        _check(self.alpha > 0, "alpha", "above 0", self.alpha)
        _check(self.learning_rate >= 0, "learning_rate", "at least 0", self.learning_rate)
        rule = 'left out where a part learns in full: they are for learn "lora" (layers may be chosen)'
        _check(self.learn != "full" or not self.targets, "targets", rule, self.targets)

    @property
    def scale(self) -> float:
        """What the product of both low-rank matrices is multiplied by."""
        return self.alpha / (self.rank**0.5 if self.kind == "rslora" else self.rank)


@dataclass(frozen=True, slots=True)
class EvalConfig:
    """Measuring while training.

    Attributes:
        data: JSON-lines file of the same shapes, or "" to measure nothing.
        every: steps between two measurements; there is one before the first step and one at the end, too.
        metric: "loss", or of generated answers "wer", "cer" (lower is better) or "accuracy" (equal texts; higher is better).
        samples: rows that answers are generated for, from the file's start; the loss is measured on all.
        max_new_tokens: of a generated answer.
    """

    data: str = ""
    every: int = 100
    metric: str = "loss"
    samples: int = 32
    max_new_tokens: int = 64

    def __post_init__(self) -> None:
        _check_types(self)
        _check_choice(self, "metric", ("loss", "wer", "cer", "accuracy"))
        for name in ("every", "samples", "max_new_tokens"):
            _check(getattr(self, name) > 0, name, "above 0", getattr(self, name))
        if self.metric != "loss" and not self.data:
            raise UsageError(f"evaluation.metric={self.metric} needs evaluation.data, the rows to measure on")


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """One run.

    Attributes:
        stage: "pretrain", "sft" (both learn the next token) or "dpo" (learns from pairs of answers).
        model: the checkpoint to start from: a folder or any name that `load` takes.
        start: what another run trained, to go on from (or a file of whole tensors), or "".
        data: a source of rows, or several with their weights; see `qwen2_audio.training.datasets`.
        shuffle: read the rows in another order in each repetition.
        out: folder for the run's checkpoints, log and result.
        encoder, projector, language_model, embeddings, head: how each part of the model learns.
        next_token_weight: weight of the loss of the next token; with 0 the language model is not run at all.
        spoken_weight: weight of `SpokenTokenLoss` beside it, 0 for none; it needs rows with "spoken".
        spoken_merges: rules of the tokenizer's byte-pair encoding that put together the pieces which it tells apart; the fewer,
            the shorter the pieces, and the oftener each of them is heard.
        augmented: share of the recordings that are changed at random, each time anew; see `training.augment`.
        misread: share of a transcript's tokens that the model reads back as others, so that it has to hear what comes next and
            cannot guess it from what was written; it needs rows with "spoken".
        distil: share of the loss of an answer to a recording alone, of which "spoken" is known, or to writing alone, that is
            how far the model is from what the language model without LoRA expects after the same words in writing (Hinton
            et al. 2015).
        distil_states: beside `distil`, weight of how far the states of all layers are from those with which it reads, where
            the words of the question are heard and from its end on; the first tokens of an answer then count more. See
            `training.distil`.
        dpo_beta: how closely "dpo" keeps to the reference; greater is closer.
        dpo_sft_weight: weight of the chosen answers' own next-token loss beside it.
        batch_tokens: tokens in one pack; a step takes `accumulate` packs on each process.
        accumulate: packs whose gradients are added up for one step.
        recompute: keep only the layers' inputs and compute the rest again in the backward pass: a third more work for a
            fraction of the memory.
        feature_cache: folder in which a frozen encoder's outputs are kept, or "".
        steps: optimizer steps; the data is read again from its start when it ends.
        minutes: when above 0, the schedule follows the clock and the run ends after so many minutes of training.
        schedule: of the learning rates behind the warm-up: "cosine" (to 2 %), "linear" (to 2 %) or "constant".
        warmup: share of the run in which the learning rates rise.
        save_every: steps between two checkpoints.
        keep: how many of the latest checkpoints stay; the best by `evaluation.metric` stays too.
        precision: of products and activations (weights that learn stay in float32): "float32", "bfloat16" (autocast),
            or "auto": bfloat16 where the device multiplies it natively.
        quantize: "nf4" keeps frozen linear layers in 4 bits (QLoRA, Dettmers et al. 2023; needs bitsandbytes), "" does not.
        resume: "auto": go on where the run in `out` was stopped; "never": refuse a folder that holds one.
        workers: threads that read and prepare recordings ahead of the model; 0: none.
        trackers: where the log goes beside log.jsonl: any of "tensorboard", "wandb", "swanlab".
    """

    model: str
    data: str | Mapping[str, float]
    out: str
    stage: str = "pretrain"
    start: str = ""
    shuffle: bool = True
    encoder: GroupConfig = field(default_factory=GroupConfig)
    projector: GroupConfig = field(default_factory=lambda: GroupConfig("full", 1e-3))
    language_model: GroupConfig = field(default_factory=lambda: GroupConfig("lora", 5e-4))
    embeddings: GroupConfig = field(default_factory=GroupConfig)
    head: GroupConfig = field(default_factory=GroupConfig)
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    next_token_weight: float = 1.0
    spoken_weight: float = 0.0
    spoken_merges: int = 1000
    augmented: float = 0.0
    misread: float = 0.0
    distil: float = 0.0
    distil_states: float = 0.0
    dpo_beta: float = 0.1
    dpo_sft_weight: float = 0.0
    batch_tokens: int = 1536
    accumulate: int = 1
    recompute: bool = False
    feature_cache: str = ""
    steps: int = 1000
    minutes: float = 0.0
    schedule: str = "cosine"
    warmup: float = 0.02
    save_every: int = 50
    keep: int = 2
    evaluation: EvalConfig = field(default_factory=EvalConfig)
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"
    quantize: str = ""
    resume: str = "auto"
    workers: int = 0
    trackers: tuple[str, ...] = ("tensorboard",)

    def __post_init__(self) -> None:
        _check_types(self)
        positive = "spoken_merges batch_tokens accumulate steps save_every keep clip_norm dpo_beta"
        for name in positive.split():
            _check(getattr(self, name) > 0, name, "above 0", getattr(self, name))
        not_negative = "minutes next_token_weight spoken_weight distil_states dpo_sft_weight workers weight_decay seed"
        for name in not_negative.split():
            _check(getattr(self, name) >= 0, name, "at least 0", getattr(self, name))
        _check_choice(self, "stage", ("pretrain", "sft", "dpo"))
        _check_choice(self, "precision", ("auto", "float32", "bfloat16"))
        _check_choice(self, "quantize", ("", "nf4"))
        _check_choice(self, "resume", ("auto", "never"))
        _check_choice(self, "schedule", ("cosine", "linear", "constant"))
        _check(0 <= self.warmup < 1, "warmup", "a share of the run, at least 0 and below 1", self.warmup)
        for name in ("augmented", "misread", "distil"):
            _check(0 <= getattr(self, name) <= 1, name, "a share, 0 to 1", getattr(self, name))
        if self.distil and (
            self.language_model.learn == "full" or {self.embeddings.learn, self.head.learn} != {"frozen"}
        ):
            raise UsageError(
                "distil needs the language model as it was; let it learn by lora, and freeze embeddings and head"
            )
        if self.stage == "dpo":
            for name in ("next_token_weight", "spoken_weight", "misread", "distil", "distil_states"):
                neutral, got = int(name == "next_token_weight"), getattr(self, name)
                _check(got == neutral, name, f'{neutral} in stage "dpo", which does not use it', got)
        else:
            usual = {entry.name: entry.default for entry in fields(self)}
            for name in ("dpo_beta", "dpo_sft_weight"):
                rule = f'left out in stage "{self.stage}", which does not use it'
                _check(getattr(self, name) == usual[name], name, rule, getattr(self, name))
        for name in ("misread", "distil"):
            rule = "0 where next_token_weight is 0"
            _check(bool(self.next_token_weight) or not getattr(self, name), name, rule, getattr(self, name))
        if self.distil_states and not self.distil:
            raise UsageError("distil_states goes beside distil; set distil, too, or distil_states to 0")
        if self.spoken_weight and self.embeddings.learn != "frozen":
            raise UsageError("spoken_weight needs the embeddings as they are; freeze them, or set it to 0")
        for name in ("language_model", "head"):
            if not self.next_token_weight and getattr(self, name).learn != "frozen":
                raise UsageError(f"next_token_weight 0 leaves the language model out; freeze it: {name}.learn=frozen")
        if not self.next_token_weight and not self.spoken_weight:
            raise UsageError("next_token_weight and spoken_weight are both 0; there is nothing to learn")
        for name in self.trackers:
            _check(name in TRACKERS, "trackers", f"any of {', '.join(TRACKERS)}", name)
        _check(bool(self.data), "data", "a source of rows, or several", self.data)
        for weight in self.data.values() if isinstance(self.data, Mapping) else ():
            _check(isinstance(weight, int | float) and weight > 0, "data", "sources with weights above 0", weight)


TRACKERS = ("tensorboard", "wandb", "swanlab")
GROUPS = ("encoder", "projector", "language_model", "embeddings", "head")
"""The parts of the model, by their names in `TrainConfig`."""


def _check(valid: bool, name: str, rule: str, got: object) -> None:
    if not valid:
        raise UsageError(f"{name} must be {rule}, got {got!r}")


def _check_choice(config: Any, name: str, known: Sequence[str]) -> None:
    value = getattr(config, name)
    _check(value in known, name, f"one of {', '.join(word or 'empty' for word in known)}", value)


_KINDS: dict[str, Any] = {
    "str": str,
    "int": int,
    "float": int | float,
    "bool": bool,
    "tuple[str, ...]": tuple,
    "tuple[int, ...]": tuple,
    "str | Mapping[str, float]": str | Mapping,
}


def _check_types(config: Any) -> None:
    for entry in fields(config):
        value, kind = getattr(config, entry.name), str(entry.type)
        wanted = _KINDS.get(kind)
        if wanted is None:  # a nested configuration, which checks itself
            wanted = (GroupConfig, EvalConfig)
        if not isinstance(value, wanted) or (isinstance(value, bool) and kind != "bool"):
            hint = " (YAML takes 1e-3 for a text; write 1.0e-3)" if kind == "float" else ""
            raise UsageError(f"{entry.name} must be of type {kind}, got {value!r}{hint}")


def load_train_config(path: Path, changes: Sequence[str] = (), stage: str = "") -> TrainConfig:
    """Read a YAML file; an unknown key is an error that names the nearest valid one.

    Args:
        stage: the one that is asked for; a file of another one is refused.
        changes: `key=value` texts that replace what the file says, `group.key=value` inside a group; values are read as
            YAML, except where a text is wanted.
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
            _put(values, key, value if _is_text(key) and not value.startswith("{") else yaml.safe_load(value or "''"))
        if stage and values.setdefault("stage", stage) != stage:
            raise UsageError(
                f"{path} is for stage {values['stage']!r}, not {stage!r}; give another file, or stage={stage}"
            )
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"cannot read the training configuration {path}: {error}") from error
    try:
        return _build(TrainConfig, values, "")
    except (UsageError, TypeError) as error:
        raise UsageError(f"{path}: {error}") from error


def _is_text(key: str) -> bool:
    """Whether a key, `group.key` too, holds a text, which is then taken as it is."""
    kinds = {field.name: str(field.type) for field in fields(TrainConfig)}
    kinds |= {f"evaluation.{field.name}": str(field.type) for field in fields(EvalConfig)}
    kinds |= {f"{group}.{field.name}": str(field.type) for group in GROUPS for field in fields(GroupConfig)}
    return kinds.get(key, "").startswith("str")


def _put(values: dict[str, Any], key: str, value: Any) -> None:
    *outer, last = key.split(".")
    for name in outer:
        if not isinstance(values.setdefault(name, {}), dict):
            raise UsageError(f"{key}: {name} has no parts")
        values = values[name]
    values[last] = value


def _build(kind: Any, values: Mapping[str, Any], inside: str) -> Any:
    """A (nested) configuration from what was read; defaults of a group are those of the whole configuration."""
    known = {entry.name: entry for entry in fields(kind)}
    arguments: dict[str, Any] = {}
    for key, value in values.items():
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            raise UsageError(
                f"unknown key {inside + str(key)!r}" + (f"; did you mean {inside + near[0]!r}?" if near else "")
            )
        default: Any = known[key].default_factory
        if callable(default) and is_dataclass(start := default()):
            if not isinstance(value, Mapping):
                raise UsageError(f"{key} must hold `name: value` lines, got {value!r}")
            given = {entry.name: getattr(start, entry.name) for entry in fields(start)} | dict(value)
            arguments[key] = _build(type(start), given, f"{key}.")
        else:
            arguments[key] = tuple(value) if isinstance(value, list) else value
    try:
        return kind(**arguments)
    except UsageError as error:
        raise UsageError(f"{inside}{error}") from None
