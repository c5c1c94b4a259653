"""Measuring a model while it learns: the loss on rows that it does not learn, and how good the answers are that it gives."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from operator import itemgetter
from typing import Any

import torch
from torch import nn

from qwen2_audio.errors import UsageError
from qwen2_audio.generation.engine import Engine as Generator
from qwen2_audio.generation.engine import Request
from qwen2_audio.generation.options import GenerationOptions
from qwen2_audio.generation.reply import answer_all
from qwen2_audio.model.qwen2_audio import Qwen2Audio
from qwen2_audio.processing.mel import Clip
from qwen2_audio.processing.processor import Processor
from qwen2_audio.processing.tokenizer import END_OF_TEXT, IM_END
from qwen2_audio.training.collate import Pack, pack_by_tokens
from qwen2_audio.training.config import TrainConfig
from qwen2_audio.training.datasets import Example, Rows, build_example
from qwen2_audio.training.stages import Stage, make_stage

_AT_ONCE = 8
LOWER_IS_BETTER = {"loss": True, "wer": True, "cer": True, "accuracy": False}


@dataclass(frozen=True, slots=True)
class Question:
    """A row whose last answer is to be given by the model: its prompt as ids, and the answer in the data."""

    prompt: list[int]
    clips: list[Clip]
    answer: str


class Validation:
    """What is measured, and on which rows."""

    def __init__(self, config: TrainConfig, model: Qwen2Audio, processor: Processor) -> None:
        settings = config.evaluation
        spoken = 0.0 if config.next_token_weight else config.spoken_weight  # held-out rows need not say what is spoken
        held_out = replace(
            config,
            data=settings.data,
            shuffle=False,
            augmented=0.0,
            misread=0.0,
            distil=0.0,
            distil_states=0.0,
            feature_cache="",
            spoken_weight=spoken,
        )
        self.settings, self._processor = settings, processor
        self.stage: Stage = make_stage(held_out, model, processor, lambda _: None, name="evaluation")
        count = len(self.stage.dataset)
        self._batch_tokens = config.batch_tokens
        self._rows = range(count)
        self._groups: list[list[int]] = []
        """The rows of each pack, once they are known."""
        self._questions: list[Question] = []
        if settings.metric != "loss":
            if find_spec("rapidfuzz") is None:
                raise UsageError(f"evaluation.metric={settings.metric} needs rapidfuzz: pip install rapidfuzz")
            if config.stage == "dpo":
                raise UsageError(
                    'evaluation.metric of "dpo" is "loss" (its log also has how often the chosen answer wins)'
                )
            rows = Rows(settings.data, processor, build_example)
            self._questions = [_question(rows.row(i), processor) for i in range(min(count, settings.samples))]

    def packs(self, rank: int, world: int) -> Iterator[tuple[Pack, float]]:
        """This process' packs with their weights; all processes get as many, some of weight 0."""
        if not self._groups:
            sizes = ((row, self.stage.size(self.stage.item(row))) for row in self._rows)
            self._groups = [
                [row for row, _ in group] for group in pack_by_tokens(sizes, self._batch_tokens, itemgetter(1))
            ]
        most = -(-len(self._groups) // world)
        mine = self._groups[rank::world]
        weights = [1.0] * len(mine) + [0.0] * (most - len(mine))
        mine += self._groups[:1] * (most - len(mine))
        for group, weight in zip(mine, weights, strict=True):
            yield self.stage.pack([self.stage.item(row) for row in group]), weight

    def losses(
        self, learner: nn.Module, agreed: Callable[[Pack], Pack], rank: int, world: int, add_up: Callable[[Any], Any]
    ) -> dict[str, float]:
        """Means over all rows, by name, with "eval_" before them.

        Args:
            agreed: makes a pack ready for processes that run in step.
            add_up: numbers over all processes.
        """
        sums: dict[str, list[float]] = {}
        with torch.no_grad():
            for batch, weight in self.packs(rank, world):
                _, shown = learner(self.stage, agreed(batch), 1.0)
                for name, (total, count) in shown.items():
                    both = sums.setdefault(name, [0.0, 0.0])
                    both[0] += weight * total
                    both[1] += weight * count
        totals = add_up(torch.tensor([value for both in sums.values() for value in both], dtype=torch.float64)).tolist()
        return {f"eval_{name}": totals[2 * i] / (totals[2 * i + 1] or 1.0) for i, name in enumerate(sums)}

    def answers(self, model: Qwen2Audio) -> dict[str, float]:
        """The metric of the answers that the model gives, greedily; {} where only the loss is wanted."""
        if not self._questions:
            return {}
        tokenizer = self._processor.tokenizer
        ends = [tokenizer.id_of(token) for token in (IM_END, END_OF_TEXT)]
        generator = Generator(model, tokenizer, frozenset(end for end in ends if end is not None))
        options = GenerationOptions(temperature=0.0, max_new_tokens=self.settings.max_new_tokens)
        given: list[str] = []
        with torch.no_grad():
            for start in range(0, len(self._questions), _AT_ONCE):
                part = self._questions[start : start + _AT_ONCE]
                requests = [Request(q.prompt, q.clips, options) for q in part]
                given += [reply.text for reply in answer_all(generator, requests)]
        wanted = [question.answer for question in self._questions]
        return {f"eval_{self.settings.metric}": score(self.settings.metric, wanted, given)}


def _question(example: Example, processor: Processor) -> Question:
    end = max(i for i, learnt in enumerate(example.learnt) if learnt) + 1
    start = end
    while start and example.learnt[start - 1]:
        start -= 1
    prompt, clips = example.ids[:start], []
    heard = prompt.count(processor.audio_token_id)
    for clip in example.clips:  # those of the prompt; a later turn may have its own
        if heard < clip.tokens:
            break
        clips.append(clip)
        heard -= clip.tokens
    return Question(prompt, clips, processor.tokenizer.decode(example.ids[start:end], skip_special=True))


def score(metric: str, wanted: Sequence[str], given: Sequence[str]) -> float:
    """Error rate over all words ("wer") or characters ("cer"), or the share of equal answers ("accuracy"); case, punctuation
    and spaces at the ends do not count."""
    from rapidfuzz.distance import Levenshtein

    pairs = [(_plain(a), _plain(b)) for a, b in zip(wanted, given, strict=True)]
    if metric == "accuracy":
        return sum(a == b for a, b in pairs) / len(pairs)
    units = [(a.split(), b.split()) if metric == "wer" else (list(a), list(b)) for a, b in pairs]
    return sum(Levenshtein.distance(a, b) for a, b in units) / max(sum(len(a) for a, _ in units), 1)


def _plain(text: str) -> str:
    return " ".join(re.sub(r"[^\w' ]+", " ", text.lower()).split())
