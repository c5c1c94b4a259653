"""Choosing the next token, with the semantics of `transformers` and, where that has none, of OpenAI's API: penalties and
bias, least length, grammar, temperature, top-k, top-p, min-p, in this order.

Each sequence draws from its own generator, so that an answer does not depend on what else is in the batch. The vocabulary is
weighed where the logits lie, and with top-k cut down there; what is left of all sequences comes to the host together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from qwen2_audio.errors import UsageError
from qwen2_audio.generation.grammar import Grammar
from qwen2_audio.generation.options import GenerationOptions
from qwen2_audio.generation.sequence import Choice

_SPARE = 16
"""Tokens beyond twice top-k that are looked at, because those as likely as the last of the k count too."""


class Sampler:
    """Chooses tokens for one sequence.

    Args:
        end_ids: tokens that are not chosen before `min_new_tokens` others were.
        grammar: what the answer must obey.
        device: where the logits lie.

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
        device: torch.device | str = "cpu",
    ) -> None:
        self._options, self._vocab_size, self._device = options, vocab_size, device
        ends = end_ids.union(options.stop_token_ids)
        known = sorted(token for token in ends if token < vocab_size)
        self._end_ids = torch.tensor(known, dtype=torch.long, device=device)
        self._owed = options.min_new_tokens  # tokens that must be chosen before one of these
        self._grammar = grammar
        self._random = torch.Generator()
        if options.seed is None:
            self._random.seed()
        else:
            self._random.manual_seed(options.seed)
        self._seen: Tensor | None = None
        if options.repetition_penalty != 1:
            self._seen = torch.zeros(vocab_size, dtype=torch.bool, device=device)
            self._seen[torch.tensor(prompt_ids, device=device)] = True
        penalised = options.presence_penalty != 0 or options.frequency_penalty != 0
        self._counts = torch.zeros(vocab_size, device=device) if penalised else None  # of the answer's tokens
        self._bias = _bias_of(options.logit_bias, vocab_size, device)

    @property
    def plain(self) -> bool:
        """Whether the choice is nothing but the greatest logit."""
        changes = (self._seen, self._counts, self._bias, self._grammar)
        return self._options.temperature == 0 and self._owed == 0 and all(change is None for change in changes)

    @property
    def greedy(self) -> bool:
        """Whether nothing but the greatest logit is wanted."""
        return self.plain and self._options.logprobs is None

    def candidates(self, logits: Tensor, *, all_of_them: bool = False) -> tuple[Tensor, Tensor | None]:
        """Scores and ids [n] of the tokens to choose from for logits [vocab_size], on their device; no ids where that is
        the whole vocabulary: without top-k, or with `all_of_them`."""
        scores = self._weighed(logits.float())
        if self._options.temperature == 0:
            return scores.max(0, keepdim=True)
        window = 2 * self._options.top_k + _SPARE
        if all_of_them or self._options.top_k == 0 or window >= len(scores):
            return scores, None
        return scores.topk(window)

    def draw(self, scores: Tensor, ids: Tensor | None) -> int | None:
        """The next token, of candidates on the host. None: as many are equally likely as were looked at; ask for all."""
        options = self._options
        if options.temperature == 0 and ids is not None:
            return self._take(int(ids[0]))
        if ids is not None:
            if scores[-1] == scores[options.top_k - 1] > -torch.inf:
                return None
            ids, order = ids.sort()  # whatever order equal ones came in
            scores = scores[order]
        at = _drawn(restrict(scores / options.temperature, options).softmax(-1), self._random)
        return self._take(at if ids is None else int(ids[at]))

    def _take(self, token: int) -> int:
        self._owed = max(self._owed - 1, 0)
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
            scores = scores.masked_fill(forbidden.to(self._device), -torch.inf)
        if self._owed:
            without_end = scores.index_fill(0, self._end_ids, -torch.inf)
            others = (without_end > -torch.inf).any()  # else a grammar allows nothing but the end
            scores = torch.where(others, without_end, scores)
        return scores


class Arrival:
    """Tokens [rows] on their way to the host, which the device need not wait for."""

    def __init__(self, tokens: Tensor) -> None:
        self._here = torch.empty(tokens.shape, dtype=tokens.dtype, pin_memory=tokens.is_cuda)
        self._here.copy_(tokens, non_blocking=True)
        self._event: torch.cuda.Event | None = None
        if tokens.is_cuda:
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(tokens.device))

    def tokens(self) -> list[int]:
        """Waits for them."""
        if self._event is not None:
            self._event.synchronize()
        return self._here.tolist()


def choose(logits: Tensor, samplers: Sequence[Sampler]) -> list[Choice]:
    """The next token of several sequences for logits [rows, vocab_size]."""
    drawing = [at for at, sampler in enumerate(samplers) if not sampler.plain]
    plain = len(drawing) < len(samplers)
    tokens = logits.argmax(-1).tolist() if plain else [0] * len(samplers)  # which waits for the device
    found = [samplers[at].candidates(logits[at]) for at in drawing]
    for at, (scores, ids) in zip(drawing, _to_host(found), strict=True):
        token = samplers[at].draw(scores, ids)
        if token is None:
            token = samplers[at].draw(samplers[at].candidates(logits[at], all_of_them=True)[0].cpu(), None)
        tokens[at] = token
    return [sampler.report(token, row) for sampler, token, row in zip(samplers, tokens, logits, strict=True)]


def _to_host(found: Sequence[tuple[Tensor, Tensor | None]]) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Candidates, brought to the host; the short ones together, because each by itself would wait for the device again."""
    short = [(scores, ids) for scores, ids in found if ids is not None]
    sizes = [len(ids) for _, ids in short]
    at_host = [iter(torch.cat(parts).cpu().split(sizes)) for parts in zip(*short, strict=True)]
    for scores, ids in found:
        yield (scores.cpu(), None) if ids is None else (next(at_host[0]), next(at_host[1]))


def _drawn(probabilities: Tensor, random: torch.Generator) -> int:
    """An index, at random. One number decides, so that what is impossible, or left out, changes nothing for the rest."""
    sums = probabilities.double().cumsum(-1)
    at = torch.rand(1, generator=random, dtype=torch.float64) * sums[-1]
    return int(torch.searchsorted(sums, at, right=True).clamp_max_(len(sums) - 1))


def _bias_of(
    pairs: Sequence[tuple[int, float]], vocab_size: int, device: torch.device | str
) -> tuple[Tensor, Tensor] | None:
    unknown = [token for token, _ in pairs if token >= vocab_size]
    if unknown:
        raise UsageError(f"logit_bias names the token {unknown[0]}, the model has {vocab_size}, counted from 0")
    if not pairs:
        return None
    tokens, biases = [token for token, _ in pairs], [float(bias) for _, bias in pairs]
    return torch.tensor(tokens, device=device), torch.tensor(biases, device=device)


def penalise(scores: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Repetition penalty on the tokens marked in `seen`, bool [vocab_size] (Keskar et al. 2019)."""
    return torch.where(seen, torch.where(scores < 0, scores * penalty, scores / penalty), scores)


def restrict(scores: Tensor, options: GenerationOptions) -> Tensor:
    """Set the scores [tokens] of all that top-k, top-p and min-p exclude to minus infinity."""
    if 0 < options.top_k < len(scores):
        scores = scores.masked_fill(scores < scores.topk(options.top_k).values[-1], -torch.inf)
    if options.top_p < 1:
        ascending, order = scores.sort(stable=True)
        excluded = ascending.softmax(-1).cumsum(-1) <= 1 - options.top_p
        excluded[-1] = False
        scores = scores.masked_fill(torch.zeros_like(excluded).scatter(0, order, excluded), -torch.inf)
    if options.min_p > 0:
        probabilities = scores.softmax(-1)
        scores = scores.masked_fill(probabilities < options.min_p * probabilities.max(), -torch.inf)
    return scores
