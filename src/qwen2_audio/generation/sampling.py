"""Choosing the next token, with the semantics of `transformers`: penalty, least length, temperature, top-k, top-p, min-p, in
this order.

Each sequence draws from its own generator, so that an answer does not depend on what else is in the batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qwen2_audio.generation.options import GenerationOptions


class Sampler:
    """Chooses tokens for one sequence."""

    def __init__(
        self, options: GenerationOptions, prompt_ids: list[int], vocab_size: int, end_ids: frozenset[int] = frozenset()
    ) -> None:
        self._options = options
        self._end_ids = torch.tensor(sorted(token for token in end_ids if token < vocab_size), dtype=torch.long)
        self._owed = options.min_new_tokens  # tokens that must be chosen before one of these
        self._random = torch.Generator()
        if options.seed is None:
            self._random.seed()
        else:
            self._random.manual_seed(options.seed)
        self._seen: Tensor | None = None
        if options.repetition_penalty != 1:
            self._seen = torch.zeros(vocab_size, dtype=torch.bool)
            self._seen[torch.tensor(prompt_ids)] = True

    @property
    def plain(self) -> bool:
        """Whether the choice is nothing but the greatest logit."""
        return self._options.temperature == 0 and self._seen is None and self._owed == 0

    def choose(self, logits: Tensor) -> int:
        """The next token for logits [vocab_size]."""
        options = self._options
        scores = logits.float().cpu()
        if self._seen is not None:
            scores = penalise(scores, self._seen, options.repetition_penalty)
        if self._owed:
            scores = scores.index_fill(0, self._end_ids, -torch.inf)
            self._owed -= 1
        if options.temperature == 0:
            token = int(scores.argmax())
        else:
            scores = restrict(scores / options.temperature, options)
            token = int(torch.multinomial(scores.softmax(-1), 1, generator=self._random))
        if self._seen is not None:
            self._seen[token] = True
        return token


def penalise(scores: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Repetition penalty on the tokens marked in `seen`, bool [vocab_size] (Keskar et al. 2019)."""
    return torch.where(seen, torch.where(scores < 0, scores * penalty, scores / penalty), scores)


def restrict(scores: Tensor, options: GenerationOptions) -> Tensor:
    """Set the scores [vocab_size] of all tokens that top-k, top-p and min-p exclude to minus infinity."""
    if 0 < options.top_k < scores.shape[-1]:
        scores = scores.masked_fill(scores < scores.topk(options.top_k).values[-1], -torch.inf)
    if options.top_p < 1:
        ascending, order = scores.sort()
        excluded = ascending.softmax(-1).cumsum(-1) <= 1 - options.top_p
        excluded[-1] = False
        scores = scores.masked_fill(torch.zeros_like(excluded).scatter(0, order, excluded), -torch.inf)
    if options.min_p > 0:
        probabilities = scores.softmax(-1)
        scores = scores.masked_fill(probabilities < options.min_p * probabilities.max(), -torch.inf)
    return scores
