"""Choosing the next token, with the semantics of `transformers` and, where that has none, of OpenAI's API: penalties and
bias, least length, grammar, temperature, top-k, top-p, min-p, in this order.

Each sequence draws from its own generator, so that an answer does not depend on what else is in the batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from qwen2_audio.errors import UsageError
from qwen2_audio.generation.grammar import Grammar
from qwen2_audio.generation.options import GenerationOptions
from qwen2_audio.generation.sequence import Choice


class Sampler:
    """Chooses tokens for one sequence.

    Args:
        end_ids: tokens that are not chosen before `min_new_tokens` others were.
        grammar: what the answer must obey.

    Raises:
        UsageError: `logit_bias` names a token that the model does not have.
    """

    def __init__(
        self,
        options: GenerationOptions,
        prompt_ids: list[int],
        vocab_size: int,
        end_ids: frozenset[int] = frozenset(),
        grammar: Grammar | None = None,
    ) -> None:
        self._options = options
        ends = end_ids.union(options.stop_token_ids)
        self._end_ids = torch.tensor(sorted(token for token in ends if token < vocab_size), dtype=torch.long)
        self._owed = options.min_new_tokens  # tokens that must be chosen before one of these
        self._grammar = grammar
        self._random = torch.Generator()
        if options.seed is None:
            self._random.seed()
        else:
            self._random.manual_seed(options.seed)
        self._seen: Tensor | None = None
        if options.repetition_penalty != 1:
            self._seen = torch.zeros(vocab_size, dtype=torch.bool)
            self._seen[torch.tensor(prompt_ids)] = True
        penalised = options.presence_penalty != 0 or options.frequency_penalty != 0
        self._counts = torch.zeros(vocab_size) if penalised else None  # of the answer's tokens
        self._bias = _bias_of(options.logit_bias, vocab_size)

    @property
    def plain(self) -> bool:
        """Whether the choice is nothing but the greatest logit."""
        changes = (self._seen, self._counts, self._bias, self._grammar)
        return self._options.temperature == 0 and self._owed == 0 and all(change is None for change in changes)

    def choose(self, logits: Tensor) -> int:
        """The next token for logits [vocab_size]."""
        scores = self._weighed(logits.float().cpu())
        if self._options.temperature == 0:
            token = int(scores.argmax())
        else:
            scores = restrict(scores / self._options.temperature, self._options)
            token = int(torch.multinomial(scores.softmax(-1), 1, generator=self._random))
        if self._seen is not None:
            self._seen[token] = True
        if self._counts is not None:
            self._counts[token] += 1
        if self._grammar is not None:
            self._grammar.push(token)
        return token

    def report(self, token: int, logits: Tensor) -> Choice:
        """A token chosen for logits [vocab_size], with the log-probabilities that are wanted."""
        ended = self._grammar is not None and self._grammar.complete
        failed = self._grammar is not None and self._grammar.failed
        if self._options.logprobs is None:
            return Choice(token, ended=ended, failed=failed)
        logprobs = logits.float().log_softmax(-1)
        best = logprobs.topk(min(self._options.logprobs, logprobs.shape[-1]))
        top = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
        return Choice(token, float(logprobs[token]), top, ended, failed)

    def _weighed(self, scores: Tensor) -> Tensor:
        """Penalties, bias, least length and grammar."""
        if self._seen is not None:
            scores = penalise(scores, self._seen, self._options.repetition_penalty)
        if self._counts is not None:
            taken = self._options.frequency_penalty * self._counts
            scores = scores - taken - self._options.presence_penalty * (self._counts > 0)
        if self._bias is not None:
            scores = scores.index_add(0, *self._bias)
        allowed = self._grammar.allowed() if self._grammar is not None else b""
        if allowed:
            forbidden = torch.frombuffer(bytearray(allowed), dtype=torch.uint8) == 0
            scores = scores.masked_fill(forbidden, -torch.inf)
        if self._owed:
            self._owed -= 1
            without_end = scores.index_fill(0, self._end_ids, -torch.inf)
            if bool((without_end > -torch.inf).any()):  # else a grammar allows nothing but the end
                scores = without_end
        return scores


def choose(logits: Tensor, samplers: Sequence[Sampler]) -> list[Choice]:
    """The next token of several sequences for logits [rows, vocab_size]."""
    greatest = logits.argmax(-1).tolist()
    return [
        sampler.report(best if sampler.plain else sampler.choose(row), row)
        for sampler, best, row in zip(samplers, greatest, logits, strict=True)
    ]


def _bias_of(pairs: Sequence[tuple[int, float]], vocab_size: int) -> tuple[Tensor, Tensor] | None:
    unknown = [token for token, _ in pairs if token >= vocab_size]
    if unknown:
        raise UsageError(f"logit_bias names the token {unknown[0]}, the model has {vocab_size}, counted from 0")
    if not pairs:
        return None
    return torch.tensor([token for token, _ in pairs]), torch.tensor([float(bias) for _, bias in pairs])


def penalise(scores: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Repetition penalty on the tokens marked in `seen`, bool [vocab_size] (Keskar et al. 2019)."""
    return torch.where(seen, torch.where(scores < 0, scores * penalty, scores / penalty), scores)


def restrict(scores: Tensor, options: GenerationOptions) -> Tensor:
    """Set the scores [vocab_size] of all tokens that top-k, top-p and min-p exclude to minus infinity."""
    if not 0 < options.top_k < scores.shape[-1]:
        return _likeliest(scores, options)
    kept = (scores >= scores.topk(options.top_k).values[-1]).nonzero()[:, 0]  # the rest need not be sorted
    return torch.full_like(scores, -torch.inf).scatter(0, kept, _likeliest(scores[kept], options))


def _likeliest(scores: Tensor, options: GenerationOptions) -> Tensor:
    if options.top_p < 1:
        ascending, order = scores.sort()
        excluded = ascending.softmax(-1).cumsum(-1) <= 1 - options.top_p
        excluded[-1] = False
        scores = scores.masked_fill(torch.zeros_like(excluded).scatter(0, order, excluded), -torch.inf)
    if options.min_p > 0:
        probabilities = scores.softmax(-1)
        scores = scores.masked_fill(probabilities < options.min_p * probabilities.max(), -torch.inf)
    return scores
