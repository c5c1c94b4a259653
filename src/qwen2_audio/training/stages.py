"""What a stage of training is: its examples, how they are packed, and the loss. Everything else is the trainer's.

Pre-training and supervised fine-tuning learn the next token and differ in their data alone: the base model's bare prompts, or
conversations. Direct preference optimisation (Rafailov et al. 2023) learns from pairs of answers to the same question.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor

from qwen2_audio.errors import UsageError
from qwen2_audio.model.qwen2_audio import Qwen2Audio
from qwen2_audio.processing.processor import Processor
from qwen2_audio.training.collate import Pack, pack, pack_pairs
from qwen2_audio.training.config import TrainConfig
from qwen2_audio.training.datasets import Build, Built, Example, Rows, build_example, build_pair, misread
from qwen2_audio.training.feature_cache import FeatureCache
from qwen2_audio.training.lora import is_lora, without_lora
from qwen2_audio.training.losses import SpokenTokenLoss, answer_log_probs, hear, next_token_loss, preference_loss
from qwen2_audio.training.reference import LogProbs, kept_log_probs, stamp

Shown: TypeAlias = dict[str, tuple[float, float]]
"""For the log: each value as (sum, how many it is the sum of)."""


class Stage(Protocol):
    """`Item` is whatever a position of the data gives; the trainer only passes it on."""

    dataset: Rows[Any]

    def item(self, position: int) -> Any:
        """What stands at a position of the data, which counts on over its end into its next repetition."""

    def size(self, item: Any) -> int:
        """Tokens that the item takes in a pack."""

    def pack(self, items: Sequence[Any]) -> Pack:
        """Items to one batch."""

    def count(self, batch: Pack) -> float:
        """Of what the loss of a batch is a sum; a step divides once, by those of all its packs on all processes."""

    def sums(self, model: Qwen2Audio, batch: Pack) -> tuple[Tensor, Shown]:
        """The loss of a batch, a sum, and what it shows."""


class NextToken:
    """Pre-training and supervised fine-tuning."""

    def __init__(self, config: TrainConfig, model: Qwen2Audio, processor: Processor) -> None:
        self.dataset = _rows(config, processor, build_example)
        self._cache = _cache(config, model)
        self._weight, self._next_weight = config.spoken_weight, config.next_token_weight
        self._misread, self._seed = config.misread, config.seed
        self._distil, self._distil_states = config.distil, config.distil_states
        self._spoken: SpokenTokenLoss | None = None
        if config.spoken_weight:
            self._pieces = processor.tokenizer.in_pieces(config.spoken_merges)
            vocabulary = {token for text in self.dataset.said() for token in self._pieces.encode(" " + text)}
            if not vocabulary:
                raise UsageError(f'spoken_weight needs rows with "spoken", and {config.data} has none')
            self._spoken = SpokenTokenLoss(model.language_model.model.embed_tokens.weight, sorted(vocabulary))

    def item(self, position: int) -> Example:
        example = self.dataset[position]
        if self._misread and example.transcript:
            example = misread(example, self._misread, np.random.default_rng((self._seed, position, 1)))
        if self._spoken is None or not example.said:
            return example
        return replace(example, spoken=self._pieces.encode(" " + example.said))

    def size(self, item: Example) -> int:
        return len(item.ids)

    def pack(self, items: Sequence[Example]) -> Pack:
        return pack(items)

    def count(self, batch: Pack) -> float:
        return float(batch.weights.sum()) if self._next_weight else sum(map(len, batch.spoken))

    def sums(self, model: Qwen2Audio, batch: Pack) -> tuple[Tensor, Shown]:
        audio = hear(model, batch, self._cache)
        loss = torch.zeros((), device=model.device)
        shown: Shown = {}
        if self._next_weight:
            following = next_token_loss(model, batch, audio, self._distil, self._distil_states)
            shown["loss"] = (float(following.detach()), self.count(batch))
            loss = loss + self._next_weight * following
        if self._spoken is not None:
            spoken = self._spoken(audio, batch) if audio is not None else loss.new_zeros(())
            shown["spoken"] = (float(spoken.detach()), sum(map(len, batch.spoken)))
            loss = loss + self._weight * spoken
        return loss, shown


class Preference:
    """Direct preference optimisation. A clip is encoded once for both answers.

    The reference is the model as it was: where only a new LoRA learns, the same model without it; else its log-probabilities,
    computed once before the first step and kept beside the run.
    """

    def __init__(
        self, config: TrainConfig, model: Qwen2Audio, processor: Processor, say: Callable[[str], None], name: str
    ) -> None:
        self.dataset = _rows(config, processor, build_pair)
        self._cache = _cache(config, model)
        self._beta, self._sft_weight = config.dpo_beta, config.dpo_sft_weight
        self._kept: LogProbs | None = None
        only_lora = all(is_lora(name) for name, p in model.named_parameters() if p.requires_grad)
        if config.start or not only_lora:
            if config.augmented:
                raise UsageError(
                    "augmented needs a reference that hears the same; set it to 0, or train only a new LoRA"
                )
            path = Path(config.out) / f"{name}.jsonl"
            dtype = "bfloat16" if torch.is_autocast_enabled(model.device.type) else "float32"
            self._kept = kept_log_probs(
                self.dataset,
                path,
                lambda batch: answer_log_probs(model, batch, hear(model, batch, self._cache)),
                config.batch_tokens,
                f"{stamp(config.model)}\n{stamp(config.start)}\n{dtype} {config.quantize}",
                say,
            )

    def item(self, position: int) -> tuple[int, Example, Example]:
        return self.dataset.mixture.number(position), *self.dataset[position]

    def size(self, item: tuple[int, Example, Example]) -> int:
        return len(item[1].ids) + len(item[2].ids)

    def pack(self, items: Sequence[tuple[int, Example, Example]]) -> Pack:
        return pack_pairs(items)

    def count(self, batch: Pack) -> float:
        return len(batch.lengths) // 2

    def sums(self, model: Qwen2Audio, batch: Pack) -> tuple[Tensor, Shown]:
        learnt = answer_log_probs(model, batch, hear(model, batch, self._cache))
        if self._kept is None:
            with torch.no_grad(), without_lora(model):
                reference = answer_log_probs(model, batch, hear(model, batch, self._cache))
        else:
            reference = torch.tensor([self._kept[row] for row in batch.rows], device=learnt.device).flatten()
        chosen, rejected = learnt[0::2], learnt[1::2]
        losses = preference_loss(chosen, rejected, reference[0::2], reference[1::2], self._beta)
        margins = self._beta * ((chosen - reference[0::2]) - (rejected - reference[1::2])).detach()
        pairs = len(losses)
        shown: Shown = {
            "loss": (float(losses.detach().sum()), pairs),
            "margin": (float(margins.sum()), pairs),
            "accuracy": (float((margins > 0).sum()), pairs),
        }
        objective = losses.sum()
        if self._sft_weight:
            tokens = batch.targets_of_sequences[0::2].to(chosen.device)
            objective = objective - self._sft_weight * (chosen / tokens).sum()
        return objective, shown


def _rows(config: TrainConfig, processor: Processor, build: Build[Built]) -> Rows[Built]:
    return Rows(config.data, processor, build, augmented=config.augmented, shuffle=config.shuffle, seed=config.seed)


def _cache(config: TrainConfig, model: Qwen2Audio) -> FeatureCache | None:
    if not config.feature_cache:
        return None
    if config.augmented or any(parameter.requires_grad for parameter in model.audio_tower.parameters()):
        raise UsageError("feature_cache is for an encoder that is frozen and hears the same each time; leave it out")
    return FeatureCache(Path(config.feature_cache), model.audio_tower)


def make_stage(
    config: TrainConfig, model: Qwen2Audio, processor: Processor, say: Callable[[str], None], name: str = "reference"
) -> Stage:
    """The stage that the configuration names.

    Args:
        name: of the file in which log-probabilities of the reference are kept.
    """
    if config.stage == "dpo":
        return Preference(config, model, processor, say, name)
    return NextToken(config, model, processor)
